"""Commands that need weights, on a run of seconds: train, eval, generate, export, report, help."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import nl.eval.suite
from nl.cli import build_parser, main
from nl.cli_model import validated
from nl.data.documents import Document
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus

SMALL = [
    "model.dim=32",
    "model.vocab_size=259",
    "model.attention.heads=2",
    "stream.seq_len=64",
    "stream.batch_size=2",
    "train.steps=4",
    "train.validate_every=4",
    "train.validate_batches=2",
    "evals={}",
]
FEW = ["perplexity.max_documents=3", "perplexity.max_tokens=64", "perplexity.splits=[val]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains as byte tokens."""
    root = tmp_path_factory.mktemp("data")
    domains = {
        name: [Work((Document(f"{name} {i} " * (20 + i % 7), f"{name}:{i}"),)) for i in range(80)]
        for name in ("code", "prose")
    }
    write_corpus(root / "corpus", "tiny", domains, limit_bytes=10**9, recipe={"maker": "test"})
    shard_corpus(root / "corpus", "bytes", root)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by ``nl train``. Read only, except for what evaluations add."""
    run = tmp_path_factory.mktemp("runs") / "one"
    argv = sys.argv
    try:
        overrides = [*SMALL, f"stream.path={data}", f"run.dir={run}"]
        assert main(["train", "--config-name", "pilot_smoke", *overrides]) == 0
    finally:
        sys.argv = argv
    return run


def test_train_writes_a_run_that_says_how_it_was_started(trained: Path) -> None:
    assert json.loads((trained / "status.json").read_text())["state"] == "done"
    assert "model.dim=32" in (trained / "overrides.txt").read_text()


def test_train_refuses_a_mistyped_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["nl"])
    run = f"run.dir={tmp_path / 'run'}"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config-name", "pilot_smoke", "model.dmi=3", run])
    assert stop.value.code == 2
    assert "dmi" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_eval_prints_a_table_and_records_rows_once(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(trained), "--suite", "perplexity", "--set", *FEW]
    assert main(command) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    first = (trained / "evals.jsonl").read_text().splitlines()
    assert main(command) == 0
    again = [json.loads(r) for r in (trained / "evals.jsonl").read_text().splitlines()]
    assert len(again) == len(first) > 0
    assert {row["step"] for row in again} == {4}
    scored = [row for row in again if not row["metric"].startswith("memory/")]
    assert {row["n"] for row in scored if row["task"] == "val/code"} == {3}
    assert {row["n"] for row in again if row not in scored} == {2}
    assert [row["value"] for row in again] == [json.loads(row)["value"] for row in first]


def test_a_stopped_eval_keeps_the_suites_that_ended_and_says_how_to_go_on(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_suite = nl.eval.suite.run_suite

    def stopped(model: Any, evaluators: dict[str, Any], context: Any) -> Any:
        if "needle" in evaluators:
            signal.raise_signal(signal.SIGTERM)
        return run_suite(model, evaluators, context)

    monkeypatch.setattr(nl.eval.suite, "run_suite", stopped)
    (trained / "evals.jsonl").unlink(missing_ok=True)
    sets = ["--set", *FEW, "needle.samples=2"]
    assert main(["eval", str(trained), "--suite", "perplexity", "needle", *sets]) == 143
    said = capsys.readouterr().err.splitlines()[-1]
    folder = trained / "artifacts" / "evals"
    assert said.startswith(f"stopped: perplexity measured and written below {folder}, needle not;")
    rest = shlex.split(said.partition("go on with: ")[2])
    assert rest[:7] == [
        "nl",
        "eval",
        str(trained),
        *["--suite", "needle", "--set", "needle.samples=2"],
    ]
    assert build_parser().parse_args(rest[1:]).suite == ["needle"]
    rows = [json.loads(text) for text in (trained / "evals.jsonl").read_text().splitlines()]
    assert {row["suite"] for row in rows} == {"perplexity"}
    assert main(["eval", str(trained), "--suite", "needle", "perplexity", *sets]) == 143
    assert "stopped: no suite was measured to its end" in capsys.readouterr().err


def test_eval_writes_only_the_memories_that_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output", str(tmp_path / "out")]
    command = ["eval", str(trained), *out, "--suite", "perplexity", "--set", *FEW]
    assert main([*command, "perplexity.memory.paths=[level1]"]) == 0
    shown = capsys.readouterr().out
    assert "memory/writes/level1" in shown
    assert "memory/writes/level0" not in shown
    assert "writes: level1" in shown
    assert main([*command, "perplexity.memory.paths=[cms_fast]"]) == 2
    assert "level0, level1" in capsys.readouterr().err
    assert main([*command, "perplexity.memory.step=2"]) == 2
    assert "steps" in capsys.readouterr().err


def test_eval_of_an_exported_file_leaves_the_run_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained), "small.safetensors"]) == 0
    before = (trained / "evals.jsonl").read_text() if (trained / "evals.jsonl").exists() else ""
    assert main(["eval", "small.safetensors", "--suite", "perplexity", "--set", *FEW]) == 0
    saved = json.loads((tmp_path / "eval" / "small" / "perplexity.json").read_text())
    assert saved["rows"]
    after = (trained / "evals.jsonl").read_text() if (trained / "evals.jsonl").exists() else ""
    assert after == before


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--suite", "perplexiti"], "Did you mean 'perplexity'"),
        (["--suite", "needle", "--set", "needle.length=3"], "Did you mean 'lengths'"),
        (["--suite", "needle", "--set", "needle.samples=0"], "samples: 0"),
        (["--suite", "needle", "--set", "samples=0"], "<suite>.<field>=<value>"),
        (["--data", "nowhere"], "nowhere"),
        (["--batch-size", "0"], "error: --batch-size: 0"),
        (["--limit", "-1"], "error: --limit: -1"),
        (
            ["--suite", "needle", "--set", "needle.memorize=[off]", "needle.memory.steps=3"],
            "--set needle.memory.steps=3: with needle.memorize=[off] nothing is written",
        ),
        (["--set", "needle.memorize=[of]"], "needle.memorize[0]: unknown 'of'. Did you mean 'off'"),
    ],
)
def test_bad_evaluations_are_refused(
    trained: Path, flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(trained), *flags]) == 2
    assert complaint in capsys.readouterr().err


def generated(trained: Path, *flags: str) -> list[str]:
    command = ["generate", str(trained), "--prompt", "prose 1", "--max-new-tokens", "24"]
    return [*command, *flags]


def test_generate_streams_what_the_model_generates(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import nl
    from nl.data.manifest import data_tokenizer

    assert main(generated(trained, "--seed", "3", "--top-k", "20", "--top-p", "0.9")) == 0
    printed = capsys.readouterr().out
    tokenizer, model = data_tokenizer(data), nl.load_model(trained)
    prompt = tokenizer.encode("prose 1")
    options = {"seed": 3, "top_k": 20, "top_p": 0.9, "stop": (tokenizer.eos_id,)}
    tokens, _ = model.generate(torch.tensor([prompt]), max_new_tokens=24, **options)
    ids = [i for i in tokens[0].tolist() if i != tokenizer.eos_id]
    assert printed.rstrip("\n") == tokenizer.decode([*prompt, *ids]).rstrip("\ufffd\n")


def test_saved_samples_reach_the_report(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(generated(trained, "--temperature", "0", "--save", "--no-write")) == 0
    printed = capsys.readouterr().out
    rows = (trained / "artifacts" / "samples.jsonl").read_text().splitlines()
    sample = json.loads(rows[-1])
    assert printed.rstrip("\n") == (sample["prompt"] + sample["text"]).rstrip("\n")
    assert sample["memory"] == "frozen"
    assert main(["report", str(trained)]) == 0
    page = (trained / "report.html").read_text()
    assert "Generated text" in page
    assert "unigram" in page
    levels = json.loads((trained / "artifacts" / "baselines.json").read_text())["unigram"]
    assert set(levels) == {"val", "val/code", "val/prose"}
    assert min(levels["val/code"], levels["val/prose"]) <= levels["val"]


def test_tokens_behind_the_validation_loss() -> None:
    stream: dict[str, Any] = {"batch_size": 2, "seq_len": 10}
    settings = {"stream": stream, "train": {"validate_batches": 3}}
    held = {"prose": 50, "code": 1000, "other": 9}
    assert validated(settings, held) == {"prose": 50, "code": 60, "other": 9}
    stream["domains"] = ["prose", "code"]
    assert validated(settings, held) == {"prose": 50, "code": 60}
    settings["train"]["validate_batches"] = 0
    assert validated(settings, held) == {"prose": 50, "code": 1000}


def test_a_model_without_text_is_refused(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nl.assembly import build_model
    from nl.config.hydra import compose, run_config
    from nl.dist.export import export

    overrides = ["experiment=ladder/sign_of_winner"]
    model = build_model("pilot_smoke", overrides)
    file = tmp_path / "ladder.safetensors"
    export(model.state_dict(), run_config(compose("pilot_smoke", overrides)), file)
    assert main(["generate", str(file)]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["generate", str(file), "--data", str(data)]) == 2
    assert "no language model" in capsys.readouterr().err


def test_cuda_is_refused_where_there_is_none(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(generated(trained, "--device", "cuda")) == 2
    assert main(["eval", str(trained), "--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("no CUDA device") == 2


def test_save_needs_a_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.safetensors"
    assert main(["export", str(trained), str(alone)]) == 0
    assert main(generated(alone, "--save")) == 2
    assert "belongs to no run" in capsys.readouterr().err


def test_an_unwritable_place_is_refused_before_the_work(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "x")
    assert main(["eval", str(trained), "--output", place]) == 2
    found = capsys.readouterr()
    assert "--output" in found.err
    assert "is not a directory" in found.err
    assert "evaluate" not in found.err
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "artifacts", ignore_errors=True)
    (run / "artifacts").write_text("")
    assert main(generated(run, "--save")) == 2
    found = capsys.readouterr()
    assert "--save" in found.err
    assert found.out == ""


def test_eval_says_what_it_does(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained), "--suite", "perplexity", "--set", *FEW]) == 0
    assert "evaluate perplexity" in capsys.readouterr().err


def test_export_is_what_load_model_reads(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import nl

    target = tmp_path / "small.safetensors"
    assert main(["export", str(trained), str(target)]) == 0
    assert "parameters" in capsys.readouterr().out
    one, two = nl.load_model(trained).state_dict(), nl.load_model(target).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert main(["export", str(trained), str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["export", str(trained), str(target), "--force"]) == 0


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["export", "nowhere", "x.safetensors"], "nowhere"),
        (["export", "RUN", "x.bin"], ".safetensors"),
        (["export", "RUN", "no/such/place.safetensors"], "no such directory"),
        (["generate", "nowhere"], "nowhere"),
        (["generate", "RUN", "--top-p", "2"], "--top-p: 2"),
        (["generate", "RUN", "--data", "nowhere"], "nowhere"),
        (["eval", "nowhere"], "nowhere"),
    ],
)
def test_bad_requests_are_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(trained) if part == "RUN" else part for part in command]) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        ("", ["hope_attention", "train "]),
        ("model", ["language"]),
        ("model=language", ["dim: int = required", "Width of the residual stream.", "periods:"]),
        ("train.steps", ["steps: int = 1000", "Optimizer steps in all."]),
        ("train.nonfinite", ["policy: abort | skip | rollback = abort"]),
        ("model.dim", ["model.dim (model=language)"]),
        ("controller", ["fixed"]),
        ("evals", ["mapping of evaluator kind", "perplexity"]),
    ],
)
def test_help_explains(topic: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", *([topic] if topic else [])]) == 0
    out = capsys.readouterr().out
    assert [line for line in lines if line not in out] == []


@pytest.mark.parametrize(
    ("topic", "complaint"),
    [
        ("modle", "Did you mean 'model'"),
        ("model=langauge", "Did you mean 'language'"),
        ("model.dmi", "Did you mean 'dim'"),
        ("train.steps.more", "no keys below"),
        ("nothing=x", "unknown 'nothing'"),
    ],
)
def test_help_names_the_nearest_topic(
    topic: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["help", topic]) == 2
    assert complaint in capsys.readouterr().err


def test_help_names_every_topic_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "modle"]) == 2
    known = capsys.readouterr().err.partition("Known: ")[2].strip(" .\n").split(", ")
    assert sorted(set(known)) == known


def test_audit_shows_what_a_run_was_made_with(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = trained.parent / "lr=0.1"  # as sweeps name directories
    named.symlink_to(trained)
    assert main(["audit", str(named), "--json"]) == 0
    of_run = capsys.readouterr().out
    assert main(["audit", "--config-name", "pilot_smoke", *SMALL, "--json"]) == 0
    assert capsys.readouterr().out == of_run
    assert main(["audit", str(trained), "model.dim=64"]) == 2
    assert "leave out model.dim=64" in capsys.readouterr().err
    assert main(["audit", str(trained / "nowhere")]) == 2
    assert "does not exist; give a run" in capsys.readouterr().err
