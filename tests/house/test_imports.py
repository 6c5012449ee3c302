"""What starts fast stays fast: no torch (or other heavy package) behind a light import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIGHT = ("nl", "nl.config", "nl.run", "nl.report", "nl.cli")
HEAVY = ("torch", "hydra", "matplotlib", "jinja2", "lm_eval", "datasets", "wandb", "sentencepiece")
SLOW = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy")
"""Seconds at the start of every command: loaded where something is compiled, trained or sharded."""
PROBE = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    loaded = [heavy for heavy in sys.argv[2].split(",") if heavy in sys.modules]
    if loaded:
        sys.exit(f"{name} imports {', '.join(loaded)}")
"""


def heavy_imports(
    names: tuple[str, ...], path: str | None = None, heavy: tuple[str, ...] = HEAVY
) -> str:
    """What the first offender among ``names`` imports; empty if none does."""
    code = PROBE if path is None else f"import sys; sys.path.insert(0, {path!r})\n{PROBE}"
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(names), ",".join(heavy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.stderr.strip()


def test_light_imports_stay_light() -> None:
    assert heavy_imports(LIGHT) == ""


def test_launchers_start_without_what_only_training_needs() -> None:
    assert heavy_imports(("nl.assembly",), heavy=SLOW) == ""


def test_import_check_finds_a_planted_violation(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("")
    (tmp_path / "planted.py").write_text("import wandb\n")
    assert heavy_imports(("planted",), str(tmp_path)) == "planted imports wandb"
