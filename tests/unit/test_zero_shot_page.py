"""benchmarks/zero_shot.py writes its page from result files alone, numbers as they are there."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def results(folder: Path, gain: float) -> None:
    """The three result files of one model; writing adds ``gain`` to every share."""
    folder.mkdir(parents=True)
    found: dict[str, tuple[str, str, float]] = {
        "zeroshot": ("cloze_prose", "acc", 0.25),
        "niah": ("noise/256/0.5", "choice_accuracy", 0.125),
        "perplexity": ("test/prose", "nats_per_token", 8.0),
    }
    for suite, (task, metric, chance) in found.items():
        rows: list[dict[str, Any]] = []
        lines = []
        for mode in ("off", "context"):
            right = [float(n < 4 + 8 * gain * (mode == "context")) for n in range(20)]
            values = [3 - x for x in right] if suite == "perplexity" else right
            row = {"suite": suite, "task": task, "metric": metric, "memorize": mode, "n": 20}
            rows.append(row | {"value": sum(values) / 20, "stderr": 0.09, "chance": chance})
            for n, value in enumerate(values):
                line = {"task": task, "memorize": mode, "sample": str(n)}
                lines.append(json.dumps(line | {"values": {metric: value}}))
        facts = {"suite": suite, "step": 9, "seed": 0, "config_hash": "abc", "rows": rows}
        facts |= {"tokenizer": {"sha256": "f" * 64}, "samples": f"{suite}/samples.jsonl"}
        task_facts = {task: {"samples": 20, "prompts_sha256": "e" * 64}}
        details = {"lm_eval": "0", "begin": "text", "max_length": 2048, "tasks": task_facts}
        (folder / f"{suite}.json").write_text(json.dumps(facts | {"details": details}))
        (folder / suite).mkdir()
        (folder / suite / "samples.jsonl").write_text("\n".join(lines))


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    results(tmp_path / "root" / "hope-s0", 1.0)
    results(tmp_path / "root" / "transformer-s0", 0.0)
    page = tmp_path / "page.md"
    script = [sys.executable, str(ROOT / "benchmarks" / "zero_shot.py"), "--report-only"]
    command = [*script, "--root", str(tmp_path / "root"), "--output", str(page)]
    subprocess.run(command, check=True, capture_output=True)
    text = page.read_text()
    assert "| transformer-s0 | hope-s0 |" in text
    assert "| cloze_prose | acc | context | 0.250 | 20 | 0.200 [0.0807, 0.416] | 0.600 [" in text
    assert "- hope-s0, writing against not writing: better in 1 of 1 rows." in text
    assert (
        "- transformer-s0, writing against not writing: no sample differs in 1 of 1 rows." in text
    )
    assert "| cloze_prose | acc | hope-s0 | +0.4 [+0.165, +0.635] | 20 | better |" in text
    assert "| test/prose | nats_per_token | hope-s0 | -0.4 [" in text
    table = list(csv.DictReader(page.with_suffix(".csv").read_text().splitlines()))
    assert len(table) == 12
    assert {row["model"] for row in table} == {"transformer-s0", "hope-s0"}
