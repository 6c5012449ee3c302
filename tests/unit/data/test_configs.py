"""The stream and experiment files compose into parts that build."""

from __future__ import annotations

import pytest
import torch

import nl.assembly  # noqa: F401 - registers every part
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.data.phases import PhaseStreamConfig
from nl.data.shard_stream import ShardStreamConfig
from nl.dist.single import Single
from nl.fit import check


@pytest.mark.parametrize(
    ("experiment", "kinds"),
    [
        ("ladder/sign_of_winner", ("ladder", "ladder", "classify")),
        ("groups/c5", ("quadratic_rnn", "group_composition", "regress")),
        ("groups/c10", ("sequential_mlp", "group_composition", "regress")),
        ("groups/c3xc3", ("sequential_mlp", "group_composition", "regress")),
        ("groups/d3", ("two_layer", "group_composition", "regress")),
        ("groups/octahedral", ("two_layer", "group_composition", "regress")),
        ("groups/a5", ("two_layer", "group_composition", "regress")),
        ("recall/pairs8", ("language", "recall", "next_token")),
        ("recall/pairs16", ("language", "recall", "next_token")),
    ],
)
def test_experiments(experiment: str, kinds: tuple[str, str, str]) -> None:
    run = run_config(compose("pilot_smoke", [f"experiment={experiment}"]))
    assert (run.model.kind, run.stream.kind, run.objective.kind) == kinds
    objective = run.objective.build(run.model.build())  # type: ignore[attr-defined]
    streams = [
        run.stream.build(split, seed=0, rank=0, world=1)  # type: ignore[attr-defined]
        for split in run.stream.splits()  # type: ignore[attr-defined]
    ]
    for stream in streams:
        batch = next(iter(stream))
        assert objective(batch).loss.isfinite()
        assert batch.weight > 0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("experiment=ladder/base objective=next_token",
         "objective: next_token; made for ids of tokens, and stream=ladder has features with a "
         "label: set objective=classify"),
        ("experiment=groups/c5 model=ladder", "model: ladder; made for .* set model=quadratic_rnn"),
        ("experiment=groups/c5 objective=classify", "objective: classify; .* has words of a group"),
        ("experiment=recall/pairs8 objective=regress", "objective: regress; .* has ids of tokens"),
        ("experiment=ladder/base stream.task=has_all_tokens",
         "model.features: 2; examples of stream.task=has_all_tokens have 4: set model.features=4"),
    ],
)  # fmt: skip
def test_parts_of_different_systems_are_refused_at_the_start(told: str, message: str) -> None:
    run = run_config(compose("pilot_smoke", told.split()))
    with pytest.raises(ConfigError, match=message):
        check(run, Single(torch.device("cpu")))


def test_streams() -> None:
    stdlib = run_config(compose("pilot_smoke", ["stream=stdlib"])).stream
    assert isinstance(stdlib, ShardStreamConfig)
    assert stdlib.path == "data/stdlib"
    assert stdlib.weights == (0.5, 0.5)
    phases = run_config(compose("pilot_smoke", ["stream=stdlib_phases"])).stream
    assert isinstance(phases, PhaseStreamConfig)
    assert [p.domain for p in phases.phases] == ["prose", "code", "prose"]
    mixture = run_config(compose("pilot_smoke", ["stream=mixture"])).stream
    assert isinstance(mixture, ShardStreamConfig)
    assert mixture.seq_len == 2048
