"""What one train step of a run holds in memory, found without holding it. Floor 8.

The step is taken with fake tensors: shapes, dtypes and lifetimes are real, numbers are not there.
Every layer of a kind costs the same, so models of one and of two cycles of blocks say what all of
them cost. The peak of few rows is at another moment than that of many, so three sizes of a batch
say what others cost.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nl.bench.flops import algorithmic_flops
from nl.bench.live import LiveBytes
from nl.config import require
from nl.config.run import RunConfig
from nl.dist.fsdp import read_between_units

Build = Callable[[RunConfig], tuple[nn.Module, torch.optim.Optimizer]]
"""Objective and optimizer of a run: ``nl.assembly`` has it."""
FP32 = 4
ROWS = (1, 4, 16)
"""Batches that are measured."""


@dataclass(frozen=True)
class Footprint:
    """One step on one device, in bytes where nothing else is said.

    Attributes:
        parameters: how many numbers.
        between: how many of them lie outside shard units or are read between their passes.
        taught: whether the model writes levels after the head has spoken.
        tiles: parts of a row that go through all units one after the other.
        unit: how many numbers the largest shard unit has beside those.
        optimizer: the optimizer's state.
        samples: activations, State and temporaries at their peak by rows, few rows first.
        flops: training FLOPs per token, writes included.
    """

    parameters: int
    between: int
    taught: bool
    tiles: int
    unit: int
    optimizer: float
    samples: tuple[tuple[int, float], ...]
    flops: float
    given_back: bool = True
    """Whether units are gathered for one use at a time."""

    def activations(self, rows: int) -> float:
        """Activations, State and temporaries of a micro-batch at their peak."""
        pairs = list(itertools.pairwise(self.samples))
        below = [pair for pair in pairs if pair[0][0] <= rows]
        (few, less), (many, more) = below[-1] if below else pairs[0]
        return less + (rows - few) * (more - less) / (many - few)

    def whole(self, rows: int) -> float:
        """Everything a device holds that shares nothing."""
        return 2 * FP32 * self.parameters + self.optimizer + self.activations(rows)


def footprint(run: RunConfig, build: Build, tell: Callable[[str], None] | None = None) -> Footprint:
    """Of a run with a language model, for any number of rows.

    Args:
        run: what is planned.
        build: its objective and optimizer.
        tell: gets a line before every step that is counted; each may take half a minute.

    Raises:
        ConfigError: the model is none, or its layers are no whole number of cycles of its blocks.
    """
    model: Any = run.model
    stream: Any = run.stream
    require(
        hasattr(model, "kinds") and hasattr(stream, "seq_len"),
        f"model: {run.model.kind}, stream: {run.stream.kind}; a plan is made for language models "
        "over tokens.",
    )
    cycle = len(model.kinds)
    require(
        model.layers % cycle == 0,
        f"model.layers: {model.layers}; a plan needs a multiple of the {cycle} block kinds.",
    )
    cycles = model.layers // cycle
    cells: dict[tuple[int, int], _Step] = {}
    for n, (c, r) in enumerate(itertools.product((1, 2), ROWS), 1):
        if tell is not None:
            shape = f"layers {c * cycle} of {model.layers}, rows {r}, {stream.seq_len} tokens each"
            tell(f"counting step {n} of {2 * len(ROWS)}: {shape}")
        cells[c, r] = _step(_with(run, c * cycle), build, r)

    def grown(rows: int, key: str) -> float:
        one, two = (getattr(cells[c, rows], key) for c in (1, 2))
        return float(one + (cycles - 1) * (two - one))

    with FakeTensorMode():
        whole = model.build()
        inside, between = _split(whole)
        return Footprint(
            parameters=sum(p.numel() for p in whole.parameters()),
            between=between,
            taught=whole.taught,
            tiles=math.ceil(stream.seq_len / min(model.cms.periods)) if whole.taught else 1,
            unit=inside,
            optimizer=grown(1, "optimizer"),
            samples=tuple((rows, grown(rows, "activations")) for rows in ROWS),
            flops=algorithmic_flops(whole, stream.seq_len),
        )


@dataclass(frozen=True)
class _Step:
    optimizer: int
    activations: int


def _with(run: RunConfig, layers: int) -> RunConfig:
    model: Any = run.model
    return replace(run, model=replace(model, layers=layers))


def _split(model: Any) -> tuple[int, int]:
    """Numbers of the largest unit without, and of all units and the rest with, what is between."""
    units = list(model.shard_units())
    between = {p for u in units for p in read_between_units(u)}
    inside = [sum(p.numel() for p in u.parameters() if p not in between) for u in units]
    return max(inside), sum(p.numel() for p in model.parameters()) - sum(inside)


def _step(run: RunConfig, build: Build, rows: int) -> _Step:
    """One step with gradients that are there already, so that they are not counted."""
    model: Any = run.model
    stream: Any = run.stream
    with FakeTensorMode():
        objective, optimizer = build(run)
        network: Any = getattr(objective, "model", objective)
        for parameter in objective.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tokens = torch.randint(0, model.vocab_size, (rows, stream.seq_len + 1))
        with LiveBytes() as live:
            with autocast(run):
                nll, out = network.nll(tokens[:, :-1], tokens[:, 1:], keep=run.train.carry)
            nll.sum().backward()
            del nll, out
        optimizer.step()
        held = [t for s in optimizer.state.values() for t in _tensors(s)]
        return _Step(sum(t.nbytes for t in held), live.peak)


def autocast(run: RunConfig) -> contextlib.AbstractContextManager[Any]:
    """The compute precision of a run, on the CPU that fake tensors are on."""
    if run.train.precision == "bf16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return [t for part in state for t in _tensors(part)]
    return []
