"""What the studies share (benchmarks/study.py): which runs are kept, intervals, pages."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.report.dots import Dot, Dots, dots_csv, draw_dots
from nl.report.figures import Figure, Line, draw, figure_csv
from nl.run import RunDir

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load("study")


@pytest.fixture(scope="module")
def comparison_rows(study: ModuleType) -> ModuleType:
    return load("comparison_rows")


def finish(home: Path, loss: float, *, state: str = "done") -> None:
    """The files of a run that ended."""
    run = RunDir.create(home)
    run.config.write_text("{}")
    run.meta.write_text(json.dumps({"git": {"sha": "0123456789"}}))
    row = {"step": 1, "tokens": 8, "split": "train", "loss": loss}
    run.metrics.write_text(json.dumps(row) + "\n")
    run.summary.write_text(
        json.dumps({"final": {"val/loss": loss}, "parameters": 5, "tokens": 8, "seconds": 1.0})
    )
    run.write_status(state, 1, 1)
    run.release()


def test_student_interval(study: ModuleType) -> None:
    mean, half = study.student([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert study.interval([1.0, 2.0, 3.0], 2) == "2.00 +- 2.48"
    assert study.interval([1.5], 2) == "1.50"
    assert study.interval([]) == "-"
    with pytest.raises(SystemExit, match="seeds: 11"):
        study.student([0.0] * 11)


def test_standing_of_a_cell(study: ModuleType, tmp_path: Path) -> None:
    def at(name: str) -> str:
        return str(study.standing(tmp_path, study.Cell(name, ())))

    finish(tmp_path / "a", 1.0)
    finish(tmp_path / "b", 1.0, state="failed")
    finish(tmp_path / "c", 1.0, state="running")
    held = RunDir(tmp_path / "c")
    assert (at("a"), at("b"), at("c"), at("d")) == ("done", "failed", "stopped", "missing")
    held.lock()
    assert at("c") == "running"
    held.release()


def test_finished_and_refused_cells_are_not_trained(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "a", 1.0)
    cells = [study.Cell("a", ()), study.Cell("b", ("model.cms.no_such_key=1",))]
    study.run_cells(cells, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("b: skipped, model.cms: unknown 'no_such_key'")
    assert not (tmp_path / "b").exists()


def test_result_and_curve(study: ModuleType, tmp_path: Path) -> None:
    finish(tmp_path / "a", 1.25)
    found = study.result(tmp_path, "a")
    assert (found.final, found.commit) == ({"val/loss": 1.25}, "0123456")
    assert study.result(tmp_path, "b") is None
    assert study.curve(tmp_path, "a", "loss", x="tokens") == ([8.0], [1.25])


def test_command_on_a_page_names_no_place(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["x", "--root", "/somewhere", "--seeds", "2", "--jobs=2", "--only", "a", "b"]
    monkeypatch.setattr(sys, "argv", typed)
    assert study.call("page") == "python benchmarks/page.py --seeds 2 --only a b"


def test_rows_have_equal_parameters_and_balanced_order(
    study: ModuleType, comparison_rows: ModuleType
) -> None:
    rows = comparison_rows.rows()
    sizes = {}
    for block in comparison_rows.BLOCKS:
        sizes[block] = study.parameters(comparison_rows.overrides(rows[block]))
    goal = sizes["transformer"]
    assert {b: n for b, n in sizes.items() if abs(n - goal) > 0.01 * goal} == {}
    chosen = [rows[b] for b in ("transformer", "hope_attention", "hope_attention-frozen")]
    names = [cell.name for cell in comparison_rows.cells(chosen, 2)]
    assert names == [
        "transformer-s0",
        "hope_attention-s0",
        "transformer-s1",
        "hope_attention-s1",
        "hope_attention-frozen-s0",
        "hope_attention-frozen-s1",
    ]


def test_bands_and_dots_are_in_the_numbers() -> None:
    line = Line("a", [1.0, 2.0], [0.5, 0.25], low=[0.25, 0.0], high=[0.75, 0.5])
    figure = Figure("f", "t", [line], log="x")
    assert figure_csv(figure).splitlines()[3:] == [
        "a (low),1,0.25",
        "a (low),2,0.0",
        "a (high),1,0.75",
        "a (high),2,0.5",
    ]
    plain = Figure("f", "t", [Line("a", [1.0, 2.0], [0.5, 0.25])], log="x")
    assert len(draw(figure)) > len(draw(plain))
    dots = Dots("d", "t", [Dot("better", -1.0, 0.5), Dot("open", 1.0)])
    assert dots_csv(dots).splitlines() == ["row,value,half width", "better,-1.0,0.5", "open,1.0,"]
    svg = draw_dots(dots)
    assert "better" in svg
    assert svg == draw_dots(dots)
