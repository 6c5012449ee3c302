"""What two equal runs have in common, bit by bit; shared by the resume tests and the campaign."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CLOCK = ("time", "perf/")


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without clock times; every line must parse."""
    found = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in found]


def fingerprint(run: Path, step: int) -> dict[str, Any]:
    """Digests of parameters, moments, State with RNG streams; counters and stream cursor."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    names = ("model.safetensors", "optim.safetensors", "optim.json", "state.safetensors")
    found: dict[str, Any] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names
    }
    trainer = json.loads((folder / "trainer.json").read_text())
    trainer.pop("seconds")
    summary = json.loads((run / "summary.json").read_text())
    summary.pop("seconds")
    return found | {"trainer": trainer, "summary": summary, "rows": rows(run)}
