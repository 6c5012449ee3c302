"""Scripts below scripts/eval that take several results or processes: comparisons, suite, ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.eval.scripted import ROOT, call


def test_compare_measures_both_on_the_same_samples(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both" / "c.html"
    early = run / "checkpoints" / "step_000002"
    flags = ["--inputs", early, run, "--names", "early", "late", "--suite", "perplexity"]
    flags += ["--set", "perplexity.splits=[test]", "perplexity.max_tokens=60", "--output", out]
    assert call(monkeypatch, "compare", *flags) == 0
    assert "warning" not in capsys.readouterr().out
    found = [
        json.loads((tmp_path / "both" / "c" / name / "perplexity.json").read_text())
        for name in ("early", "late")
    ]
    assert [record["step"] for record in found] == [2, 6]
    values = [
        next(r["value"] for r in record["rows"] if r["metric"] == "nats_per_token")
        for record in found
    ]
    (line,) = [
        line
        for line in out.with_suffix(".md").read_text().splitlines()
        if line.startswith("| test/prose | nats_per_token | off |")
    ]
    cells = [cell.strip() for cell in line.split("|")]
    assert float(cells[8].split()[0]) == pytest.approx(values[1] - values[0], abs=2e-3)
    assert cells[9] == "better"
    flags = ["--a-checkpoint", early, "--b-checkpoint", run, "--suite", "perplexty"]
    assert call(monkeypatch, "compare", *flags, "--output", out) == 2
    assert "Did you mean 'perplexity'" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_gives_what_one_process_gives(tmp_path: Path, run: Path) -> None:
    flags = [str(ROOT / "scripts/eval/zeroshot.py"), "--checkpoint", str(run)]
    flags += ["--max-samples", "5", "--batch-size", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        out = ["--output", str(tmp_path / f"{name}.json")]
        done = subprocess.run(
            [*command, *flags, *out], cwd=tmp_path, env=dict(os.environ), capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode().count("written: ") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for mine, other in zip(one["rows"], two["rows"], strict=True):
        same = {k: v for k, v in mine.items() if k not in ("seconds", "suite")}
        assert same == {k: v for k, v in other.items() if k not in ("seconds", "suite")}
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1]
    bad = subprocess.run(
        [*launch, flags[0], "--checkpoint", "nowhere"], cwd=tmp_path, capture_output=True
    )
    text = bad.stderr.decode()
    assert text.count("error: nowhere: does not exist") == 1
    assert "exitcode  : 2" in text


@pytest.mark.slow
def test_the_whole_suite_in_one_folder(run: Path, tmp_path: Path) -> None:
    small = {"HOPE_CHECKPOINT": str(run), "TITAN_CHECKPOINT": str(run), "PYTHON": sys.executable}
    small |= {"MAX_SAMPLES": "4", "NIAH_CONTEXTS": "300 320", "NIAH_SAMPLES": "1"}
    small |= {"PASSKEY_SAMPLES": "2", "PASSKEY_FILLER": "28", "PG19_SAMPLES": "2"}
    small |= {"PG19_TOKENS": "128", "CONT_BATCH": "2", "CONT_MAX_BATCHES": "1"}
    script = ["bash", str(ROOT / "scripts/eval/run_pilot_suite.sh"), "out"]
    done = subprocess.run(
        script, cwd=tmp_path, env=dict(os.environ) | small, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = ["continual", "niah", "passkey", "perplexity", "pg19_perplexity", "zeroshot"]
    for model in ("hope", "titan"):
        found = sorted(path.stem for path in (tmp_path / "out" / model).glob("*.json"))
        assert found == names
        assert (tmp_path / "out" / model / "niah.png").is_file()
        assert "| cloze_code.acc.off |" in (tmp_path / "out" / model / "summary.md").read_text()
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "verdict" in page
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    missing = small | {"HOPE_CHECKPOINT": ""}
    done = subprocess.run(
        script, cwd=tmp_path, env=dict(os.environ) | missing, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: HOPE_CHECKPOINT: not set" in done.stderr
