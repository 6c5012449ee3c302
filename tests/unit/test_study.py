"""What the studies share (benchmarks/study.py): which runs are kept, intervals, pages."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import structure
from nl.config.groups import ModelConfig
from nl.report.dots import Dot, Dots, dots_csv, draw_dots
from nl.report.figures import INK, SERIES, Figure, Line, draw, figure_csv
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


@pytest.fixture(scope="module", autouse=True)
def beside_each_other() -> Iterator[None]:
    """Benchmarks import each other by name, as scripts of one folder do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load("study")


@pytest.fixture(scope="module")
def comparison_rows(study: ModuleType) -> ModuleType:
    return load("comparison_rows")


KEYS = ("val/loss", "val/prose/loss", "val/code/loss")


def finish(home: Path, loss: float, *, state: str = "done", **more: Any) -> None:
    """The files of a run that ended; ``more`` goes into the last row of its metrics."""
    run = RunDir.create(home)
    run.config.write_text("{}")
    run.meta.write_text(json.dumps({"git": {"sha": "0123456789"}}))
    rows: list[dict[str, Any]] = [
        {"step": n, "tokens": 100_000 * n, "split": "train", "loss": loss + 1 / n, "grad_norm": 1.0}
        for n in (1, 2, 3)
    ]
    rows[-1] |= more
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    final = dict.fromkeys(KEYS, loss)
    run.summary.write_text(
        json.dumps({"final": final, "parameters": 5, "tokens": 300_000, "seconds": 1.0})
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
    assert study.student([0.0, 2.0] * 6)[1] == pytest.approx(2.201 * math.sqrt(12 / 11 / 12))


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
    assert (found.final["val/loss"], found.commit) == (1.25, "0123456")
    assert study.result(tmp_path, "b") is None
    x, y = study.curve(tmp_path, "a", "loss", x="tokens")
    assert (x, y[:2]) == ([100_000.0, 200_000.0, 300_000.0], [2.25, 1.75])


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
    high = Figure("f", "t", [Line("a", [1.0, 2.0], [101.0, 102.0])])
    assert ">0<" not in draw(high)
    assert ">0<" in draw(replace(high, from_zero=True))
    dots = Dots("d", "t", [Dot("better", -1.0, 0.5), Dot("open", 1.0)])
    assert dots_csv(dots).splitlines() == ["row,value,half width", "better,-1.0,0.5", "open,1.0,"]
    uneven = Dots("d", "t", [Dot("above", 1.0, span=(0.5, 2.0)), Dot("open", 1.0)])
    assert dots_csv(uneven).splitlines() == [
        "row,value,below,above",
        "above,1.0,0.5,2.0",
        "open,1.0,,",
    ]
    drawn = draw_dots(uneven)
    assert SERIES[1] in drawn
    assert SERIES[1] not in draw_dots(Dots("d", "t", [Dot("open", 1.0, span=(1.5, 0.1))]))
    svg = draw_dots(dots)
    assert "better" in svg
    assert svg == draw_dots(dots)


def test_a_limit_has_the_colour_of_text() -> None:
    x = [0.0, 1.0]
    plain, limit = (
        draw(Figure("f", "t", [Line("one", x, x, colour=1, ink=ink)])) for ink in (False, True)
    )
    assert SERIES[1] in plain
    assert SERIES[1] not in limit
    assert limit.count(INK) > plain.count(INK)


def some_runs(root: Path) -> None:
    """What is there of a comparison: runs, losses by position, dynamic evaluation."""
    losses = {"transformer": 4.0, "hope_attention": 4.1, "hope_attention-frozen": 4.2}
    losses |= {"hope_attention-rate-3": 4.05, "transformer-lr6e-3": 3.9}
    losses |= {"transformer-longer": 3.75}
    for label, loss in losses.items():
        for seed in range(2 if label in ("transformer", "hope_attention") else 1):
            wobble = 0.001 * seed * (label == "transformer")
            finish(root / f"{label}-s{seed}", loss + 0.1 * seed + wobble)
    for label, lift in (("transformer", 0.0), ("hope_attention", 0.25)):
        for seed in range(2):
            levels = [4.0 + lift * (position < 2) + seed for position in range(16)]
            found = {"val/prose": levels, "val/code": levels}
            (root / f"{label}-s{seed}.positions.json").write_text(json.dumps(found))
    (root / "transformer-s1.dynamic.json").write_text("[4.0, 3.9, 3.8, 3.7, 4.5]")
    (root / "transformer-s1.dynamic_head.json").write_text("[4.0, 3.9, 3.8, 3.6, 4.5]")
    (root / "hope_attention-s1.dynamic_head.json").write_text("[3.5, 3.4, 3.8, 3.7, 4.5]")


def test_page_of_a_partial_comparison(
    study: ModuleType,
    comparison_rows: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load("comparison_positions")
    comparison = load("comparison")
    some_runs(tmp_path)
    page = tmp_path / "page" / "comparison.md"
    typed = ["x", "--root", str(tmp_path), "--output", str(page), "--report-only"]
    monkeypatch.setattr(sys, "argv", typed)
    assert comparison.main() == 0
    text = page.read_text()
    # 0.1 above at seed 0, 0.099 at seed 1: mean 0.0995, half width 12.706 * 0.0005.
    assert "| hope_attention - transformer | 0.0995 +- 0.0064 |" in text
    assert "0 of 2, worse" in text
    assert "| hope_attention - hope_attention-frozen | -0.1000 |" in text
    assert "1 of 1, one seed" in text
    assert "| hope_attention | transformer | val/loss | 0.0995 +- 0.0064 |" in text
    assert "| hope_attention | `model.cms.rate=3` | -0.0500 |" in text
    assert "| transformer | - | - | 4.0000 | 3.9000 | 6e-3 |" in text
    assert "\nNot run: `gated_delta`, `titan_lmm`, " in text
    assert "| hope_attention | 2 of 3 | not run yet |" in text
    early = "| hope_attention - transformer | 2 | 0.2500 +- 0.0000 | 0.0000 +- 0.0000 |"
    assert early in text
    drawn = sorted(path.name for path in page.parent.glob("*.svg"))
    assert drawn == [
        "comparison_dynamic.svg",
        "comparison_frozen.svg",
        "comparison_gap.svg",
        "comparison_hope_attention.svg",
        "comparison_loss.svg",
        "comparison_positions.svg",
        "comparison_reference.svg",
    ]
    assert str(tmp_path) not in text
    assert "| transformer | 1 | 4.0000 | 3.9000 | 3.8000 | 3.7000 | 4.5000 |" in text
    # 4.1 + 0.1 of the block at seed 1, 3.7 of the transformer's best.
    told = "| hope_attention | SGD, all parameters | 0.1 | 0.5000 (0 of 1, one seed) | - |"
    assert told in text
    so_too = "0.6000 (0 of 1, one seed) | -0.2000 (1 of 1, one seed) |"
    assert f"| hope_attention | scaled steps, head alone | 0.001 | {so_too}" in text
    assert "| hope_attention - transformer-longer | 0.3500 | 0 of 1, one seed |" in text

    # The file of runs holds all of it: directories are not needed again.
    monkeypatch.setattr(sys, "argv", [*typed[:2], str(tmp_path / "gone"), *typed[3:]])
    study.result.cache_clear()
    assert comparison.main() == 0
    assert page.read_text() == text


def test_learning_while_read(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("comparison_positions")
    dynamic = load("comparison_dynamic")
    torch.manual_seed(0)
    config = {"kind": "language", "vocab_size": 13, "dim": 8, "layers": 1, "block": "transformer"}
    config |= {"tie_embeddings": True}
    model = structure(ModelConfig, config | {"attention": {"heads": 1}}).build().double()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(97).remainder(7)[None]
    inputs, targets = ids[:, :-1], ids[:, 1:]
    nll = model.nll(inputs, targets)[0].detach()
    # What was learned from one window is gone in the next, and no token is learned from before.
    read = [(inputs, 0), (inputs, 0.3), (inputs[:, : dynamic.EVERY], 0.3), (inputs, 0)]
    for which, count in (("all", 8), ("head", 1), ("body", 7)):
        model.load_state_dict(trained)
        parts = dynamic.learning(model, which)
        start = [parameter.detach().clone() for parameter in parts]
        told = model, parts, start
        losses = [dynamic.loss_of(*told, x, targets[:, : x.shape[1]], r) for x, r in read]
        assert len(parts) == count
        assert losses[0] == losses[3] == pytest.approx(float(nll.mean()))
        assert losses[1] < losses[0] - 0.05
        assert losses[2] == pytest.approx(float(nll[:, : dynamic.EVERY].mean()))
        # A step divided by one number is a smaller step.
        scales = [torch.full_like(one, 3.0) for one in parts]
        slower = dynamic.loss_of(*told, inputs, targets, 0.9, scales)
        assert slower == pytest.approx(losses[1])
    dynamic.measure(tmp_path, "gone-s0", None, "dynamic")
    assert capsys.readouterr().out.startswith("gone-s0: not measured; no finished run in ")


def test_page_of_stability_says_what_was_not_finite(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stability = load("stability")
    finish(tmp_path / "titan_lmm-c8", 4.0)
    finish(tmp_path / "titan_lmm-c16", 4.0, grad_norm=None)
    finish(tmp_path / "titan_lmm-c32", 4.0, state="failed")
    for kind, last in (("random", 3.0), ("constant", None)):
        norms = (1.0, 2.0, 2.5, last)
        rows = [
            {"position": 512 * (n + 1), "norm": norm, "largest": 1.0, "loss": 4.0}
            for n, norm in enumerate(norms)
        ]
        found = {"rows": rows, "not_fp32": []}
        (tmp_path / f"stream-titan_lmm-{kind}.json").write_text(json.dumps(found))
    page = tmp_path / "page" / "stability.md"
    typed = ["x", "--root", str(tmp_path), "--output", str(page), "--report-only"]
    monkeypatch.setattr(sys, "argv", [*typed, "--only", "titan_lmm"])
    assert stability.main() == 0
    lines = page.read_text().splitlines()
    ends = [line for line in lines if line.startswith("| titan_lmm |")]
    assert [line.split("|")[4].strip() for line in ends[:3]] == ["yes", "NO", "NO"]
    assert ends[3] == "| titan_lmm | 2,048 | yes | 1 | 2 | 3 | 1.500 | 1 | fp32 |"
    assert ends[4].startswith("| titan_lmm | 2,048 | NO |")
    assert (page.parent / "stability_random.svg").is_file()


def test_page_of_a_partial_recall_study(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall = load("recall")
    for seed, accuracy in enumerate((0.25, 0.75)):
        more = {"split": "val", "accuracy": accuracy}
        finish(tmp_path / f"gated_delta-p8-n400-s{seed}", 1.0, **more)
    page = tmp_path / "page" / "recall.md"
    typed = ["x", "--root", str(tmp_path), "--output", str(page), "--report-only", "--pairs", "8"]
    monkeypatch.setattr(sys, "argv", [*typed, "--labels", "gated_delta", "titan_lmm"])
    assert recall.main() == 0
    text = page.read_text()
    row = "| gated_delta | 5 | 2 of 5 | 0.500 +- 3.176 | 0.250, 0.750 | -, 3 |"
    assert row in text
    assert "titan_lmm |" not in text
    assert "## 8 pairs, 2000 steps" in text
    assert "No finished run." in text


def test_cells_of_several_jobs_are_composed_one_by_one(study: ModuleType) -> None:
    cells = [study.Cell(f"c{seed}", (f"seed={seed}", "model.dmi=3")) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        said = set(pool.map(study.refusal, cells))
    assert [line.split(".")[0] for line in said] == ["model: unknown 'dmi'"]
