"""stream=replay: what is stored, what is drawn, and that nothing depends on ranks or resumes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError
from nl.core.batch import Batch
from nl.data.phases import PhaseConfig, PhaseStreamConfig, check_phases
from nl.data.replay import ReplayStreamConfig, Store
from nl.data.shard_stream import ShardStreamConfig
from nl.objectives.ewc import EwcConfig

PHASES = (
    PhaseConfig(domain="prose", steps=5),
    PhaseConfig(domain="code", steps=5),
    PhaseConfig(domain="prose", steps=3),
)


def config(path: Path, **changes: Any) -> ReplayStreamConfig:
    plain: dict[str, Any] = {"capacity": 12, "share": 0.25, "memory": "balanced"}
    plain |= {"seq_len": 16, "batch_size": 8, "phases": PHASES}
    return ReplayStreamConfig(path=str(path), **{**plain, **changes})


def take(stream: Any, count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def same(first: Batch, second: Batch) -> bool:
    equal = torch.equal(first.inputs, second.inputs) and torch.equal(first.targets, second.targets)
    return equal and (first.weight, first.tags, first.starts) == second[2:]


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(row) for row in batch.inputs.tolist()]


@pytest.mark.parametrize("memory", ["balanced", "reservoir"])
def test_new_rows_are_those_of_phases_and_the_others_come_from_earlier_phases(
    tiny: Path, memory: str
) -> None:
    cfg = config(tiny, memory=memory)
    plain = PhaseStreamConfig(path=str(tiny), phases=PHASES, seq_len=16, batch_size=8)
    found = take(cfg.build("train", seed=3, rank=0, world=1), 13)
    wanted = take(plain.build("train", seed=3, rank=0, world=1), 13)
    assert cfg.replayed == 2
    assert all(same(a, b._replace(tags={**b.tags, "replayed": 0})) for a, b in
               zip(found[:5], wanted[:5], strict=True))  # fmt: skip
    read: list[tuple[int, ...]] = [row for batch in found[:5] for row in rows_of(batch)]
    for number, (mine, theirs) in enumerate(zip(found[5:], wanted[5:], strict=True), 5):
        assert mine.tags["replayed"] == 2
        assert mine.weight == theirs.weight == 8 * 16
        assert torch.equal(mine.inputs[:6], theirs.inputs[:6])
        assert set(rows_of(mine)[6:]) <= set(read)
        if number == 9:  # the end of the second phase: its rows are replayed in the third
            read += [row for batch in found[5:10] for row in rows_of(batch)[:6]]


@pytest.mark.parametrize("documents", ["ignore", "reset"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_partition_every_global_batch(tiny: Path, documents: str, world: int) -> None:
    cfg = config(tiny, documents=documents)
    alone = take(cfg.build("train", seed=5, rank=0, world=1), 20)
    ranks = [take(cfg.build("train", seed=5, rank=r, world=world), 20) for r in range(world)]
    for number, whole in enumerate(alone):
        parts = [rank[number] for rank in ranks]
        assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
        assert torch.equal(torch.cat([p.targets for p in parts]), whole.targets)
        assert sum(p.weight for p in parts) == whole.weight
        if documents == "reset":
            assert sum((p.starts for p in parts), ()) == whole.starts


@pytest.mark.parametrize("memory", ["balanced", "reservoir"])
def test_resume_anywhere_with_any_number_of_ranks(tiny: Path, memory: str) -> None:
    cfg = config(tiny, memory=memory)
    reference = take(cfg.build("train", seed=2, rank=0, world=1), 34)
    for point in (1, 4, 5, 7, 10, 13, 20, 27):
        first = cfg.build("train", seed=2, rank=1, world=2)
        take(first, point)
        state = json.loads(json.dumps(first.state_dict()))
        resumed = cfg.build("train", seed=2, rank=0, world=1)
        resumed.load_state_dict(state)
        for got, wanted in zip(take(resumed, 5), reference[point:], strict=False):
            assert same(got, wanted)


def test_another_store_or_order_is_refused(tiny: Path) -> None:
    state = config(tiny).build("train", seed=2, rank=0, world=1).state_dict()
    for changes in ({"capacity": 13}, {"share": 0.5}, {"memory": "reservoir"}):
        other = config(tiny, **changes).build("train", seed=2, rank=0, world=1)
        with pytest.raises(ConfigError, match=r"stream\.identity"):
            other.load_state_dict(state)


def filled(memory: str, sizes: list[int], capacity: int, key: int, piece: int) -> Store:
    """A store that was offered ``sizes[i]`` rows of phase i, ``piece`` at a time."""
    store, row = Store(capacity, memory, key), 0
    for phase, size in enumerate(sizes):
        rows = np.arange(row, row + size)
        for start in range(0, size, piece):
            store.add(rows[start : start + piece], phase)
        row += size
    return store


def test_a_balanced_store_has_equal_room_for_every_phase() -> None:
    store = filled("balanced", [40, 3, 200], 12, key=1, piece=5)
    assert Counter(store.phases.tolist()) == {0: 4, 1: 3, 2: 4}
    assert len(set(store.rows.tolist())) == 11


def test_a_store_does_not_depend_on_how_rows_were_cut() -> None:
    for memory in ("balanced", "reservoir"):
        whole = filled(memory, [40, 30], 12, key=4, piece=10**6)
        pieces = filled(memory, [40, 30], 12, key=4, piece=1)
        assert whole.rows.tolist() == pieces.rows.tolist()


def test_a_reservoir_keeps_every_row_with_the_same_probability() -> None:
    """8 of 40 rows, 2000 keys: each is kept 400 times on average, standard deviation 17.9."""
    hits = np.zeros(40)
    for key in range(2000):
        hits[filled("reservoir", [10, 30], 8, key, 10).rows] += 1
    assert hits.sum() == 8 * 2000
    assert np.abs(hits - 400).max() < 5 * 17.9
    assert abs(hits[:10].sum() - 4000) < 5 * 17.9 * 10**0.5


def test_draws_are_balanced_over_phases_or_over_rows() -> None:
    """Phase 0 holds 4 of 16 rows; 4000 draws, standard deviations 31.6 and 27.4."""
    balanced = filled("balanced", [4, 100], 16, key=7, piece=9)
    drawn = balanced.draw(4000, 0, 2)
    assert abs((drawn < 4).sum() - 2000) < 5 * 31.6
    store = Store(16, "reservoir", 7)
    store.load(list(range(16)), [0] * 4 + [1] * 12)
    drawn = store.draw(4000, 0, 2)
    assert abs((drawn < 4).sum() - 1000) < 5 * 27.4
    assert set(store.draw(100, 0, 1).tolist()) <= {0, 1, 2, 3}
    assert store.draw(10, 3, 2).tolist() == drawn[3:13].tolist()


def test_refusals(tiny: Path) -> None:
    for changes, word in (
        ({"share": 0.0}, "share: 0.0"),
        ({"share": 1.0}, "share: 1.0"),
        ({"capacity": 0}, "capacity: 0"),
        ({"capacity": 2}, "capacity: 2"),
        ({"batch_size": 1}, "batch_size: 1"),
    ):
        with pytest.raises(ConfigError, match=word):
            config(tiny, **changes)
    with pytest.raises(ConfigError, match="use a multiple of 3"):
        config(tiny).build("train", seed=0, rank=0, world=3)
    with pytest.raises(ConfigError, match="ewc acts when a phase ends, but stream=shards has no"):
        check_phases(ShardStreamConfig(path="x"), EwcConfig())
    check_phases(config(tiny), EwcConfig())


def test_rows_are_drawn_in_proportion_to_their_last_loss() -> None:
    store = Store(100, "loss", key=5)
    store.add(np.arange(10), 0)
    assert Counter(store.draw(20_000, 0, 1).tolist()).most_common(1)[0][1] < 2400, "none known"
    store.note(np.array([3, 7, 55]), np.array([8.0, 2.0, 100.0]))
    store.note(np.array([0, 1, 2, 4, 5, 6, 8, 9]), np.zeros(8))
    drawn = Counter(store.draw(20_000, 0, 1).tolist())
    assert set(drawn) == {3, 7}
    assert drawn[3] / 20_000 == pytest.approx(0.8, abs=0.01)
    store.add(np.array([20]), 1)
    fresh = Counter(store.draw(20_000, 0, 2).tolist())
    assert fresh[20] / 20_000 == pytest.approx(8 / 18, abs=0.02), "unknown: as the largest known"


def test_losses_come_back_with_a_checkpoint(tiny: Path) -> None:
    def learned(stream: Any, batches: list[Batch]) -> None:
        for batch in batches:
            stream.learned(batch.inputs[:, 0].double().numpy() ** 6)

    cfg = config(tiny, memory="loss")
    stream = cfg.build("train", seed=3, rank=0, world=1)
    whole = []
    for _ in range(12):
        whole += take(stream, 1)
        learned(stream, whole[-1:])
    again = cfg.build("train", seed=3, rank=0, world=1)
    for _ in range(7):
        learned(again, take(again, 1))
    other = cfg.build("train", seed=3, rank=0, world=1)
    other.load_state_dict(json.loads(json.dumps(again.state_dict())))
    for wanted in whole[7:]:
        found = take(other, 1)[0]
        learned(other, [found])
        assert same(found, wanted)
    silent = take(cfg.build("train", seed=3, rank=0, world=1), 12)
    assert not all(same(a, b) for a, b in zip(silent, whole, strict=True))


def test_losses_of_accumulated_batches_reach_their_rows(tiny: Path) -> None:
    stream: Any = config(tiny, memory="loss", capacity=40).build("train", seed=3, rank=0, world=1)
    take(stream, 3)
    stream.learned(np.arange(24.0))
    kept = dict(zip(stream.store.rows.tolist(), stream.store.losses.tolist(), strict=True))
    assert kept == {row: float(row) for row in range(24)}
