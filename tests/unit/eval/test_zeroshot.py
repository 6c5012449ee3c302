"""lm_eval runs offline on local tasks; models of known behaviour score what they must."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from nl.config import ConfigError
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext
from nl.eval.harness import Answers
from nl.eval.memorize import MemoryConfig
from nl.eval.progress import ProgressMeter
from nl.eval.scoring import Item
from nl.eval.zeroshot import ZeroshotConfig


def stories(count: int) -> list[str]:
    """Texts whose words come back, each time after the same word before them."""
    texts = []
    for seed in range(count):
        rng = random.Random(seed)
        nouns = ["Alice", "Robert", "garden", "window", "river", "stone", "carpet", "basket"]
        verbs = ["saw", "met", "cut", "hid", "ate", "won", "had", "led"]
        rng.shuffle(nouns)
        pairs = [f"{verb} {noun}" for verb, noun in zip(verbs, nouns, strict=True)]
        texts.append(" ".join(rng.choice(pairs) for _ in range(60)) + ".")
    return texts


def by_key(rows: list[EvalRow]) -> dict[tuple[str, str, str], EvalRow]:
    return {(row.task, row.metric, row.memorize): row for row in rows}


@pytest.fixture
def told(fakes: ModuleType, context: EvalContext) -> EvalContext:
    return replace(
        context, corpus=fakes.ListCorpus({"prose": stories(40)}), batch_size=16, segment=2048
    )


def test_cloze_with_a_solver_and_a_uniform_model(fakes: ModuleType, told: EvalContext) -> None:
    config = ZeroshotConfig(samples=24, words=31, memorize=("context",))
    solved = by_key(config.build()(fakes.InductionModel(reach=12), told))
    assert solved["cloze_prose", "acc", "context"].value == 1.0
    assert solved["cloze_prose_choice", "acc", "context"].value == 1.0
    assert solved["cloze_prose", "perplexity", "context"].value == pytest.approx(1, abs=1e-3)
    assert solved["cloze_prose", "answer_nats", "context"].value == pytest.approx(0, abs=1e-3)
    choice = solved["cloze_prose_choice", "acc", "context"]
    assert choice.chance == 0.25
    assert choice.n == 24
    rows = by_key(config.build()(fakes.UniformModel(), told))
    assert rows["cloze_prose", "acc", "context"].value == 0
    lines = (told.output / "tasks" / "cloze_prose.jsonl").read_text().splitlines()
    letters = [1 + len(json.loads(line)["answer"]) for line in lines]
    nats = rows["cloze_prose", "answer_nats", "context"].value
    assert nats == pytest.approx(math.log(128) * sum(letters) / len(letters), rel=1e-5)
    assert rows["cloze_prose", "answer_nats", "context"].chance == pytest.approx(nats, rel=1e-5)
    assert 0 < (rows["cloze_prose", "acc", "context"].chance or 0) < 1e-6
    # a uniform model prefers short words: among four of eight lengths it is near chance
    guessed = rows["cloze_prose_choice", "acc", "context"]
    assert guessed.value == pytest.approx(0.25, abs=3 * guessed.stderr)
    samples = (told.output / "samples_cloze_prose_choice_context.jsonl").read_text()
    assert len(samples.splitlines()) == 24


def test_error_of_a_perplexity_follows_from_that_of_its_logarithm(
    fakes: ModuleType, told: EvalContext, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ZeroshotConfig(samples=8, words=20, memorize=("off",))
    rows = by_key(config.build()(fakes.RecurrentModel(), told))
    nats, wide = (rows["cloze_prose", metric, "off"] for metric in ("answer_nats", "perplexity"))
    assert wide.value == pytest.approx(math.exp(nats.value))
    assert wide.stderr == pytest.approx(wide.value * nats.stderr)
    printed = "".join(capfd.readouterr())
    assert "it/s" not in printed
    assert "bootstrapping" not in printed


def test_scores_do_not_depend_on_the_batch(fakes: ModuleType, told: EvalContext) -> None:
    model = fakes.RecurrentModel()
    config = ZeroshotConfig(samples=4, words=20, candidates=3)
    rows = [
        by_key(
            config.build()(model, replace(told, batch_size=size, output=told.output / str(size)))
        )
        for size in (1, 7)
    ]
    assert {k: r.value for k, r in rows[0].items()} == pytest.approx(
        {k: r.value for k, r in rows[1].items()}
    )
    assert {key[2] for key in rows[0]} == {"off", "context"}


def requests(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=a, doc_id=0, idx=i) for i, a in enumerate(args)]


@pytest.mark.parametrize("memorize", ["off", "context"])
def test_requests_equal_direct_scores(
    fakes: ModuleType, context: EvalContext, memorize: str
) -> None:
    model = fakes.RecurrentModel()
    answers = Answers(model, context, memorize, begin="document")
    write = memorize == "context"

    def direct(context_ids: list[int], ids: list[int]) -> float:
        tokens = torch.tensor([[0, *context_ids, *ids]])
        with torch.no_grad():
            found = model(tokens[:, :-1], write=write).pred[0].log_softmax(-1)
        first = len(context_ids)
        return float(found[first:].gather(1, torch.tensor(ids)[:, None]).sum())

    text = list(map(ord, "a longer text than one segment"))
    rolled = answers.rolling(requests(("a longer text than one segment",), ("",), ("x",)))
    assert rolled == pytest.approx([direct([], text), 0.0, direct([], [ord("x")])], abs=1e-5)
    found = answers.loglikelihood(requests(("ab ", "cd"), ("", "cd"), ("ab", " cd")))
    wanted = [
        direct([97, 98], [32, 99, 100]),
        direct([], [99, 100]),
        direct([97, 98], [32, 99, 100]),
    ]
    assert [total for total, _ in found] == pytest.approx(wanted, abs=1e-5)


def test_generation_streams_state_and_stops(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.InductionModel()
    answers = Answers(model, context, "context")
    line = "one two three; " * 2
    options = {"until": ["three"], "max_gen_toks": 100, "do_sample": False}
    short = {"until": [], "max_gen_toks": 40}
    found = answers.generate(requests((line, options), (line, short), ("zz", short)))
    assert found[0] == "one two "
    assert found[1] == (line * 2)[:40]
    assert found[2] == "z" * 40
    plain = fakes.RecurrentModel()
    prompts = [("abc", short), ("xyz", short), ("q", short)]
    alone = [Answers(plain, context, "context").generate(requests(p))[0] for p in prompts]
    assert Answers(plain, context, "context").generate(requests(*prompts)) == alone
    tokens = torch.tensor([[*map(ord, "abc")]])
    with torch.no_grad():
        whole, _ = fakes.greedy(plain, tokens, 40, temperature=0, seed=0, state=None, write=True)
    ids = whole[0].tolist()
    assert alone[0] == "".join(map(chr, ids[: ids.index(0)] if 0 in ids else ids))


def test_oracle_shows_the_right_answer(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.InductionModel(reach=16)
    pair = requests(("The colour is", " red"), ("The colour is", " blue"))
    shown = Answers(model, context, "oracle", lambda request, all_requests: all_requests[1])
    red, blue = shown.loglikelihood(pair)
    assert blue[1]
    assert blue[0] > red[0]
    with pytest.raises(ConfigError, match="oracle"):
        shown.generate(requests(("a", {})))
    told = replace(shown, answer=lambda request: " blue")
    assert told.generate(requests(("The colour is", {"max_gen_toks": 5}))) == [" blue"]
    with pytest.raises(ConfigError, match=r"memory\.carry"):
        replace(told, memory=MemoryConfig(carry=True)).generate(requests(("a", {})))
    assert shown.pair(pair[0]) == Item(tuple(map(ord, "The colour is")), (32, 114, 101, 100))


def test_hub_task_from_a_local_mirror(
    fakes: ModuleType, context: EvalContext, tmp_path: Path
) -> None:
    data = tmp_path / "mirror" / "piqa"
    data.mkdir(parents=True)
    rows = [
        {"goal": f"say {word}", "sol1": word, "sol2": "zzz", "label": 0}
        for word in ("apple", "bread", "cheese")
    ]
    (data / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = tmp_path / "mirror" / "winogrande"
    other.mkdir()
    row = {"sentence": "It has a _ .", "option1": "bell", "option2": "door", "answer": "2"}
    (other / "validation.jsonl").write_text(json.dumps(row))
    config = ZeroshotConfig(
        tasks=("piqa", "hellaswag", "winogrande"),
        samples=2,
        memorize=("off", "oracle"),
        data_dir=str(tmp_path / "mirror"),
    )
    found = config.build()(fakes.InductionModel(), replace(context, segment=512))
    rows_by_key = by_key(found)
    assert rows_by_key["piqa", "acc", "oracle"].value == 1.0
    assert rows_by_key["piqa", "acc", "off"].chance == 0.5
    assert rows_by_key["piqa", "acc_norm", "off"].n == 2
    assert rows_by_key["winogrande", "acc", "oracle"].value == 1.0
    assert rows_by_key["winogrande", "acc", "off"].chance == 0.5
    sample = json.loads((context.output / "samples_piqa_off.jsonl").read_text().splitlines()[0])
    assert sample["arguments"][0] == ["Question: say apple\nAnswer:", " apple"]
    (missing,) = [row for row in found if row.task == "hellaswag"]
    assert missing.value is None
    assert "validation.jsonl" in missing.note
    assert "Rowan/hellaswag" in missing.note


def test_nothing_to_run(fakes: ModuleType, context: EvalContext, tmp_path: Path) -> None:
    config = ZeroshotConfig(tasks=("piqa",), data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)no task could be run.*piqa/validation\.jsonl"):
        config.build()(fakes.UniformModel(), context)
    config = ZeroshotConfig(tasks=("boolq",))
    with pytest.raises(ConfigError, match="neither cached nor reachable"):
        config.build()(fakes.UniformModel(), context)
    own = tmp_path / "own.yaml"
    for text in ("not yaml: [", "", "dataset_path: json"):
        own.write_text(text)
        with pytest.raises(ConfigError, match=r"own\.yaml: no task of lm_eval's format"):
            ZeroshotConfig(tasks=(str(own),)).build()(fakes.UniformModel(), context)
    with pytest.raises(ConfigError, match="Did you mean 'piqa'"):
        ZeroshotConfig(tasks=("piqua",))


def test_task_files_name_only_local_data(
    fakes: ModuleType, told: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    class Meter(ProgressMeter):
        def __init__(self, title: str, total: int, unit: str) -> None:
            titles.append(title)
            super().__init__(title, total, unit)

    monkeypatch.setattr("nl.eval.harness.ProgressMeter", Meter)
    ZeroshotConfig(samples=9, words=20, memorize=("off",)).build()(fakes.UniformModel(), told)
    files = sorted((told.output / "tasks").glob("*.yaml"))
    assert len(files) == 2
    assert sorted(set(titles)) == [f"zeroshot {file.stem} (off)" for file in files]
    for file in files:
        task = yaml.safe_load(file.read_text())
        assert task["dataset_path"] == "json"
        assert Path(task["dataset_kwargs"]["data_files"]["test"]).is_file()
