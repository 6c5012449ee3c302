"""The notebook: both of its forms are the same, and every cell of it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.data.conftest import build_tiny

SCRIPT, BOOK = "notebooks/tg_smn.py", "notebooks/tg_smn.ipynb"
PICTURES = """
    anytime expert_use experts forgetting knob_experts_k knob_replay knob_reward knob_router_noise
    knob_router_temperature losses matrix scaling_avg_forgetting_ppl scaling_final_test_ppl
    signal_eta signal_eta_above_1 signal_fisher_rao tasks trade_off
"""


def test_both_forms_hold_the_same_cells(repo: Path) -> None:
    """``jupytext --to ipynb notebooks/tg_smn.py`` writes the second."""
    jupytext = pytest.importorskip("jupytext")
    ours = jupytext.reads((repo / SCRIPT).read_text(), fmt="py:percent")
    book = json.loads((repo / BOOK).read_text())
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert cells == [(cell.cell_type, cell.source) for cell in ours.cells]
    assert book["metadata"]["kernelspec"]["language"] == "python"
    assert not any(cell.get("outputs") for cell in book["cells"]), "kept without outputs"


@pytest.mark.slow
def test_every_cell_runs(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    sizes = {
        "data": str(build_tiny(tmp_path / "data")),
        "out": str(tmp_path / "out"),
        "tasks": 3,
        "steps": 8,
        "dim": 16,
        "layers": 1,
        "experts": 8,
        "seeds": 1,
        "grid": {
            "stream.steps": 4,
            "stream.seq_len": 16,
            "model": {"dim": 16, "layers": 1},
            "train": {"steps": 16, "validate_every": 0},
            "checkpoint": {"every": 4, "keep": 0, "export": False},
        },
    }
    monkeypatch.setenv("NL_NOTEBOOK", yaml.safe_dump(sizes))
    monkeypatch.chdir(repo / "notebooks")
    book = nbformat.read(repo / BOOK, as_version=4)
    client = nbclient.NotebookClient(book, timeout=500, kernel_name="python3")
    client.execute()
    assert {path.stem for path in (tmp_path / "out/figures").glob("*.png")} == set(PICTURES.split())
    for path in (tmp_path / "out/figures").glob("*.csv"):
        assert len(path.read_text().splitlines()) > 1, path
    shown = [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "display_data"]
    assert len([o for o in shown if "image/png" in o.data]) == len(PICTURES.split())
