"""nl sweep from file to tables, with real launchers; the warm backend forks the same numbers."""

from __future__ import annotations

import csv
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import nl.assembly  # noqa: F401 - registers the parts
from nl.cli import build_parser, main
from nl.cli_campaign import again
from nl.config.hydra import compose, run_config
from nl.config.run import config_hash
from nl.sweep import make
from nl.sweep.make import JobMaker
from nl.sweep.spec import expand, read_spec

FILE = """
base_config: pilot_smoke
global_overrides:
  experiment: recall/pairs8
  train: {steps: 2, validate_every: 2, validate_batches: 1, device: cpu, threads: 1}
  model: {dim: 32, layers: 1, selfmod: {head_size: 16, hidden: 16}}
  checkpoint: {export: false}
experiments:
  - {name: one, overrides: {model.block: transformer}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return path


def results(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]


def test_from_file_to_tables_and_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "out"
    assert main(["sweep", str(file), "--output", str(root)]) == 0
    assert re.search(
        r"1 of 1 runs done, 0 failed, 0:\d\d of CPU time; results", capsys.readouterr().out
    )
    (row,) = results(root)
    assert (row["experiment"], row["seed"], row["status"]) == ("one", 0, "done")
    (line,) = csv.DictReader((root / "results.csv").read_text().splitlines())
    assert float(line["val/loss"]) == row["metrics"]["val/loss"]  # type: ignore[index]
    assert (root / "one" / "seed_0" / "summary.json").is_file()
    told = yaml.safe_load((root / "sweep_metadata.yaml").read_text())
    assert (told["total_runs"], told["experiments"]) == (1, ["one"])
    config = yaml.safe_load((root / "configs" / "one_config.yaml").read_text())
    assert config["model"]["dim"] == 32

    # Another seed joins: what is done is kept.
    file.write_text(FILE + "n_seeds: 2\n")
    assert main(["sweep", str(file), "--output", str(root), "--backend", "warm"]) == 0
    first, second = results(root)
    assert first == row
    assert (second["seed"], second["status"], second["attempts"]) == (1, "done", 1)
    cold, warm = float(str(first["cpu_seconds"])), float(str(second["cpu_seconds"]))
    assert 0 < warm < cold, "a fork imports nothing"
    summary = yaml.safe_load((root / "one" / "experiment_summary.yaml").read_text())
    assert summary["statistics"]["val/loss"]["n"] == 2


def test_mistakes_are_told_before_anything_runs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("dim: 32", "dimm: 32"))
    assert main(["sweep", str(file), "--output", str(tmp_path / "out")]) == 2
    assert "one: model: unknown 'dimm'. Did you mean 'dim'?" in capsys.readouterr().err
    file.write_text(FILE.replace("base_config: pilot_smoke", "base_config: pilot_smok"))
    assert main(["sweep", str(file), "--output", str(tmp_path / "out")]) == 2
    assert "no file pilot_smok.yaml in configs" in capsys.readouterr().err
    file.write_text(FILE.replace("model.block: transformer", "seed: 3"))
    assert main(["sweep", str(file), "--output", str(tmp_path / "out")]) == 2
    assert "one: seed: set by the sweep; use n_seeds or seeds" in capsys.readouterr().err
    assert main(["sweep", str(file), "--output", str(file)]) == 2
    assert f"--output: {file}; {file} is not a directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_that_their_launcher_would_refuse_are_told_before_anything_runs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Composing them says nothing of parts that do not fit each other."""
    line, more = "  - {name: one, overrides: {model.block: transformer}}", ["--dry-run"]
    bad = f"{line}\n  - {{name: two, overrides: {{train.carry: true}}}}"
    file.write_text(FILE.replace(line, bad))
    for flags in (more, ["--output", str(tmp_path / "out")]):
        assert main(["sweep", str(file), *flags]) == 2
        said = capsys.readouterr()
        assert "two: train.carry: true, but the rows of stream=" in said.err
        assert "train_one" not in said.out
    assert not (tmp_path / "out" / "one").exists()
    segments = FILE.replace("model.block: transformer", "train.recompute_every: 2")
    file.write_text(segments + "launcher: train_fsdp.py\n")
    assert main(["sweep", str(file), *more]) == 2
    assert "one: train.recompute_every: 2; fsdp2 has not gathered" in capsys.readouterr().err
    spaced = tmp_path / "a place" / "train_fsdp.py"
    spaced.parent.mkdir()
    spaced.touch()
    file.write_text(f"{segments}launcher: \"'{spaced}'\"\n")
    assert main(["sweep", str(file), *more]) == 2
    assert "fsdp2 has not gathered" in capsys.readouterr().err
    file.write_text(segments + "launcher: train_dist.py\n")
    assert main(["sweep", str(file), *more]) == 0, "another strategy can"


def test_data_that_is_elsewhere_is_for_the_launcher_to_judge(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILE.replace("experiment: recall/pairs8", "stream: shards\n  stream.path: none")
    file.write_text(text.replace("model.block: transformer", "train.carry: true"))
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert "none/manifest.json: not here" in capsys.readouterr().err


def test_dry_run_prints_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = file.parent / "out"
    assert main(["sweep", str(file), "--dry-run", "--output", str(root)]) == 0
    said = capsys.readouterr()
    assert f"{root}/one/seed_0" in said.out
    assert not root.exists()
    assert said.out.count("--config-name pilot_smoke") == 1
    assert "model.block=transformer" in said.out
    assert "1 jobs; nothing was run" in said.err


def test_the_command_that_goes_on_runs_where_this_one_ran() -> None:
    words = ["sweep", "a b.yaml", "--backend", "warm", "--slots", "2", "--memory-gb", "8", "--eta"]
    options = build_parser().parse_args(words)
    told = again(options, Path("out"))
    assert told == "nl sweep 'a b.yaml' --output out --backend warm --slots 2 --memory-gb 8"


def test_a_key_may_follow_the_seed(file: Path) -> None:
    changed = "model.block: transformer, optim.weight_decay: '${seed}'"
    file.write_text(FILE.replace("model.block: transformer", changed) + "seeds: [0, 2]\n")
    spec = read_spec(file)
    found = JobMaker(spec, ("python", "train.py")).jobs(expand(spec)[0], Path("out"))
    told = [[*job.overrides, f"seed={job.seed}"] for job in found]
    runs = [run_config(compose("pilot_smoke", one)) for one in told]
    assert [run.optim.weight_decay for run in runs] == [0, 2]  # type: ignore[attr-defined]
    assert [job.config_hash for job in found] == [config_hash(run) for run in runs]


def some(axis: Any, whole: bool) -> Any:
    """An axis or its first variant; of an axis of subsets those of its first two members or one."""
    if isinstance(axis, list):
        return axis if whole else axis[:1]
    if isinstance(axis, dict):
        return axis | {"subsets_of": axis["subsets_of"][: 1 + whole]}
    return axis


def test_the_shipped_files_compose(
    repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variant of every axis and value of a grid, beside the first of the others."""
    composed = functools.cache(lambda name, told: compose(name, told))
    monkeypatch.setattr(make, "compose", lambda name, told: composed(name, tuple(told)))
    files = sorted((repo / "configs" / "sweep").glob("*.yaml"))
    assert files
    for path in files:
        whole = yaml.safe_load(path.read_text())
        parts: dict[str, dict[str, Any]] = {k: whole.get(k, {}) for k in ("axes", "grid")}
        cut = {k: v for k, v in whole.items() if k not in ("exclude", "seeds")} | {"n_seeds": 1}
        for name in [*parts["axes"], *parts["grid"]] or [""]:
            kept = {
                k: {a: some(v, a == name) for a, v in part.items()} for k, part in parts.items()
            }
            one = tmp_path / f"{path.stem}_{name}.yaml"
            one.write_text(yaml.safe_dump(cut | {k: part for k, part in kept.items() if part}))
            assert main(["sweep", str(one), "--dry-run"]) == 0, (path, name)
            values = parts["axes"].get(name, parts["grid"].get(name, "1"))
            assert capsys.readouterr().out.count("--config-name") >= len(values)


def test_a_place_with_other_files_is_left_alone(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert main(["sweep", str(file), "--output", str(tmp_path / "out")]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert main(["sweep", str(file), "--root", str(tmp_path), "--resume"]) == 2
    assert "--resume: no sweep of small.yaml" in capsys.readouterr().err
    both = ["--output", str(tmp_path / "new"), "--resume"]
    assert main(["sweep", str(file), *both]) == 2
    assert "--resume: names the newest directory, --output another" in capsys.readouterr().err


def test_a_search_runs_its_trials(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    head = FILE.split("experiments:")[0]
    space = "{optim.lr: {low: 1e-4, high: 1e-2, log: true}, model.block: {choices: [transformer]}}"
    file.write_text(f"{head}search: {{trials: 2, sampler: random, space: {space}}}\n")
    root = tmp_path / "out"
    assert main(["sweep", str(file), "--output", str(root), "--backend", "warm"]) == 0
    found = results(root)
    assert [row["experiment"] for row in found] == ["trial_0000", "trial_0001"]
    best = yaml.safe_load((root / "best.yaml").read_text())
    losses = {row["experiment"]: row["metrics"]["val/loss"] for row in found}  # type: ignore[index]
    assert best["val/loss"] == min(losses.values())
    assert losses[best["trial"]] == best["val/loss"]
