"""The earlier system's commands in docs/systems/tgsmn.md, executed; mistakes in what they are told.

Sweep and report of the page are executed in tests/unit/sweep/test_task_grid.py, its notebook in
tests/unit/test_notebook.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nl.cli import main
from tests.unit.data.conftest import build_tiny
from tests.unit.sweep.task_grid import PAGE, mapped

LEAST = [
    *("model.vocab_size=259", "model.dim=16", "model.layers=1", "model.attention.heads=2"),
    *("stream.tasks=3", "stream.steps=2", "train.steps=6", "stream.seq_len=8"),
    *("stream.batch_size=2", "train.validate_every=0", "train.validate_batches=1"),
    *("checkpoint.every=0", "checkpoint.export=false", "train.threads=1"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("map_data"))


def least(words: list[str], data: Path, place: Path) -> list[str]:
    """A command of the page on small data, with short tasks; what excludes these is left."""
    told = [word.replace("data/stdlib", str(data)) for word in words]
    dense = ["model.mlp_hidden=16"] if any("dense" in word for word in told) else []
    turned = any("controller" in word for word in told)
    signals = ["signals.every=1", "controller.every=1"] if turned else []
    room = ["stream.capacity=6"] if any("capacity" in word for word in told) else []
    return [*told, *LEAST, *dense, *signals, *room, f"run.dir={place}"]


def test_every_training_command_of_the_page_runs(data: Path, tmp_path: Path) -> None:
    commands = [words[1:] for words in mapped("python") if words[0] == "train.py"]
    assert len(commands) == 8
    for number, words in enumerate(commands):
        place = tmp_path / str(number)
        assert main(["train", *least(words, data, place)]) == 0, words
        assert json.loads((place / "summary.json").read_text())["steps"] == 6
    knobs = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    turned = [row for row in knobs if "knob/replay" in row]
    assert {row["knob/replay"] for row in turned[2:]} == {0.1}
    assert {row["knob/experts_k"] for row in turned[2:]} == {2}


BASELINES = {
    "dense_replay": "dense, replayed",
    "dense_flops_replay": "dense, replayed",
    "sparse_replay": "sparse, replayed",
    "random": "sparse, turned",
    "gru": "sparse, turned",
    "joint": "dense",
    "scratch": "dense, alone",
}
"""What a named baseline is, beside a run through tasks that ends with R."""


@pytest.mark.parametrize("name", BASELINES)
def test_a_named_baseline_is_one_command(name: str, data: Path, tmp_path: Path) -> None:
    assert f"`{name}`" in PAGE.read_text()
    first = ["train", "--config-name", "pilot_smoke", f"experiment=tgsmn/{name}"]
    words = [name, *(["controller"] if "turned" in BASELINES[name] else []), "capacity"]
    small = least(words, data, tmp_path)[len(words) :]
    if name in ("joint", "scratch"):
        small.remove("stream.capacity=6")
    if "dense" in BASELINES[name] and "model.mlp_hidden=16" not in small:
        small.append("model.mlp_hidden=16")
    own = [f"stream.path={data}", "checkpoint.every=2", "stream.batch_size=10"]
    assert main([*first, *small, *own, "evals.tasks.windows=2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["split"] == "train"]
    if "turned" not in BASELINES[name]:
        shown = any(row.get("stream/replayed") for row in trained)
        assert shown == ("replayed" in BASELINES[name])
    assert any("knob/replay" in row for row in trained) == ("turned" in BASELINES[name])
    run = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (run["model"]["experts"]["form"] == "none") == ("dense" in BASELINES[name])
    assert run["stream"]["joint"] == (name == "joint")
    assert (run["stream"]["only"] == 0) == (name == "scratch")
    page = json.loads((tmp_path / "artifacts/evals/tasks.json").read_text())
    assert len(page["details"]["context"]["nats_per_token"]) == 4, "before, and after 3 tasks"


def test_nothing_else_is_on_the_page() -> None:
    heads = {tuple(words[:1]) for words in mapped("python")}
    assert heads == {("train.py",), ("notebooks/tg_smn.py",)}
    assert [words[0] for words in mapped("nl")] == ["sweep", "report", "report"]
    (words,) = mapped("jupytext")
    assert words[-1] == "notebooks/tg_smn.py"


def test_the_map_names_every_earlier_key() -> None:
    table = PAGE.read_text().split("| earlier configuration")[1].split("## ")[0]
    names = set(re.findall(r"[a-z_0-9]+", table))
    keys = "seq_len batch_size num_workers seed epochs_per_task lr weight_decay grad_clip "
    keys += "fisher_every delta_rho_samples replay_max_seqs log_every max_steps_per_task d_model "
    keys += "n_heads n_layers dropout n_experts rank max_k group_size k replay_ratio router_noise "
    keys += "router_temp k_min k_max replay_max noise_max temp_min temp_max hidden_size gamma "
    keys += "rollout_len entropy_coef value_coef n_tasks permuted_vocab perm_mode repeat_k "
    keys += "drift_swaps schedule_mode block_size schedule mix_n_domains_per_task mix_seed"
    assert set(keys.split()) <= names


GRU = ["experiment=tgsmn/sparse_k2", "+controller=gru", "controller.ranges.experts_k=[1,2]"]
GRU += ["stream.steps=1"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["stream.domains=[prose,news]"], "stream.domains: 'news' is none of ['code', 'prose']"),
        (["stream.schedule=custom", "stream.custom=[news]"], "stream.custom: 'news' is none of"),
        (["stream.mix=3"], "stream.mix: 3; "),
        (["stream.schedule=roundrobin"], "stream.schedule: unknown 'roundrobin'. Did you mean"),
        (
            ["stream.vocabulary=drifft"],
            "stream.vocabulary: unknown 'drifft'. Did you mean 'drift'?",
        ),
        (["stream.path=nowhere"], "nowhere/manifest.json: no such file in /"),
        (["stream=task"], "stream: unknown 'task'. Did you mean 'tasks'?"),
        (["stream.steps=2000"], "stream.steps: 2000; the tasks together read 320000 windows of"),
        (["stream.only=12"], "stream.only: 12; must be 0 to 9."),
        (["stream.replay=0.3"], "stream.replay: 0.3; has no effect without capacity"),
        ([*GRU[:1], "+controller=gruu"], "controller: unknown 'gruu'. Did you mean 'gru'?"),
        (GRU, "signals.every: 0; controller=gru follows signals every 10 steps"),
        ([*GRU, "controller.unseen=[signal/kll]"], "controller.unseen: ['signal/kll']; must be"),
        ([*GRU[:2], "controller.ranges.expert_k=[1,2]"], "unknown 'expert_k'. Did you mean"),
        ([*GRU[:1], "model.experts.count=100"], "model.experts.groups: 8; router=hierarchical"),
        ([*GRU[:1], "model.experts.k=300"], "model.experts.k: 300; there are only 256 experts."),
        ([*GRU[:1], "model.experts.router=flatt"], "model.experts.router: unknown 'flatt'. Did"),
        (["+evals.tasks={kind: task_losses, split: train}"], "evals.tasks.split: unknown 'train'"),
    ],
)
def test_a_mistake_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: list[str], message: str
) -> None:
    first = ["train", "--config-name", "pilot_smoke", "stream=tasks", f"stream.path={data}"]
    own = ["model.vocab_size=259", f"run.dir={tmp_path / 'run'}", "train.steps=1"]
    with pytest.raises(SystemExit) as ended:
        main([*first, *own, *told])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert message in said[0]
    assert not (tmp_path / "run").exists()


MISTAKES: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "environment": (("exclude", 1, "environment"), "md_rr_40", "exclude[1]: no combination is"),
    "axis": (("exclude", 1, "env"), "perm", "exclude[1]: env; columns are ablation, environment"),
    "variant": (
        ("axes", "variant", 1, "overrides", "experiment"),
        "tgsmn/sparse_k3",
        "tgsmn/sparse_k3",
    ),
    "order": (
        ("axes", "environment", 0, "overrides", "stream.schedule"),
        "rand",
        "stream.schedule: unknown 'rand'",
    ),
    "size": (
        ("axes", "experts", 1, "overrides", "model.experts.count"),
        30,
        "model.experts.groups: 4; router=hierarchical needs a divisor of count (30)",
    ),
    "knob": (
        ("axes", "ablation", 1, "overrides", "controller.ranges.k"),
        [2, 2],
        "controller.ranges: unknown 'k'",
    ),
    "top": (("variants",), ["dense"], "unknown 'variants'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_grid_is_told_before_anything_runs(
    name: str, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = yaml.safe_load((repo / "configs/sweep/tgsmn_small.yaml").read_text())
    (*path, last), value, message = MISTAKES[name]
    if path and path[0] == "axes":  # that variant of that axis, and the first of the others
        for axis, variants in spec["axes"].items():
            spec["axes"][axis] = variants[path[2] :][:1] if axis == path[1] else variants[:1]
        path[2], spec["exclude"] = 0, []
    node = spec
    for key in path:
        node = node[key]
    node[last] = value
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    assert main(["sweep", str(file), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
