"""Probes of continual learning: phases in order, maps that change, streams that go on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.config.hydra import compose, run_config
from nl.core.batch import IGNORE
from nl.data.probe import score
from nl.data.probe_online import ROWS
from nl.dist.single import Single
from nl.fit import check


def probe(kind: str, **more: Any) -> Any:
    fields = {"kind": kind, "test_size": 100, "val_size": 50, "batch_size": 8, **more}
    return structure(StreamConfig, fields)


def place(rank: int, world: int) -> dict[str, int]:
    return {"seed": 3, "rank": rank, "world": world}


@pytest.mark.parametrize("kind", ["cl_mqar_stream", "cl_remap"])
def test_phases_come_in_order_for_any_world_and_after_a_resume(kind: str) -> None:
    config = probe(kind, phases=3, phase_steps=2)
    whole = config.build("train", **place(0, 1))
    batches = list(itertools.islice(whole, 8))
    phases = [batch.tags["phase"] for batch in batches]
    assert phases == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [b.tags["domain"] for b in batches[4:]] == ["phase_2"] * 2 + ["phase_0"] * 2
    parts = [config.build("train", **place(rank, 2)) for rank in (0, 1)]
    for batch in batches:
        halves = [next(iter(part)) for part in parts]
        assert torch.equal(batch.inputs, torch.cat([half.inputs for half in halves]))
        assert halves[0].tags == batch.tags
    resumed = config.build("train", **place(0, 2))
    resumed.load_state_dict({**parts[0].state_dict(), "row": 8 * 3})
    assert torch.equal(next(iter(resumed)).inputs, batches[3].inputs[:4])
    rows = torch.cat([batch.inputs for batch in batches])
    assert len({tuple(row) for row in rows.tolist()}) == len(rows), "no row twice"


def test_a_phase_has_its_own_tokens() -> None:
    config = probe("cl_mqar_stream", phases=3, phase_steps=2, vocab=32)
    for batch in itertools.islice(config.build("train", **place(0, 1)), 6):
        tokens = batch.inputs[batch.inputs > 0]
        low = 1 + batch.tags["phase"] * 31
        assert low <= int(tokens.min())
        assert int(tokens.max()) < low + 31


def test_held_out_splits_hold_every_phase_and_can_be_cut_by_it() -> None:
    config = probe("cl_remap", phases=3)
    assert config.splits() == ("train", "val/phase_0", "val/phase_1", "val/phase_2")
    found = config.examples("val", 0)
    assert (found.slices["phase"][:, 0] == np.arange(50) % 3).all()
    for number in range(3):
        one = config.build(f"val/phase_{number}", seed=0, rank=0, world=1)
        rows = torch.cat([b.inputs[(b.targets != IGNORE).any(1)] for b in one])
        assert rows.tolist() == found.inputs[number::3][:16].tolist()
    with pytest.raises(ConfigError, match="split 'val/phase_3' of cl_remap: use train, val, test"):
        config.build("val/phase_3", seed=0, rank=0, world=1)


def test_the_same_keys_have_another_value_in_every_phase() -> None:
    config = probe("cl_remap", phases=4)
    assert config.maps.shape == (4, 16)
    assert all(len(set(config.maps[:, key].tolist())) == 4 for key in range(16))
    found = config.examples("test", 0)
    seen = found.slices["shown in the row"] == 1
    assert seen.sum() == 100 * config.shown
    newest = np.asarray(config.shortcuts()["newest map"](found.inputs))
    kinds = config.errors(found.inputs, newest)
    phase, scored = found.slices["phase"], found.targets != IGNORE
    assert (kinds["value of a later phase"] == (phase < 3))[scored].all()
    assert not kinds["value of an earlier phase"][scored].any()
    assert not kinds["never its value"][scored].any()
    assert score(newest, found.targets)["accuracy"] == pytest.approx(0.25)
    other = probe("cl_remap", phases=4, map_seed=1)
    assert (other.maps != config.maps).any()


ONLINE = {"test_size": 16, "val_size": 8, "tau": 12, "length": 20, "segments": 5}


@pytest.mark.parametrize("turns", [1, 3])
def test_values_hold_from_switch_to_switch_and_are_asked_once_shown(turns: int) -> None:
    config = probe("nonstat_online", **ONLINE, turns=turns, keys=4, values=64)
    found = config.examples("test", 0)
    changes = 0
    for line, targets in zip(found.inputs.tolist(), found.targets.tolist(), strict=True):
        known: dict[tuple[int, int], int] = {}
        for at in range(0, len(line), 2):
            key, value = line[at], line[at + 1]
            epoch = at // 12
            since = max(-1, epoch - (epoch - key) % turns)
            changes += known.get((key, since), value) != value
            assert targets[at] == known.get((key, since), IGNORE)
            known[key, since] = value
        assert len({value for _, value in known.items()}) > 4, "values do change"
    assert changes == 0


def test_streams_go_on_over_batches_ranks_and_a_resume() -> None:
    config = probe("nonstat_online", **ONLINE)
    stream = config.build("train", **place(0, 1))
    batches = list(itertools.islice(stream, 11))
    streams = torch.cat([b.inputs for b in batches[:5]], 1)
    seed_rows = config.rows("train", 3, np.arange(3) * ROWS)
    assert streams[:3, :20].tolist() == [row.inputs.tolist() for row in seed_rows]
    starts = [{s for row in b.starts for s in row} | {len(set(b.starts))} for b in batches]
    assert starts == [{0, 1} if n % 5 == 0 else {1} for n in range(11)]
    halves = [config.build("train", **place(rank, 2)) for rank in (0, 1)]
    for batch in batches:
        parts = [next(iter(half)) for half in halves]
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
    again = config.build("train", **place(0, 1))
    again.load_state_dict({**stream.state_dict(), "row": 8 * 7})
    assert torch.equal(next(iter(again)).inputs, batches[7].inputs)
    test = list(config.build("test", **place(0, 1)))
    read = torch.cat([torch.cat([b.inputs for b in test[n : n + 5]], 1) for n in (0, 5)])
    assert read.tolist() == config.examples("test", 3).inputs.tolist()
    assert sum(batch.weight for batch in test) == (config.examples("test", 3).targets >= 0).sum()


def test_few_streams_come_again() -> None:
    config = probe("nonstat_online", **ONLINE, train_size=8)
    batches = list(itertools.islice(config.build("train", **place(0, 1)), 6))
    assert torch.equal(batches[0].inputs, batches[5].inputs)
    assert [batch.tags["epoch"] for batch in batches] == [0] * 5 + [1]


def test_rows_that_ask_for_rows_before_them_need_a_state_that_is_kept() -> None:
    told = ["experiment=probes/medium", "stream=nonstat_online", "evals={}"]
    strategy = Single.start("cpu")
    with pytest.raises(
        ConfigError, match=r"train\.carry: false, but rows of stream=nonstat_online"
    ):
        check(run_config(compose("pilot_smoke", told)), strategy)
    check(run_config(compose("pilot_smoke", [*told, "train.carry=true"])), strategy)
    check(run_config(compose("pilot_smoke", [*told, "stream.segments=1"])), strategy)
    one = run_config(compose("pilot_smoke", [*told, "stream.segments=1", "train.carry=true"]))
    with pytest.raises(ConfigError, match=r"train\.carry: true.*stream\.segments=2 or more"):
        check(one, strategy)
