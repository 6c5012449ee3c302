"""Presets: every probe in every size; they compose, are checked and give a first batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nl.assembly import check, launch
from nl.config import ConfigError
from nl.config.hydra import compose, config_dir, run_config
from nl.core.batch import IGNORE
from nl.data.probe_registry import PRESETS, kind_in, presets, probes, task
from nl.dist.single import Single


def test_every_probe_has_every_preset() -> None:
    found = presets()
    assert {kind for kind, _ in found.values()} == set(probes())
    assert all(sizes == PRESETS for _, sizes in found.values())


@pytest.mark.parametrize("preset", ["smoke", "small", "medium"])
def test_presets_give_a_first_batch_that_the_model_can_read(preset: str) -> None:
    strategy = Single.start("cpu")
    for name in presets():
        run = run_config(compose("pilot_smoke", [f"experiment=probes/{preset}/{name}"]))
        check(run, strategy)
        batch = next(iter(run.stream.build("train", seed=0, rank=0, world=1)))  # type: ignore[attr-defined]
        assert batch.weight == int((batch.targets != IGNORE).sum()) > 0, name
        assert int(batch.inputs.max()) < run.model.vocab_size, name  # type: ignore[attr-defined]
        assert run.name == f"{preset}_{name}"
        assert batch.inputs.numel() <= 32 * 512, "no preset of this size is large"


def test_tasks_are_found_by_name_and_near_misses_are_told() -> None:
    assert task("parity") == ("state_tracking", PRESETS)
    assert task("mqar") == ("mqar", PRESETS)
    with pytest.raises(ConfigError, match=r"probe: unknown 'mqra'\. Did you mean 'mqar'"):
        task("mqra")
    with pytest.raises(ConfigError, match="its defaults choose no stream"):
        kind_in(config_dir() / "experiment/probes/smoke.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_name", "block", "least"), [("mqar", "transformer", 0.95), ("parity", "lstm", 0.99)]
)
def test_smoke_is_learned_by_who_should(
    tmp_path: Path, task_name: str, block: str, least: float
) -> None:
    told = [f"experiment=probes/smoke/{task_name}", f"model.block={block}", f"run.dir={tmp_path}/r"]
    home = launch(compose("pilot_smoke", [*told, "stream.test_size=256", "train.threads=1"]))
    rows = [json.loads(line) for line in (home / "evals.jsonl").read_text().splitlines()]
    reached = [r["value"] for r in rows if (r["task"], r["metric"]) == ("test", "accuracy")]
    assert reached[0] > least
