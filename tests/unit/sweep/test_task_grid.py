"""A grid over task streams, and the earlier system's files as views of its runs."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nl
from nl.assembly import launch
from nl.cli import main
from nl.config import ConfigError
from nl.config.hydra import compose
from nl.report import task_figures as figures
from nl.report.frames import read_run
from nl.report.legacy_grid import write_grid_view, write_run_view
from nl.sweep.make import JobMaker
from nl.sweep.spec import expand, read_spec
from tests.unit.data.conftest import build_tiny
from tests.unit.sweep.task_grid import STEPS, TASKS, mapped, write_grid

COLUMNS = "step,task,loss,ema_loss,delta_t,delta_rho_L,kl,sqrt_2kl,eta,reward,replay_ratio,"
COLUMNS += "used_replay,k,router_temp,router_noise"
RESULTS = "env,variant,ablation,n_experts,seed,status,exp_name,avg_final_task_ppl,"
RESULTS += "avg_forgetting_ppl,final_val_ppl,final_test_ppl,params"
CONFIG = "exp_name variant env model_cfg data_cfg train_cfg fixed_ctrl_cfg learned_ctrl_cfg params "
CONFIG += "device learned_ablations"
PROGRESS = "total done skipped failed elapsed_sec current fallback_jsonl_path "
PROGRESS += "fallback_progress_path"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("grid_data"))


@pytest.fixture(scope="module")
def grid(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of three runs with its views, by the commands of the system's page.

    The second call of the sweep skips what is done; the last command is for one run.
    """
    home = tmp_path_factory.mktemp("grid")
    file = write_grid(home / "grid.yaml", data, environments=1)
    run = "runs/tgsmn_grid/perm_unique_10_learned_none_e256/seed_0"
    named = {
        "configs/sweep/tgsmn_grid.yaml": str(file),
        "runs/tgsmn_grid": str(home / "out"),
        run: str(home / "out/perm_learned_none_e4/seed_0"),
    }
    sweep, report, one = ([named.get(w, w) for w in words] for words in mapped("nl"))
    assert (sweep[0], report[0], one[0]) == ("sweep", "report", "report")
    for words in ([*sweep, "--backend", "warm"], sweep, report, one):
        assert main(words) == 0, words
    return home / "out"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_whole_has_the_earlier_columns(grid: Path) -> None:
    rows = table(grid / "legacy/grid_results.csv")
    assert [line["attempts"] for line in records(grid / "results.jsonl")] == [1, 1, 1]
    assert [r["exp_name"] for r in rows] == [
        "perm/tg_smn_learned/none/experts4/seed0",
        "perm/tg_smn_learned/fix_k2/experts4/seed0",
        "perm/dense_baseline/none/experts4/seed0",
    ]
    assert (grid / "legacy/grid_results.csv").read_text().startswith(RESULTS)
    assert {r["status"] for r in rows} == {"ok"}
    lines = records(grid / "legacy/grid_results.jsonl")
    for row, line in zip(rows, lines, strict=True):
        assert float(row["final_test_ppl"]) == line["final_test_ppl"] > 1
        assert line["avg_forgetting_ppl"] >= 0
        assert line["final_val_ppl"] is None
        assert (grid / line["run_dir"] / "config.yaml").is_file()
    progress = json.loads((grid / "legacy/grid_progress.json").read_text())
    assert list(progress) == PROGRESS.split()
    assert (progress["total"], progress["done"], progress["failed"]) == (3, 3, 0)
    assert progress["current"] is None
    assert progress["elapsed_sec"] > 0


def test_files_of_a_run_say_what_the_run_wrote(grid: Path) -> None:
    run = grid / "perm_learned_none_e4/seed_0"
    view = grid / "legacy/perm/tg_smn_learned/none/experts4/seed0"
    config = json.loads((view / "config.json").read_text())
    assert list(config)[:11] == CONFIG.split()
    assert config["learned_ctrl_cfg"]["k_max"] == 3
    assert config["fixed_ctrl_cfg"] is None
    assert config["model_cfg"]["n_experts"] == 4
    assert config["config"]["stream"]["tasks"] == TASKS

    assert (view / "metrics.csv").read_text().startswith(COLUMNS + "\n")
    logged = [row for row in records(run / "metrics.jsonl") if row["split"] == "train"]
    steps = table(view / "metrics.csv")
    assert [int(s["task"]) for s in steps] == [i * TASKS // STEPS for i in range(STEPS)]
    for step, row in zip(steps, logged, strict=True):
        assert int(step["step"]) == row["step"]
        assert float(step["loss"]) == row.get("nats", row["loss"])
        assert step["eta"] == str(row.get("signal/eta", ""))
        assert step["reward"] == str(row.get("control/reward", ""))
        assert int(step["used_replay"]) == int(row["stream/replayed"] > 0)
    assert {s["used_replay"] for s in steps} == {"0", "1"}
    assert sum(s["reward"] != "" for s in steps) == STEPS - 4

    page = json.loads((run / "artifacts/evals/tasks_val.json").read_text())["details"]["context"]
    rows = table(view / "eval.csv")
    pairs = [(int(r["task_trained"]), int(r["task_eval"])) for r in rows]
    assert pairs == [(i, j) for i in range(TASKS) for j in range(i + 1)]
    for (i, j), row in zip(pairs, rows, strict=True):
        assert float(row["ppl"]) == pytest.approx(math.exp(page["nats_per_token"][i + 1][j]))
    summary = json.loads((view / "summary.json").read_text())
    ppl = {pair: float(row["ppl"]) for pair, row in zip(pairs, rows, strict=True)}
    last = [ppl[TASKS - 1, j] for j in range(TASKS)]
    least = [min(ppl[i, j] for i in range(j, TASKS)) for j in range(TASKS)]
    assert summary["avg_final_task_ppl"] == pytest.approx(sum(last) / TASKS)
    forgotten = sum(a - b for a, b in zip(last, least, strict=True)) / TASKS
    assert summary["avg_forgetting_ppl"] == pytest.approx(forgotten)
    assert summary["forgetting"] == page["metrics"]["forgetting"]


def test_pictures_show_what_the_run_wrote(grid: Path, tmp_path: Path) -> None:
    run = read_run(grid / "perm_learned_none_e4/seed_0")
    page = run.artifacts["evals/tasks.json"]["details"]
    for use in page["experts"].values():
        assert [sum(one) for one in use] == [4 * 16], "4 windows of 16 tokens, k=1 as configured"
    assert list(page["experts"]) == page["context"]["segments"]
    anytime, forgotten = figures.forgetting_curves(run)
    assert forgotten.lines[0].y[-1] == pytest.approx(page["context"]["metrics"]["forgetting"])
    assert anytime.lines[0].y[-1] == pytest.approx(page["context"]["metrics"]["average_loss"])
    assert figures.boundaries(run) == (6.0, 12.0)
    knobs = {figure.name: figure.lines[0] for figure in figures.knob_curves(run)}
    assert set(knobs) == {"knob_experts_k", "knob_replay", "knob_reward"}
    assert set(knobs["knob_experts_k"].y) <= {1.0, 2.0, 3.0}
    maps = figures.expert_maps(run).maps
    assert [sum(row) for one in maps for row in one.values] == pytest.approx([1.0] * TASKS)
    picture = figures.save(figures.matrix_map(run), tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(picture.with_suffix(".csv").read_text().splitlines()) == 1 + (TASKS + 1) * TASKS

    rows = figures.read_grid(grid / "legacy")
    curve = figures.scaling(rows, "perm", "final_test_ppl")
    names = ["tg_smn_learned", "tg_smn_learned fix_k2", "dense_baseline"]
    assert [(line.name, line.x) for line in curve.lines] == [(name, [4.0]) for name in names]
    assert len(figures.trade_off(rows, "perm").lines) == 3
    with pytest.raises(ConfigError, match="no result in environment 'wt2'; there is perm"):
        figures.scaling(rows, "wt2", "final_test_ppl")
    with pytest.raises(ConfigError, match="its model has none"):
        figures.expert_maps(read_run(grid / "perm_dense_none_e4/seed_0"))


def test_many_experts_share_columns() -> None:
    names, values = figures.binned([[0.25, 0.25, 0.5, *[0.0] * 13]])
    assert names == ["0-1", "2-3", "4-5", "6-7", "8-9", "10-11", "12-13", "14-15"]
    assert values == [[0.5, 0.5, *[0.0] * 6]]


def test_checkpoints_are_links_that_load(grid: Path) -> None:
    run = grid / "perm_learned_none_e4/seed_0"
    view = grid / "legacy/perm/tg_smn_learned/none/experts4/seed0"
    links = sorted(view.glob("ckpt_task*.safetensors"))
    assert [link.name for link in links] == [f"ckpt_task{i}.safetensors" for i in range(TASKS)]
    for i, link in enumerate(links):
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        ours = nl.load_model(run / f"checkpoints/step_{(i + 1) * STEPS // TASKS:06d}")
        for name, value in nl.load_model(link).state_dict().items():
            assert torch.equal(value, ours.state_dict()[name]), name


def test_the_dense_rows_are_those_of_no_controller(grid: Path) -> None:
    view = grid / "legacy/perm/dense_baseline/none/experts4/seed0"
    steps = table(view / "metrics.csv")
    assert {(s["k"], s["replay_ratio"], s["router_temp"], s["router_noise"]) for s in steps} == {
        ("-1", "0.0", "1.0", "0.0")
    }
    assert {s["reward"] for s in steps} == {""}
    config = json.loads((view / "config.json").read_text())
    assert (config["fixed_ctrl_cfg"], config["learned_ctrl_cfg"]) == (None, None)


def test_one_run_alone(grid: Path, data: Path, tmp_path: Path) -> None:
    written = write_run_view(grid / "perm_dense_none_e4/seed_0", tmp_path)
    assert len(written) == 4 + TASKS
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["exp_name"] == "pilot_smoke/dense_baseline/none/experts/seed0"
    assert found["final_test_ppl"] > 1


def test_views_of_runs_that_are_gone_are_removed(grid: Path, tmp_path: Path) -> None:
    folder, rows = tmp_path / "legacy", records(grid / "results.jsonl")
    write_grid_view([grid], grid, rows, folder)
    mine = folder / "perm/dense_baseline/none/experts4/seed0/notes.txt"
    mine.write_text("mine")
    write_grid_view([grid], grid, rows[:1], folder)
    left = [p.relative_to(folder).parts[1] for p in folder.rglob("config.json")]
    assert left == ["tg_smn_learned"]
    assert [p.name for p in mine.parent.iterdir()] == ["notes.txt"]
    assert len(table(folder / "grid_results.csv")) == 1


def test_what_failed_and_what_runs(grid: Path, tmp_path: Path) -> None:
    """A failed run is a line with its error; one that runs is the current one and no line."""
    rows = records(grid / "results.jsonl")
    rows[0] |= {"status": "failed", "error": {"type": "RuntimeError", "message": "no"}}
    rows[1] |= {"status": "running"}
    home = tmp_path / "sweep"
    home.mkdir()
    facts = {"updated": time.time(), "running": {rows[1]["run_dir"]: 0.5}, "done_before": 1}
    (home / "progress.json").write_text(json.dumps(facts | {"elapsed_seconds": 2.5}))
    write_grid_view([home], grid, rows, tmp_path / "legacy")
    first, second = table(tmp_path / "legacy/grid_results.csv")
    assert (first["status"], first["error_type"], first["error_message"]) == (
        "error",
        "RuntimeError",
        "no",
    )
    assert second["status"] == "ok"
    progress = json.loads((tmp_path / "legacy/grid_progress.json").read_text())
    assert (progress["done"], progress["failed"], progress["skipped"]) == (2, 1, 1)
    assert progress["elapsed_sec"] == 2.5
    assert progress["current"] == {
        "env": "perm",
        "variant": "tg_smn_learned",
        "ablation": "fix_k2",
        "n_experts": 4,
        "seed": 0,
    }


def test_two_runs_of_one_name_are_refused(grid: Path, tmp_path: Path) -> None:
    rows = records(grid / "results.jsonl")
    rows[1]["column/ablation"] = "none"
    with pytest.raises(ConfigError, match="would both be perm/tg_smn_learned/none/experts4/seed0"):
        write_grid_view([grid], grid, rows, tmp_path / "legacy")


def test_a_cell_of_the_shipped_grid_runs(data: Path, repo: Path, tmp_path: Path) -> None:
    """The learned controller without the KL, at a width that a test can train."""
    spec = read_spec(repo / "configs/sweep/tgsmn_grid.yaml")
    cells = {one.name: one for one in expand(spec)}
    assert len(cells) * spec.n_seeds == 120
    told = JobMaker.overrides(cells["md_rr_40_learned_drop_obs_kl_e256"])
    small = [
        *(f"stream.path={data}", "stream.tasks=3", "stream.steps=3", "train.steps=9"),
        *("model.vocab_size=259", "model.dim=32", "model.layers=1", "stream.batch_size=2"),
        *("checkpoint.every=3", "signals.every=1", "controller.every=1", "stream.capacity=9"),
        *("+evals.tasks.windows=2", "+evals.tasks_val.windows=2", f"run.dir={tmp_path / 'cell'}"),
    ]
    home = launch(compose(spec.base_config, [*told, *small]))
    assert json.loads((home / "summary.json").read_text())["steps"] == 9


def test_another_learning_rate_is_another_job(data: Path, tmp_path: Path) -> None:
    hashes = []
    for lr in (3e-3, 1e-2, 3e-3):
        spec = read_spec(write_grid(tmp_path / "grid.yaml", data, lr=lr))
        maker = JobMaker(spec, ("train.py",))
        hashes.append([job.config_hash for job in maker.jobs(expand(spec)[0], tmp_path)])
    assert hashes[0] == hashes[2] != hashes[1]
