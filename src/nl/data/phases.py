"""stream=phases: one domain after another, for experiments on forgetting. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.protocols import Stream
from nl.data.manifest import read_manifest
from nl.data.order import Ints, Shuffler
from nl.data.shard_stream import boundaries, held_out_stream
from nl.data.stream import RowStream
from nl.data.windows import TokenWindows, readable


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One stretch of training on one domain."""

    domain: str
    """The domain it reads."""
    steps: int
    """Global micro-batches: optimizer steps times train.grad_accum."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps: {self.steps}; must be >= 1.")


class PhasePlan:
    """Phases in turn, then from the first again; a domain goes on where its last phase stopped."""

    total: int | None = None

    def __init__(
        self, phases: Sequence[PhaseConfig], sizes: dict[str, int], batch_size: int, seed: int
    ) -> None:
        names = list(sizes)
        self._names = [p.domain for p in phases]
        self._source = np.asarray([names.index(p.domain) for p in phases], dtype=np.int64)
        rows = np.asarray([p.steps * batch_size for p in phases], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(rows)])
        mine = (self._source[:, None] == np.arange(len(names))) * rows[:, None]
        self._per_cycle = mine.sum(axis=0)
        self._before = np.cumsum(mine, axis=0) - mine
        self._shuffle = Shuffler(list(sizes.values()), names, seed)

    def _place(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        cycle, row = np.divmod(rows, self._starts[-1])
        phase = np.searchsorted(self._starts, row, side="right") - 1
        return cycle, phase, row - self._starts[phase]

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        cycle, phase, inside = self._place(rows)
        source = self._source[phase]
        draw = cycle * self._per_cycle[source] + self._before[phase, source] + inside
        return source, self._shuffle(source, draw)

    def tags(self, row: int) -> dict[str, Any]:
        """``phase`` counts on over repetitions; ``domain`` is what it reads."""
        cycle, phase, _ = self._place(np.asarray([row], dtype=np.int64))
        number = int(phase[0])
        return {"phase": int(cycle[0]) * len(self._names) + number, "domain": self._names[number]}


@register("stream", "phases")
@dataclass(frozen=True, kw_only=True)
class PhaseStreamConfig(StreamConfig):
    """Token windows of one domain at a time, as a list of phases."""

    path: str
    """Data directory with a manifest.json, as scripts/data/shard_corpus.py writes it."""
    phases: tuple[PhaseConfig, ...]
    """Phases in order, each {domain, steps}; repeated from the first after the last."""
    seq_len: int = 256
    """Tokens per row."""
    batch_size: int = 8
    """Rows per micro-batch, over all ranks."""
    documents: Literal["ignore", "reset"] = "ignore"
    """reset: a document that begins inside a row begins with a fresh State and knows nothing of
    the one before; the last token of a document has no target."""
    verify: Literal["full", "sample", "header"] | bool = True
    """How much of every shard is compared with the manifest when it is opened. true or full: its
    SHA-256; sample: the digests of a few blocks, drawn anew each time; false or header: sizes and
    header."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(len(self.phases) >= 1, "phases: empty; give at least one {domain, steps}.")

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in order of first appearance."""
        return tuple(dict.fromkeys(phase.domain for phase in self.phases))

    def held_out(self, phase: int) -> str:
        """The validation split of a phase."""
        return f"val/{self.phases[phase % len(self.phases)].domain}"

    def splits(self) -> tuple[str, ...]:
        """``train`` and one ``val/<domain>`` per domain of the phases."""
        known = readable(read_manifest(self.path), "val", self.seq_len, self.domains)
        return ("train", *(f"val/{name}" for name in known))

    def vocab_size(self) -> int | None:
        """The tokenizer's vocabulary."""
        return read_manifest(self.path).tokenizer.vocab_size

    def build(self, split: str, *, seed: int, rank: int, world: int) -> Stream:
        """The stream of ``train`` (endless), or of ``val[/domain]``, ``test[/domain]`` (once)."""
        if split != "train":
            return held_out_stream(self, split, rank=rank, world=world)
        windows = TokenWindows(self.path, "train", self.domains, self.seq_len, self.verify)
        sizes = dict(zip(windows.names, windows.sizes, strict=True))
        order = ", ".join(f"{p.domain} {p.steps}" for p in self.phases)
        plan = PhasePlan(self.phases, sizes, self.batch_size, seed)
        return RowStream(
            plan,
            windows,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"train {windows.digest}, seq_len {self.seq_len}, seed {seed}, {order}",
            boundaries=boundaries(windows, plan, self.documents),
        )


def check_phases(stream: StreamConfig, objective: object) -> None:
    """Refuse an objective that reads phases where the stream has none.

    Raises:
        ConfigError: naming both.
    """
    if not getattr(objective, "reads_phases", False):
        return
    kind = getattr(objective, "kind", "")
    if not getattr(stream, "phases", None):
        raise ConfigError(
            f"objective: {kind} acts when a phase ends, but stream={stream.kind} has no phases; "
            "choose stream=phases, stream=replay or stream=tasks."
        )
    if getattr(stream, "joint", False):
        raise ConfigError(
            f"stream.joint: true; objective={kind} acts when a phase ends: set it to false."
        )
    if not getattr(stream, "announce", True):
        raise ConfigError(
            f"stream.announce: false; objective={kind} acts when a phase ends: set it to true."
        )
