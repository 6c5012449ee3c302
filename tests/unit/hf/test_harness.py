"""Our zero-shot numbers are those of lm_eval's own ``hf`` model on the exported model.

Per request: log-likelihoods, greedy matches, texts; every output type, prompts of the harness.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nl.assembly import evaluation_context, run_config
from nl.cli import main
from nl.config import ConfigError
from nl.config.hydra import compose
from nl.data.documents import Document, encode_jsonl
from nl.data.files import write_json
from nl.data.prep.shard import shard_corpus
from nl.data.prep.train_tokenizer import TokenizerOptions, train_tokenizer
from nl.data.tokenizer import load_tokenizer
from nl.dist.export import export
from nl.eval.context import EvalContext
from nl.eval.requests import Encoding
from nl.eval.scoring import Item
from nl.eval.zeroshot import ZeroshotConfig

pytest.importorskip("nl.hf")
WORDS = "the cat saw a small door and then it ran to an old garden near the river with two keys"
ONE = {"version": 1.0}


def sentence(seed: int, length: int = 9) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS.split()) for _ in range(length)).capitalize()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a SentencePiece tokenizer."""
    root = tmp_path_factory.mktemp("data")
    splits: dict[str, Any] = {}
    for split in ("train", "val"):
        texts = [". ".join(sentence(30 * n + i) for i in range(20)) for n in range(12)]
        documents = [
            Document(text + ".\n" + text[:40], f"{split}{n}") for n, text in enumerate(texts)
        ]
        raw = encode_jsonl(documents)
        file = root / "corpus" / split / "prose.jsonl"
        file.parent.mkdir(parents=True)
        file.write_bytes(raw)
        facts = {"file": f"{split}/prose.jsonl", "documents": len(texts)}
        facts["bytes"] = sum(len(document.text) for document in documents)
        facts["sha256"] = hashlib.sha256(raw).hexdigest()
        splits[split] = {"prose": [facts]}
    write_json(root / "corpus" / "manifest.json", {"schema": 2, "name": "t", "splits": splits})
    options = TokenizerOptions(vocab_size=340, sample_mb=0.1, hard_vocab_limit=False)
    train_tokenizer(root / "corpus", root / "data", options)
    shard_corpus(root / "corpus", root / "data" / "tokenizer.model", root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, EvalContext, Path]:
    """A model with memories that matter, its context, and its directory for transformers."""
    root = tmp_path_factory.mktemp("model")
    context = evaluation_context(data, root / "out", batch_size=4, segment=32)
    sizes = ["model.dim=32", "model.layers=2", f"model.vocab_size={context.tokenizer.vocab_size}"]
    sizes += ["model.attention.heads=2", "model.cms.periods=[16,64]", f"stream.path={data}"]
    run = run_config(compose("pilot_smoke", ["model.block=hope_attention", *sizes]))
    torch.manual_seed(3)
    model: Any = run.model.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        # broken UTF-8 is the one thing that the two tokenizers write differently
        pieces = context.tokenizer.processor
        odd = [i for i in range(pieces.get_piece_size()) if pieces.is_byte(i)]
        model.head.weight[odd] = 0
    export(model.state_dict(), run, root / "m.safetensors")
    assert main(["export", str(root / "m.safetensors"), str(root / "hf"), "--to", "hf"]) == 0
    return model, context, root / "hf"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own_task(folder: Path, name: str, rows: list[dict[str, Any]], **how: Any) -> str:
    """A task of lm_eval's format with its rows; the path of its YAML."""
    file = write_rows(folder / f"{name}.jsonl", rows)
    kwargs = {"data_files": {"test": str(file)}, "cache_dir": str(folder / ".cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task | how | {"metadata": ONE}, sort_keys=False))
    return str(path)


def mirrors(folder: Path) -> list[str]:
    """Tasks of the harness on rows of our own."""
    write_rows(
        folder / "piqa/validation.jsonl",
        [
            {"goal": sentence(n), "sol1": sentence(n + 50, 3), "sol2": sentence(n + 70, 6)}
            | {"label": n % 2}
            for n in range(5)
        ],
    )
    choices = {"text": [sentence(n, n - 2) for n in (4, 5, 6)], "label": ["A", "B", "C"]}
    arc = [{"question": sentence(n), "choices": choices, "answerKey": "ABC"[n % 3]} for n in (1, 2)]
    write_rows(folder / "arc_easy/test.jsonl", arc)
    boolq = [
        {"passage": sentence(n, 60), "question": sentence(n), "label": n % 2} for n in (1, 2, 3)
    ]
    write_rows(folder / "boolq/validation.jsonl", boolq)
    wino = {
        "sentence": "The cat saw _ and ran .",
        "option1": "a key",
        "option2": "it",
        "answer": "2",
    }
    write_rows(folder / "winogrande/validation.jsonl", [wino, wino | {"answer": "1"}])
    write_rows(
        folder / "lambada/test.jsonl", [{"text": sentence(n, 12 + 30 * n)} for n in range(4)]
    )
    pages = [f" = {sentence(n, 3)} = \n\n {sentence(n, 90)} , {sentence(n)} . \n" for n in range(3)]
    write_rows(folder / "wikitext/test.jsonl", [{"page": page} for page in [*pages, "The cat"]])
    return ["piqa", "arc_easy", "boolq", "winogrande", "lambada", "wikitext"]


def own_tasks(folder: Path) -> list[str]:
    """One task of every output type, with blanks and empty contexts where they hurt."""
    acc = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ]
    asked = [{"q": sentence(n), "a": sentence(n + 9, 2), "n": n % 2} for n in range(4)]
    asked += [{"q": "The cat  ", "a": "saw", "n": 0}, {"q": "It ran\n\n", "a": "near", "n": 1}]
    text = {"doc_to_text": "q", "doc_to_target": " {{a}}"}
    likely = {"output_type": "loglikelihood", "metric_list": acc[:1]}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["a door", "the old garden near it"],
    }
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}"}
    rolling |= {"metric_list": [{"metric": name} for name in ("word_perplexity", "bits_per_byte")]}
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    generate = {"output_type": "generate_until", "metric_list": exact}
    how = {"until": [" and", "."], "max_gen_toks": 20, "do_sample": False}
    return [
        own_task(folder, "likely", asked, **text, **likely),
        own_task(folder, "empty", asked[:3], **text | {"doc_to_text": ""}, **likely),
        own_task(
            folder, "choice", asked, **text | {"doc_to_target": "n"}, **choice, metric_list=acc
        ),
        own_task(folder, "whole", asked, **rolling),
        own_task(folder, "written", asked, **text, **generate, generation_kwargs=how),
    ]


def theirs(folder: Path, write: bool, paths: list[Path], **options: Any) -> dict[str, Any]:
    """lm_eval with its own model on the exported directory."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inner = AutoModelForCausalLM.from_pretrained(folder)
    inner.config.write = write
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = HFLM(pretrained=inner, tokenizer=tokenizer, batch_size=3, **options)
    manager = TaskManager(include_path=[str(path.parent) for path in paths], include_defaults=False)
    tasks = list(manager.load([str(path) for path in paths])["tasks"].values())
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=tasks, bootstrap_iters=0, task_manager=manager
    )
    return found


def task_files(context: EvalContext, names: list[str]) -> list[Path]:
    """The YAMLs that ours ran, ours and the mirrors'."""
    made = context.output / "tasks"
    return [
        Path(name) if name.endswith(".yaml") else made / name / f"{name}.yaml" for name in names
    ]


@pytest.mark.parametrize(("write", "longest"), [(True, 0), (False, 40)])
def test_every_request_scores_the_same(
    pair: tuple[Any, EvalContext, Path],
    tmp_path: Path,
    write: bool,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, context, folder = pair
    context = replace(context, output=tmp_path / "out")
    names = [*mirrors(tmp_path / "mirror"), *own_tasks(tmp_path / "own")]
    mode: Any = "context" if write else "off"
    config = ZeroshotConfig(
        tasks=tuple(names),
        samples=0,
        memorize=(mode,),
        data_dir=str(tmp_path / "mirror"),
        max_length=longest or 2048,
    )
    rows = {(row.task, row.metric): row for row in config.build()(model, context)}
    limit = {"max_length": longest} if longest else {}
    found = theirs(folder, write, task_files(context, names), **limit)
    assert len(found["results"]) == len(names)
    cut = 0
    for task, samples in found["samples"].items():
        mine = (context.output / f"samples_{task}_{mode}.jsonl").read_text().splitlines()
        assert len(mine) == len(samples)
        for ours, their in zip(map(json.loads, mine), samples, strict=True):
            assert ours["prompt_hash"] == their["prompt_hash"]
            assert ours["target_hash"] == their["target_hash"]
            check_answers(task, ours["filtered_resps"], their["filtered_resps"])
        for key, value in found["results"][task].items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr"):
                assert rows[task, metric].value == pytest.approx(value, rel=1e-4), (task, metric)
                cut += 1
    assert cut > len(names)


def check_answers(task: str, ours: list[Any], their: list[Any]) -> None:
    for mine, other in zip(ours, their, strict=True):
        if isinstance(other, str):
            assert mine == other, task
        elif isinstance(other, float):
            assert float(mine) == pytest.approx(other, rel=1e-5), task
        else:
            assert float(mine[0]) == pytest.approx(other[0], rel=1e-5), task
            assert str(mine[1]) == str(other[1]), task


def test_a_tokenizer_with_its_own_template(tmp_path: Path) -> None:
    """What transformers puts before a text stands before it here too; ``bos`` is the mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<pad>", "the", "cat", "saw"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="cat"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(names[:3])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    for template, front in ((None, []), ("<s> $A", [0])):
        if template is not None:
            inner.post_processor = processors.TemplateProcessing(
                single=template, special_tokens=[("<s>", 0)]
            )
        inner.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
        ours = Encoding(load_tokenizer(tmp_path / "tokenizer.json"))
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **special)
        assert ours.text("the cat") == theirs.encode("the cat") == [*front, 3, 4]
        assert ours.pair("the", " cat saw") == Item((*front, 3), (4, 5))
        assert ours.pair("", "cat") == Item((0,), (4,))
        assert ours.whole("cat saw") == [Item((0,), (*front, 4, 5))]
        document = replace(ours, begin="document")
        assert document.pair("the", " cat") == Item((1, 3), (4,))


def test_cuts_and_refusals() -> None:
    class Letters:
        vocab_size, eos_id = 128, 0

        def encode(self, text: str) -> list[int]:
            """One id per letter, "xy" melts into one."""
            return [ord(c) for c in text.replace("xy", "z")]

    short = Encoding(Letters(), max_length=4)  # type: ignore[arg-type]
    assert short.pair("abcdef", "gh") == Item(tuple(map(ord, "def")), (103, 104))
    assert short.pair("ax", "y") == Item((97,), (122,))
    assert short.pair("  ", "b") == Item((0,), (32, 32, 98))
    assert short.prompt("abcdef", 2) == (101, 102)
    assert short.prompt("", 2) == (0,)
    assert [len(item.continuation) for item in short.whole("abcdefghij")] == [4, 4, 2]
    assert short.whole("") == []
    with pytest.raises(ConfigError, match="max_length: 4; an answer has 5 tokens"):
        short.pair("a", "bcdef")
    with pytest.raises(ConfigError, match="max_length: 4; 4 tokens are to be generated"):
        short.prompt("a", 4)
    with pytest.raises(ConfigError, match="empty continuation"):
        short.pair("a", "")
