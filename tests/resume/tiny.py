"""Tiny registered parts for runs that last milliseconds; as a script: train one run from JSON."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import nl.assembly  # registers the optimizers and schedules that tiny runs name
from nl.config import register, structure
from nl.config.groups import ModelConfig, ObjectiveConfig, StreamConfig
from nl.config.run import RunConfig
from nl.core.batch import Batch
from nl.core.output import Knobs, Output, StepOut
from nl.core.state import detach, state_type

VOCAB = 11


@state_type
class TinyState(NamedTuple):
    hidden: Tensor
    position: int


@register("model", "tiny")
@dataclass(frozen=True, kw_only=True)
class TinyConfig(ModelConfig):
    dim: int = 8
    vocab_size: int = VOCAB
    dropout: float = 0.1

    def build(self) -> nn.Module:
        return Tiny(self)


class Tiny(nn.Module):
    """A recurrent model with dropout (random numbers), a carried State and tied weights."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.cell = nn.GRUCell(config.dim, config.dim)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.head.weight = self.embed.weight

    def init_state(self, batch: int) -> TinyState:
        return TinyState(torch.zeros(batch, self.config.dim), 0)

    def shard_units(self) -> list[nn.Module]:
        return [self.cell]

    def flops_per_token(self) -> int:
        return 2 * sum(p.numel() for p in self.parameters())

    def forward(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output:
        state = state or self.init_state(len(inputs))
        hidden, pred = state.hidden, []
        for t in range(inputs.shape[1]):
            hidden = self.cell(self.drop(self.embed(inputs[:, t])), hidden)
            pred.append(self.head(hidden))
        return Output(torch.stack(pred, 1), TinyState(hidden, state.position + inputs.shape[1]))


@register("objective", "tiny")
@dataclass(frozen=True, kw_only=True)
class TinyObjectiveConfig(ObjectiveConfig):
    def build(self, model: nn.Module) -> nn.Module:
        return TinyObjective(model)


def crash(name: str) -> None:
    """A signal to this process, or its end without a word."""
    if name == "EXIT":
        os._exit(1)
    if name == "MEMORY":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, limits[1]))
        try:
            torch.zeros(2**28)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        return
    os.kill(os.getpid(), getattr(signal, name))


def hang(where: str, index: int) -> None:
    """Wait for ever where the environment asks for it."""
    if os.environ.get("TINY_HANG_IN") == where and index == int(
        os.environ.get("TINY_HANG_AT", "-1")
    ):
        threading.Event().wait()


def poisoned(out: Output, index: int) -> Output:
    """One element of loss, gradient or State is TINY_POISON's number at TINY_POISON_AT."""
    if index != int(os.environ.get("TINY_POISON_AT", "-1")):
        return out
    where, _, number = os.environ["TINY_POISON"].partition(":")

    def poison(tensor: Tensor) -> Tensor:
        bad = tensor.detach().clone()
        bad.view(-1)[0] = float(number)
        return bad

    if where == "state":
        return Output(out.pred, out.state._replace(hidden=poison(out.state.hidden)))
    if where == "grad":
        out.pred.register_hook(poison)
        return out
    return Output(out.pred * float(number), out.state)


class TinyObjective(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        if self.training:
            hang("step", batch.tags["index"])
        out = self.model(batch.inputs, state, knobs)
        if self.training:
            out = poisoned(out, batch.tags["index"])
        loss = nn.functional.cross_entropy(
            out.pred.flatten(0, 1), batch.targets.flatten(), reduction="sum", ignore_index=-100
        )
        loss = loss * batch.tags.get("scale", 1.0)
        hits = (out.pred.argmax(-1) == batch.targets).sum()
        metrics = {"accuracy_sum": hits, "tiny/norm": out.state.hidden.detach().norm()}
        return StepOut(loss, detach(out.state), metrics)


@register("stream", "tiny")
@dataclass(frozen=True, kw_only=True)
class TinyStreamConfig(StreamConfig):
    batch_size: int = 4
    seq_len: int = 5
    bad_rows: tuple[int, ...] = ()
    """Training batches whose loss is multiplied by ``bad_scale``."""
    bad_scale: str = "nan"
    left_out: int = -1
    """First training batch that the stream passes over."""
    left_out_count: int = 1
    """How many it passes over."""
    length: int = -1
    """Training batches before the stream ends; -1: endless."""
    order: ClassVar[str] = "contiguous"

    def splits(self) -> tuple[str, ...]:
        return ("train", "val/a", "val/b")

    def vocab_size(self) -> int:
        return VOCAB

    def build(self, split: str, *, seed: int, rank: int, world: int) -> TinyStream:
        return TinyStream(self, split, seed, (rank, world))


class TinyStream:
    """Stateless order; the environment may ask for a signal to itself before a training batch."""

    def __init__(self, config: TinyStreamConfig, split: str, seed: int, part: tuple[int, int]):
        self.config, self.split, self.seed, self.part, self.index = config, split, seed, part, 0

    def __iter__(self) -> Iterator[Batch]:
        last = 3 if self.split != "train" else self.config.length
        while self.index != last:
            index, self.index = self.index, self.index + 1
            first = self.config.left_out
            left_out = 0 <= first <= index < first + self.config.left_out_count
            if self.split == "train" and left_out:
                continue
            if self.split == "train" and index == int(os.environ.get("TINY_CRASH_AT", "-1")):
                crash(os.environ["TINY_CRASH_SIGNAL"])
            if self.split == "train":
                hang("loader", index)
            yield self._batch(index)

    def _batch(self, index: int) -> Batch:
        salt = sum(map(ord, self.split))
        draw = torch.Generator().manual_seed((self.seed + 1_000_003 * index + salt) % 2**62)
        shape = (self.config.batch_size, self.config.seq_len + 1)
        rows = torch.randint(VOCAB, (shape[0], 1), generator=draw) + torch.arange(shape[1])
        rank, world = self.part
        tokens = rows % VOCAB
        targets = tokens[:, 1:].clone()
        targets[0, : index % 3] = -100
        mine = slice(rank * shape[0] // world, (rank + 1) * shape[0] // world)
        bad = self.split == "train" and index in self.config.bad_rows
        scale = {"scale": float(self.config.bad_scale)} if bad else {}
        weight = int((targets[mine] != -100).sum())
        return Batch(
            tokens[mine, :-1], targets[mine], weight, {"index": index, "rank": rank, **scale}
        )

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


def tiny_run(**changes: Any) -> RunConfig:
    """A tiny run; ``changes`` are dotted keys with ``__`` for the dot, ``train__steps=3``."""
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {"kind": "tiny"},
        "stream": {"kind": "tiny"},
        "objective": {"kind": "tiny"},
        "optim": {"kind": "adamw", "lr": 0.01},
        "schedule": {"kind": "cosine", "warmup": 3},
        "train": {"steps": 20, "carry": True, "device": "cpu", "validate_every": 5},
        "checkpoint": {"every": 4, "keep": 2},
        "logging": {"every": 1},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = data
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return structure(RunConfig, data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    nl.launch(tiny_run(**json.loads(sys.argv[1])), strategy=sys.argv[2])
