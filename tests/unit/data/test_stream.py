"""Ranks share rows exactly; a resumed stream goes on bit for bit; nothing repeats in an epoch."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nl.config import ConfigError
from nl.core.batch import IGNORE, Batch
from nl.data.order import MixturePlan, SequentialPlan
from nl.data.phases import PhaseConfig, PhaseStreamConfig
from nl.data.shard_stream import ShardStreamConfig
from nl.data.stream import RowStream, stack

STREAMS = ["shards", "phases"]


def config(kind: str, path: Path, batch_size: int = 8) -> ShardStreamConfig | PhaseStreamConfig:
    if kind == "shards":
        return ShardStreamConfig(
            path=str(path),
            seq_len=16,
            batch_size=batch_size,
            domains=("prose", "code"),
            weights=(0.75, 0.25),
        )
    phases = (PhaseConfig(domain="prose", steps=3), PhaseConfig(domain="code", steps=2))
    return PhaseStreamConfig(path=str(path), seq_len=16, batch_size=batch_size, phases=phases)


def take(stream: RowStream, count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def same(first: Batch, second: Batch) -> bool:
    equal = torch.equal(first.inputs, second.inputs) and torch.equal(first.targets, second.targets)
    return equal and first.weight == second.weight and first.tags == second.tags


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_partition_every_global_batch(tiny: Path, kind: str, world: int) -> None:
    cfg = config(kind, tiny)
    alone = take(cfg.build("train", seed=5, rank=0, world=1), 30)
    ranks = [take(cfg.build("train", seed=5, rank=r, world=world), 30) for r in range(world)]
    for number, whole in enumerate(alone):
        parts = [rank[number] for rank in ranks]
        assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
        assert torch.equal(torch.cat([p.targets for p in parts]), whole.targets)
        assert sum(p.weight for p in parts) == whole.weight == 8 * 16


@pytest.mark.parametrize("kind", STREAMS)
def test_resume_at_random_points(tiny: Path, kind: str) -> None:
    cfg = config(kind, tiny)
    reference = take(cfg.build("train", seed=2, rank=0, world=1), 60)
    for point in random.sample(range(1, 55), 6):
        first = cfg.build("train", seed=2, rank=0, world=1)
        take(first, point)
        state = json.loads(json.dumps(first.state_dict()))
        resumed = cfg.build("train", seed=2, rank=0, world=1)
        resumed.load_state_dict(state)
        for got, wanted in zip(take(resumed, 5), reference[point:], strict=False):
            assert same(got, wanted)


def test_resume_with_another_world_size_keeps_the_order(tiny: Path) -> None:
    cfg = config("shards", tiny)
    reference = take(cfg.build("train", seed=2, rank=0, world=1), 9)
    two = cfg.build("train", seed=2, rank=1, world=2)
    take(two, 7)
    one = cfg.build("train", seed=2, rank=0, world=1)
    one.load_state_dict(two.state_dict())
    assert all(same(a, b) for a, b in zip(take(one, 2), reference[7:], strict=True))


def test_resume_far_away_is_a_matter_of_arithmetic(tiny: Path) -> None:
    stream = config("shards", tiny).build("train", seed=2, rank=0, world=1)
    stream.load_state_dict(stream.state_dict() | {"row": 8 * 10**11})
    assert take(stream, 1)[0].tags["epoch"] > 10**8


def test_no_window_twice_in_an_epoch(tiny: Path) -> None:
    cfg = ShardStreamConfig(path=str(tiny), seq_len=16, batch_size=1, domains=("prose",))
    stream = cfg.build("train", seed=0, rank=0, world=1)
    size = stream.fetch.sizes[0]  # type: ignore[attr-defined]
    indices = stream.plan.locate(np.arange(2 * size))[1]
    first, second = indices[:size], indices[size:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(size))
    assert (first != second).mean() > 0.9


def test_streams_of_equal_seed_are_equal_and_of_other_seed_differ(tiny: Path) -> None:
    cfg = config("shards", tiny)
    a, b, c = (take(cfg.build("train", seed=s, rank=0, world=1), 5) for s in (1, 1, 2))
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x.inputs, y.inputs) for x, y in zip(a, c, strict=True))


def fill(values: int, batch_size: int, rank: int, world: int) -> RowStream:
    data = torch.arange(values)
    return RowStream(
        SequentialPlan([values]),
        stack(data[:, None], data),
        batch_size=batch_size,
        rank=rank,
        world=world,
        identity="values",
    )


@pytest.mark.parametrize("world", [1, 2, 4])
def test_finite_stream_fills_up_its_last_batch(world: int) -> None:
    ranks = [list(fill(9, 4, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {3}
    seen = [t for b in itertools.chain(*ranks) for t in b.targets.tolist() if t != IGNORE]
    assert sorted(seen) == list(range(9))
    assert sum(b.weight for b in itertools.chain(*ranks)) == 9
    assert {b.inputs.shape[0] for b in itertools.chain(*ranks)} == {4 // world}


def test_finite_stream_starts_over_once_it_has_ended() -> None:
    stream = fill(9, 4, 0, 1)
    first, second = list(stream), list(stream)
    assert len(first) == 3
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_unscored_float_targets_are_nan() -> None:
    def fetch(source: np.ndarray, index: np.ndarray) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(index).float()[:, None].expand(-1, 3)
        return values, values

    plan = SequentialPlan([3])
    stream = RowStream(plan, fetch, batch_size=2, rank=0, world=1, identity="floats")
    last = list(stream)[-1]
    assert last.weight == 3
    assert torch.isnan(last.targets).tolist() == [[False] * 3, [True] * 3]


def test_world_that_does_not_divide_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream.batch_size: 8 .* 3 ranks.* multiple of 3"):
        config("shards", tiny).build("train", seed=0, rank=0, world=3)


def test_state_of_another_stream_is_refused(tiny: Path) -> None:
    stream = config("shards", tiny).build("train", seed=0, rank=0, world=1)
    other = config("shards", tiny).build("train", seed=1, rank=0, world=1)
    with pytest.raises(ConfigError, match=r"stream.identity: the checkpoint was made with"):
        stream.load_state_dict(other.state_dict())
    wider = config("shards", tiny, batch_size=16).build("train", seed=0, rank=0, world=1)
    with pytest.raises(ConfigError, match=r"stream.batch_size: .* 16, this run has 8"):
        stream.load_state_dict(wider.state_dict())


def test_planned_blocks_do_not_show() -> None:
    """Rows around the edge of a block of planned rows are what a direct look-up gives."""
    data = torch.arange(50)
    plan = MixturePlan([50], ["x"], [1], seed=3)
    fetch = stack(data, data)
    stream = RowStream(plan, fetch, batch_size=3000, rank=0, world=1, identity="x")
    got = torch.cat([b.targets for b in take(stream, 7)])
    assert got.tolist() == plan.locate(np.arange(21_000))[1].tolist()


@pytest.mark.parametrize("documents", ["ignore", "reset"])
@pytest.mark.parametrize(("seq_len", "batch_size"), [(7, 12), (64, 4)])
def test_batches_fetched_together_are_those_fetched_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, documents: str, seq_len: int, batch_size: int
) -> None:
    """However many rows are fetched at once, and wherever the stream begins."""
    cfg = ShardStreamConfig(
        path=str(tiny),
        seq_len=seq_len,
        batch_size=batch_size,
        documents=documents,  # type: ignore[arg-type]
    )
    monkeypatch.setattr("nl.data.windows.TOKENS_AT_ONCE", 1)
    for split in ("train", "val", "val/code"):
        monkeypatch.setattr("nl.data.windows.TOKENS_AT_ONCE", 1)
        alone = take(cfg.build(split, seed=3, rank=0, world=1), 90)
        monkeypatch.setattr("nl.data.windows.TOKENS_AT_ONCE", 5 * batch_size * seq_len)
        together = cfg.build(split, seed=3, rank=0, world=1)
        got = take(together, 90)
        assert len(got) == len(alone) > 2
        for one, two in zip(alone, got, strict=True):
            assert same(one, two)
            assert one.starts == two.starts
        later = cfg.build(split, seed=3, rank=0, world=1)
        later.load_state_dict(together.state_dict() | {"row": 2 * batch_size})
        assert same(next(iter(later)), alone[2])


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_share_epochs_without_overlap(tiny: Path, world: int) -> None:
    """Three epochs of both domains over all ranks: every window of a domain once in each."""
    cfg = ShardStreamConfig(path=str(tiny), seq_len=16, batch_size=8)
    ranks = [cfg.build("train", seed=9, rank=r, world=world) for r in range(world)]
    sizes = ranks[0].fetch.sizes  # type: ignore[attr-defined]
    seen: list[list[list[int]]] = [[[] for _ in sizes] for _ in ranks]
    steps = 3 * sum(sizes) // 8 + 30
    for rank, stream in enumerate(ranks):
        share = np.arange(8 // world) + rank * (8 // world)
        rows = (np.arange(steps)[:, None] * 8 + share).reshape(-1)
        source, index = stream.plan.locate(rows)
        assert (stream._plan(0).rows[0] == share).all(), "a rank has its rows of every batch"
        for number in range(len(sizes)):
            seen[rank][number] = [
                [int(row), int(i)]
                for row, i, s in zip(rows, index, source, strict=True)
                if s == number
            ]
    for number, size in enumerate(sizes):
        order = sorted(pair for rank in seen for pair in rank[number])
        for epoch in range(3):
            windows = [index for _, index in order[epoch * size : (epoch + 1) * size]]
            assert sorted(windows) == list(range(size))


def test_mixture_is_exact_at_every_world_size_and_epoch(tiny: Path) -> None:
    """Rows of a domain are within one of its share after any number of rows, for every rank set."""
    cfg = config("shards", tiny)
    for world in (1, 2, 4):
        plans = [cfg.build("train", seed=1, rank=r, world=world).plan for r in range(world)]
        rows = np.arange(40_000)
        sources = [plan.locate(rows)[0] for plan in plans]
        assert all((s == sources[0]).all() for s in sources)
        counts = np.cumsum(sources[0] == 0)
        assert (np.abs(counts - 0.75 * (rows + 1)) < 1).all()
