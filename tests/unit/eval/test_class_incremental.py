"""Class-incremental classification: tasks, what is memorised, the matrix by hand, the script."""

from __future__ import annotations

import json
import math
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.labelled import (
    Labelled,
    module_examples,
    read_hub_examples,
    read_jsonl_examples,
    snippets,
)
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus
from nl.eval.class_incremental import (
    Example,
    Matrix,
    Protocol,
    Splitting,
    Task,
    Verdict,
    make_tasks,
    run_tasks,
    wilson,
)
from nl.eval.context import EvalContext
from nl.eval.memorize import MemoryConfig

ROOT = Path(__file__).resolve().parents[3]


def pool(labels: int, each: int) -> list[Example]:
    return [Example(f"text {i} of {k}", f"label{k}") for k in range(labels) for i in range(each)]


def test_tasks_are_disjoint_full_and_a_function_of_the_seed() -> None:
    how = Splitting(task_size=3, train_per_label=2, eval_per_label=3)
    tasks = make_tasks(pool(8, 5), [], how, 1)
    assert [len(task.labels) for task in tasks] == [3, 3]
    assert len({label for task in tasks for label in task.labels}) == 6
    for task in tasks:
        assert Counter(e.label for e in task.train) == dict.fromkeys(task.labels, 2)
        assert Counter(e.label for e in task.test) == dict.fromkeys(task.labels, 3)
        assert not set(task.train) & set(task.test)
    assert make_tasks(pool(8, 5), [], how, 1) == tasks
    assert make_tasks(pool(8, 5), [], how, 2) != tasks
    assert make_tasks(pool(8, 5), [], replace(how, max_tasks=1), 1) == tasks[:1]


def test_a_set_with_its_own_test_split_never_shows_a_test_text() -> None:
    train, test = (
        pool(3, 4),
        [*pool(3, 4)[::2], *[e._replace(text=e.text + "!") for e in pool(3, 4)]],
    )
    how = Splitting(task_size=3, train_per_label=4, eval_per_label=2)
    (task,) = make_tasks(train, test, how, 0)
    assert all(example.text.endswith("!") for example in task.test)
    assert not set(task.train) & set(task.test)


def test_too_few_examples() -> None:
    with pytest.raises(ConfigError, match="only 0 labels have 25 \\+ 25 examples"):
        make_tasks(pool(12, 30), [], Splitting(), 0)
    with pytest.raises(ConfigError, match="--task-size: 1"):
        Splitting(task_size=1)


class Notebook(torch.nn.Module):
    """Knows the label letter that followed the first letter of a text when it was written down."""

    def __init__(self, fakes: ModuleType) -> None:
        super().__init__()
        self.vocab = fakes.VOCAB
        self.emptied = 0

    def memories_alone(self, state: Any) -> Any:
        self.emptied += 1
        return (torch.full_like(state[0], -1), state[1].clone())

    def forward(self, tokens: Any, state: Any = None, write: bool = True, **_: Any) -> Any:
        from nl.core.output import Output

        rows = len(tokens)
        key, known = state or (torch.full((rows,), -1), torch.full((rows, self.vocab), -1))
        key, known, logits = key.clone(), known.clone(), []
        for token in tokens.unbind(1):
            out = torch.zeros(rows, self.vocab)
            for r in range(rows):
                letter = int(token[r])
                if chr(letter).islower() and chr(letter) not in "ext":  # the text's own letter
                    key[r] = letter
                if chr(letter).isupper() and chr(letter) not in "TL" and key[r] >= 0 and write:
                    known[r, key[r]] = letter
                if key[r] >= 0 and known[r, key[r]] >= 0:
                    out[r, known[r, key[r]]] = 9.0
            logits.append(out)
        return Output(torch.stack(logits, 1), (key, known))


def letters(labels: str, texts: str) -> Task:
    pairs = tuple(Example(t, k) for t, k in zip(texts, labels, strict=True))
    return Task(tuple(labels), pairs, pairs)


@pytest.fixture
def book(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    from nl.eval import class_incremental

    monkeypatch.setattr(class_incremental, "_prompt", lambda text, *_: (0, ord(text)))
    return Notebook(fakes)


def accuracies(
    book: Notebook, tasks: list[Task], context: EvalContext, mode: Any, **how: Any
) -> Any:
    return Matrix.of(run_tasks(book, tasks, context, mode, Protocol(**how)), len(tasks)).values


def test_what_is_memorised_is_known_and_overwritten_by_later_tasks(
    book: Notebook, context: EvalContext
) -> None:
    """The second task gives the letter b, which the first had labelled B, the label D."""
    context = replace(context, batch_size=4)
    tasks = [letters("AB", "ab"), letters("CD", "cb")]
    assert accuracies(book, tasks, context, "context") == [[1.0], [0.5, 1.0]]
    assert book.emptied == 4  # after every training example
    # Off: nothing known, every label equally likely, the first one is said.
    assert accuracies(book, tasks, context, "off") == [[0.5], [0.5, 0.5]]
    assert book.emptied == 4
    assert accuracies(book, tasks, context, "oracle") == [[1.0], [1.0, 1.0]]


def test_candidates_by_task_or_all_seen(book: Notebook, context: EvalContext) -> None:
    tasks = [letters("AB", "ab"), letters("CD", "cb")]
    aware = run_tasks(book, tasks, context, "context", Protocol())
    blind = run_tasks(book, tasks, context, "context", Protocol(task_aware=False))
    assert {v.candidates for v in aware} == {2}
    assert [v.candidates for v in blind] == [2, 2, 4, 4, 4, 4]
    # After the second task the letter b means D: not a candidate if the task is known.
    assert [v.predicted for v in blind if v.label == "B"] == ["B", "D"]
    assert [v.predicted for v in aware if v.label == "B"] == ["B", "A"]
    assert Matrix.of(blind, 2).chances == ((0.5,), (0.25, 0.25))


def test_matrix_by_hand() -> None:
    def verdicts(after: int, task: int, right: int, n: int = 4) -> list[Verdict]:
        return [Verdict(after, task, i, "x", "x" if i < right else "y", 2) for i in range(n)]

    cells = [(0, 0, 2), (1, 0, 4), (1, 1, 3), (2, 0, 1), (2, 1, 3), (2, 2, 4)]
    matrix = Matrix.of([v for cell in cells for v in verdicts(*cell)], 3)
    assert matrix.values == [[0.5], [1.0, 0.75], [0.25, 0.75, 1.0]]
    assert matrix.forgetting() == [1.0 - 0.25, 0.0]
    found = matrix.metrics()
    assert found["average_forgetting"] == 0.375
    assert found["average_accuracy_anytime"] == pytest.approx((0.5 + 0.875 + 2 / 3) / 3)
    final = found["average_accuracy_final"]
    assert (final["value"], final["n"], final["chance"]) == (pytest.approx(8 / 12), 12, 0.5)
    # Right after learning minus right at the end: one of four in the first task, none in the other.
    lost = found["lost_after_learning"]
    assert (lost["mean"], lost["n"]) == (1 / 8, 8)
    std = math.sqrt((7 * (1 / 8) ** 2 + (7 / 8) ** 2) / 7)
    assert lost["high"] - lost["mean"] == pytest.approx(2.365 * std / math.sqrt(8))


def test_wilson_by_hand() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 5)[0] == pytest.approx(0.0)
    assert wilson(5, 5)[1] == pytest.approx(1.0)


def test_reading_twice_reads_twice(book: Notebook, context: EvalContext) -> None:
    seen = []
    forward = book.forward

    def counting(tokens: Any, *more: Any, **how: Any) -> Any:
        seen.append(tokens.shape)
        return forward(tokens, *more, **how)

    book.forward = counting  # type: ignore[method-assign]
    task = letters("AB", "ab")
    for steps in (1, 3):
        seen.clear()
        run_tasks(book, [task], context, "context", Protocol(memory=MemoryConfig(steps=steps)))
        assert len([s for s in seen if s[0] == 1]) == 2 * steps


# Data


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": " a ", "label": 3}\n\n{"text": "b", "label": "k"}\n')
    assert read_jsonl_examples(path) == [Labelled("a", "3"), Labelled("b", "k")]
    for bad in ('{"text": "a"}', "[]", "no", '{"text": "", "label": 1}', '{"text": 1, "label": 1}'):
        path.write_text('{"text": "a", "label": "b"}\n' + bad + "\n")
        with pytest.raises(ConfigError, match="line 2"):
            read_jsonl_examples(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_jsonl_examples(tmp_path / "none")


def test_mirrors_of_hub_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "clinc"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "t", "intent": 4}\n')
    (folder / "test.jsonl").write_text('{"text": "u", "label": "four"}\n')
    wanted = [Labelled("t", "4", "train"), Labelled("u", "four", "test")]
    assert read_hub_examples("clinc", tmp_path) == wanted
    (folder / "test.jsonl").write_text('{"body": "u"}\n')
    with pytest.raises(ConfigError, match="neither text and label nor text and intent"):
        read_hub_examples("clinc", tmp_path)
    with pytest.raises(ConfigError) as error:
        read_hub_examples("banking77", tmp_path)
    assert "banking77/train.jsonl and PolyAI/banking77 on the hub" in str(error.value)
    assert "\n" not in str(error.value)


def test_snippets_do_not_say_the_answer() -> None:
    text = "\n".join(["def read(line): return line.strip()" * 2] * 20 + ["import Secret"] * 4)
    found = list(snippets(text, "secret"))
    assert len(found) > 4
    assert all(80 <= len(piece) < 280 and "ecret" not in piece for piece in found)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of some modules, a part of them held out, byte tokens."""
    root = tmp_path_factory.mktemp("modules")
    works = []
    for name in ("alpha", "beta", "gamma", "delta", "kappa", "sigma", "omega", "theta"):
        for number in range(24):
            lines = [f"{name[::-1]}_{number} = call({i}, {number * i})  # step" for i in range(30)]
            works.append(Work((Document("\n".join(lines), f"{name}/{number}.py"),)))
    write_corpus(root / "c", "t", {"code": works}, limit_bytes=10**9, recipe={"maker": "test"})
    shard_corpus(root / "c", "bytes", root / "data")
    return root / "data"


def test_the_built_in_set(data: Path, tmp_path: Path) -> None:
    found = module_examples(data)
    assert len({example.label for example in found}) >= 4
    for text, label, split in found:
        assert label not in text
        assert split == ""
        assert label[::-1] in text
    with pytest.raises(ConfigError):
        module_examples(tmp_path)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nl.assembly import launch
    from nl.config.hydra import compose

    told = ["stream.domains=[code]", "stream.weights=[1]", f"stream.path={data}"]
    told += ["stream.seq_len=32", "stream.batch_size=2", "train.steps=2", "schedule.warmup=1"]
    told += ["model.vocab_size=259", "model.dim=16", "model.layers=1", "model.attention.heads=2"]
    place = tmp_path_factory.mktemp("runs") / "run"
    return launch(compose("pilot_smoke", [*told, f"run.dir={place}", "train.validate_batches=1"]))


def call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    path = str(ROOT / "scripts" / "eval" / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    return int(stop.value.code or 0)


def test_the_script_and_its_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.json"
    flags = ["--checkpoint", run, "--output", out, "--task-size", 2, "--max-tasks", 2]
    flags += ["--train-per-label", 3, "--eval-per-label", 2, "--task-aware", "false"]
    flags += ["--max-tokens", 48, "--memorize", "off", "context"]
    assert call(monkeypatch, "continual_classification", *flags) == 0
    assert "chance 0.250" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["dataset"] == "modules"
    assert [len(task) for task in record["tasks"]] == [2, 2]
    assert set(record["memorize"]) == {"off", "context"}
    for found in record["memorize"].values():
        assert found["accuracy"][0][1] is None
        assert found["n"] == [[4, None], [4, 4]]
        assert found["chance"] == [[0.5, None], [0.25, 0.25]]
        assert found["low"][1][0] <= found["accuracy"][1][0] <= found["high"][1][0]
    lines = [json.loads(x) for x in (tmp_path / "c.samples.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 12
    hits = [x["right"] for x in lines if (x["memorize"], x["after"], x["task"]) == ("off", 1, 0)]
    assert sum(hits) / 4 == record["memorize"]["off"]["accuracy"][1][0]
    assert "attention emptied after each" in record["state_policy"]
    assert call(monkeypatch, "plot_continual_classification", "--input", out) == 0
    for name in ("c.png", "c.bars.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert "memorize off,after 1,task 2,\n" in (tmp_path / "c.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--local-jsonl", "none.jsonl"], "none.jsonl: no such file"),
        (["--local-jsonl", "x", "--dataset", "clinc"], "give one of the two"),
        (["--dataset", "local"], "--local-jsonl: missing"),
        (["--task-size", "99"], "--task-size: 99; only"),
        (["--max-tokens", "0"], "--max-tokens: 0"),
    ],
)
def test_refusals(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    place = ("--checkpoint", run, "--output", tmp_path / "c.json")
    assert call(monkeypatch, "continual_classification", *place, *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_pictures_of_forgetting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def entry(method: str, seed: int, add: float) -> dict[str, Any]:
        values = [[5.0, 5.0], [3.0 + add, 4.0], [3.5 + add, 2.0]]
        measured = {"off": {"nats_per_token": values, "metrics": {}}}
        order = "scratch" if method == "scratch" else "sequential"
        return {"model": "m", "method": method, "seed": seed, "order": order, "memorize": measured}

    source = tmp_path / "c.json"
    runs = [entry("naive", 0, 0.0), entry("naive", 1, 1.0), entry("scratch", 0, 0.0)]
    names = {"rows": ["init", "1:a", "2:b"], "segments": ["a", "b"], "better": {}}
    source.write_text(json.dumps({**names, "runs": runs}))
    assert call(monkeypatch, "plot_forgetting", "--input", source) == 0
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert '"m, naive, n=2",1:a,a,3.5' in lines
    assert len(lines) == 1 + 2 * 6
    assert (tmp_path / "c.curves.png").read_bytes()[:4] == b"\x89PNG"
    first = (tmp_path / "c.png").read_bytes()
    assert call(monkeypatch, "plot_forgetting", "--input", source) == 0
    assert (tmp_path / "c.png").read_bytes() == first
    assert call(monkeypatch, "plot_forgetting", "--input", source, "--memorize", "context") == 2
    assert "--memorize: context; the file has off" in capsys.readouterr().err
    for bad in ("{}", "no"):
        source.write_text(bad)
        assert call(monkeypatch, "plot_forgetting", "--input", source) == 2
    assert call(monkeypatch, "plot_forgetting", "--input", tmp_path / "none.json") == 2
    source.write_text(json.dumps({**names, "runs": runs}))
    target = ("--output", tmp_path / "x.svg")
    assert call(monkeypatch, "plot_forgetting", "--input", source, *target) == 2
