"""The scripts below scripts/eval end to end on a tiny run: outputs, records, refusals."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from nl.assembly import build_objective
from nl.cli_measure import guarded
from nl.config import structure
from tests.unit.eval.scripted import ROOT, call, text

SEGMENTS = str(ROOT / "configs" / "data" / "continual_segments_sample.yaml")


def test_perplexity(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.json"
    flags = ("--checkpoint", run, "--output", out, "--max-tokens", 40, "--splits", "test")
    assert call(monkeypatch, "perplexity", *flags) == 0
    record = json.loads(out.read_text())
    assert record["step"] == 6
    assert record["checkpoint"] == str(run)
    assert record["tokenizer"]["vocab_size"] == 259
    assert "torch" in record["provenance"]["versions"]
    assert len(record["config_hash"]) == 12
    assert "test/prose" in capsys.readouterr().out
    nats = {r["task"]: r for r in record["rows"] if r["metric"] == "nats_per_token"}
    assert nats["test/all"]["n"] == 6
    bits = {r["task"]: r["value"] for r in record["rows"] if r["metric"] == "bits_per_byte"}
    ratio = nats["test/code"]["value"] / bits["test/code"]
    assert ratio == pytest.approx(0.6931, abs=1e-3)  # a byte tokenizer


def test_niah_takes_lengths_both_ways(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "n.json"
    flags = ["--checkpoint", run / "checkpoints" / "step_000004", "--output", out]
    flags += ["--context-lengths", 300, 320, "--context-lengths", 340, "--samples-per-length", 1]
    flags += ["--depths", 0.5, "--memorize", "off", "--candidates", 3, "--haystack", "text"]
    assert call(monkeypatch, "niah", *flags) == 0
    tasks = {row["task"] for row in json.loads(out.read_text())["rows"]}
    assert tasks == {"text/300/0.5", "text/320/0.5", "text/340/0.5"}
    assert json.loads(out.read_text())["step"] == 4
    assert (tmp_path / "n" / "needle_text.json").is_file()


def test_zeroshot(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "z.json"
    flags = ["--checkpoint", run / "checkpoints" / "step_000006.safetensors", "--output", out]
    flags += ["--max-samples", 4, "--tokenizer-path", "bytes", "--tasks", "cloze,piqa"]
    flags += ["--data-dir", tmp_path, "--memorize", "context"]
    assert call(monkeypatch, "zeroshot", *flags) == 0
    rows = json.loads(out.read_text())["rows"]
    values = {(row["task"], row["metric"]): row for row in rows}
    assert values["cloze_code_choice", "acc"]["chance"] == 0.25
    assert values["cloze_prose", "perplexity"]["n"] == 4
    assert values["piqa", "acc"]["value"] is None


def test_continual_finds_the_phases_of_a_run(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nl.assembly import load_run

    out = tmp_path / "c.json"
    flags = ["--segments-yaml", SEGMENTS, "--output", out, "--max-batches", 1, "--max-tokens", 64]
    assert call(monkeypatch, "continual", "--checkpoints", run, *flags) == 0
    assert "prose" in capsys.readouterr().out
    record = json.loads(out.read_text())
    found = record["memorize"]["off"]
    assert found["phases"] == ["prose", "code", "prose"]
    assert found["rows"] == ["init", "1:prose", "2:code", "3:prose"]
    losses = torch.tensor(found["nats_per_token"])
    assert losses.shape == (4, 2)
    assert bool((losses[1] < losses[0]).all())
    ends = [run / "checkpoints" / f"step_{step:06d}" for step in (2, 4, 6)]
    assert call(monkeypatch, "continual", "--checkpoints", *ends, "--no-initial", *flags) == 0
    again = json.loads(out.read_text())["memorize"]["off"]
    assert again["nats_per_token"][1:] == found["nats_per_token"][1:]
    assert again["nats_per_token"][0] == [None, None]
    config, _ = load_run(run)
    first, second = (build_objective(config).model for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("niah", ["--checkpoint", "nowhere"], "nowhere: does not exist"),
        ("niah", ["--checkpoint", "RUN", "--context-lengths", "20"], "lengths: 20"),
        ("niah", ["--checkpoint", "RUN", "--output", "x.txt"], "must end in .json"),
        ("niah", ["--checkpoint", "RUN", "--data", "nowhere"], "nowhere/manifest.json"),
        (
            "niah",
            ["--checkpoint", "RUN", "--config", "pilot_smoke"],
            "--config pilot_smoke: model.",
        ),
        ("niah", ["--checkpoint", "RUN", "--depths", "2"], "depths"),
        ("niah", ["--checkpoint", "RUN", "--batch-size", "0"], "--batch-size: 0; must be"),
        (
            "perplexity",
            ["--checkpoint", "RUN", "--memorize", "off", "--memorize-steps", "3"],
            "--memorize-steps: with --memorize off nothing is written",
        ),
        ("perplexity", ["--checkpoint", "RUN", "--splits", "tset"], "unknown 'tset'"),
        ("zeroshot", ["--checkpoint", "RUN", "--tasks", "piqua"], "Did you mean 'piqa'"),
        ("zeroshot", ["--checkpoint", "RUN", "--tasks", "piqa", "--data-dir", "no"], "no/piqa"),
        ("zeroshot", ["--checkpoint", "RUN", "--tokenizer-path", "no.model"], "no.model"),
        ("continual", ["--checkpoints", "RUN", "--segments-yaml", "no.yaml"], "no.yaml"),
        (
            "continual",
            ["--checkpoints", "RUN", "RUN", "--segments-yaml", SEGMENTS],
            "2 for 3 phases",
        ),
    ],
)
def test_refusals_exit_with_2_and_write_nothing(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(run) if flag == "RUN" else flag for flag in flags]
    assert call(monkeypatch, script, *arguments) == 2
    errors = capsys.readouterr().err
    assert f"error: {words}" in errors or words in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.json"))


def test_a_stopped_script_says_so_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: signal.raise_signal(signal.SIGTERM)) == 143
    # A shell starts what it puts into the background with SIGINT ignored.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert guarded(lambda: signal.raise_signal(signal.SIGINT)) == 130
    finally:
        signal.signal(signal.SIGINT, ours)
    assert signal.getsignal(signal.SIGTERM) is before
    said = "stopped before its result was written; the same command begins again\n"
    assert capsys.readouterr().err == 2 * said


def test_flags_say_which_memories_write(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "n.json"
    needle = ["--checkpoint", run, "--output", out, "--context-lengths", 300, "--depths", 0.5]
    needle += ["--samples-per-length", 1, "--candidates", 3, "--memorize", "context"]
    more = ["--memorize-layers", -1, "--memorize-steps", 2, "--memorize-carry"]
    assert call(monkeypatch, "niah", *needle, *more) == 0
    rows = json.loads(out.read_text())["rows"]
    note = next(row["note"] for row in rows if row["metric"] == "choice_accuracy")
    assert note.startswith("State carried on; read 2 times; layers -1; 95 % ")
    assert any(row["metric"] == "memory/loss_after" for row in rows)
    record = tmp_path / "c.json"
    forgetting = ["--checkpoint", run, "--segments-yaml", SEGMENTS, "--output", record]
    forgetting += ["--max-batches", 1, "--batch-size", 1, "--max-tokens", 40]
    forgetting += ["--memorize", "context", "--memorize-paths"]
    assert call(monkeypatch, "continual", *forgetting, "nothing") == 2
    assert "paths: 'nothing'; this model's memories are" in capsys.readouterr().err
    assert not record.exists()


def test_long_documents_from_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text(text("prose", number)[: 300 + 60 * number])
    out = tmp_path / "pg.json"
    flags = ["--checkpoint", run, "--output", out, "--source", books, "--context-tokens", 400]
    assert call(monkeypatch, "pg19_perplexity", *flags) == 0
    rows = {(r["task"], r["metric"], r["memorize"]): r for r in json.loads(out.read_text())["rows"]}
    assert rows["test/texts/256-400", "nats_per_token", "context"]["n"] == 3
    assert rows["test/texts", "bits_per_byte", "off"]["note"].startswith("1060 tokens")
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "test/texts,context,256,400," in (tmp_path / "pg" / "positions.csv").read_text()
    assert call(monkeypatch, "pg19_perplexity", "--checkpoint", run, "--output", out) == 2
    error = capsys.readouterr().err
    assert "cannot read emozilla/pg19" in error
    assert "give --source <file or directory of books>" in error
    assert call(monkeypatch, "pg19_perplexity", *flags[:4], "--source", tmp_path / "no/x") == 2
    assert "no/x; no such file or directory" in capsys.readouterr().err


def test_flags_of_the_earlier_scripts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.json"
    common = ["--checkpoint", run, "--output", out, "--max-tokens", 40, "--splits", "test"]
    flags = ["--memorize", "--memorize-use-correct-answer", "--memorize-no-reset"]
    flags += ["--memorize-surprise-threshold", 0.5, "--memorize-paths", "all"]
    flags += ["--memorize-layers", "last", "--eval-state-mode", "reset_per_sample"]
    assert call(monkeypatch, "perplexity", *common, *flags) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["memorize"] for row in rows} == {"off", "oracle"}
    note = next(row["note"] for row in rows if row["memorize"] == "oracle")
    assert "State carried on; layers -1; surprise 0.5" in note
    for flags, words in (
        (["--eval-state-mode", "carry"], "give --memorize-carry"),
        (["--memorize-paths", "titan,cms_fast"], "paths: 'titan'; this model's memories are"),
        (["--memorize-layers", "first"], "--memorize-layers: 'first'; numbers of blocks"),
    ):
        assert call(monkeypatch, "perplexity", *common, *flags) == 2
        assert words in capsys.readouterr().err


def test_samples_add_up_to_the_rows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means, and sums over sums, of samples.jsonl are the rows' values, for every evaluator."""
    made = {
        "perplexity": ["--max-tokens", 40],
        "niah": ["--context-lengths", 300, "--samples-per-length", 2, "--candidates", 3],
        "zeroshot": ["--max-samples", 4],
    }
    for script, flags in made.items():
        out = tmp_path / f"{script}.json"
        assert call(monkeypatch, script, "--checkpoint", run, "--output", out, *flags) == 0
        record = json.loads(out.read_text())
        lines = [
            json.loads(line) for line in (tmp_path / record["samples"]).read_text().splitlines()
        ]
        found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        for line in lines:
            for metric, value in line["values"].items():
                pair = value if isinstance(value, list) else (value, 1)
                found.setdefault((line["task"], metric, line["memorize"]), []).append(pair)
        rows = {(r["task"], r["metric"], r["memorize"]): r for r in record["rows"]}
        assert found.keys() <= rows.keys()
        for key, pairs in found.items():
            assert rows[key]["n"] == len(pairs)
            mean = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
            assert rows[key]["value"] == pytest.approx(mean, rel=1e-6), key
        shared = {key[0] for key in rows if not key[1].startswith("memory/")}
        assert shared - {key[0] for key in found} <= {"val/all", "test/all"}


def test_list_tasks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "zeroshot", "--list-tasks") == 0
    assert "hellaswag: Rowan/hellaswag" in capsys.readouterr().out


def test_the_run_itself_can_evaluate(data: Path, run: Path) -> None:
    """Evaluators are parts: a run's configuration names them."""
    from nl.config.groups import EvaluatorConfig

    for kind in ("perplexity", "needle", "zeroshot"):
        part = structure(EvaluatorConfig, {"kind": kind, "memorize": ["off"]}, f"evals.{kind}")
        assert part.kind == kind
