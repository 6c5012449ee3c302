"""Probes of continual learning: phases in turn, with keys or values of their own. Floor 1.

Row i of a split is of phase i modulo the number of phases. Training reads the rows of phase 0,
then those of phase 1, and so on; held-out splits hold rows of every phase, so that a model can be
asked at any time for what it learned at any other.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nl.config import ConfigError, register, require
from nl.core.batch import IGNORE
from nl.data.order import SequentialPlan
from nl.data.phases import PhaseConfig, PhasePlan
from nl.data.probe import BUCKETS, Guess, Ints, ProbeConfig, Row
from nl.data.probe_recall import MqarConfig, last_of, pair_name, recalled, wrong_values
from nl.data.stream import COUNT, ENDLESS_ROWS, RowStream


@dataclass(frozen=True, kw_only=True)
class PhasedProbeConfig(ProbeConfig):
    """A probe whose training goes through phases; val_size and test_size count all of them."""

    phases: int = 5
    """P, phases in turn; after the last the first begins again."""
    phase_steps: int = 100
    """Global micro-batches of a phase: optimizer steps times train.grad_accum."""

    family = "continual"

    def __post_init__(self) -> None:
        require(self.phases >= 2, f"phases: {self.phases}; must be >= 2.")
        require(self.phase_steps >= 1, f"phase_steps: {self.phase_steps}; must be >= 1.")
        for name in ("val_size", "test_size"):
            value = getattr(self, name)
            require(value >= self.phases, f"{name}: {value}; {self.phases} phases need as many.")
        super().__post_init__()

    @abstractmethod
    def phase_row(self, rng: np.random.Generator, phase: int) -> Row:
        """Draw one example of a phase."""

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """Of any phase."""
        return self.phase_row(rng, int(rng.integers(self.phases)))

    def draw(self, rng: np.random.Generator, split: str, number: int) -> Row:
        """Of the phase that the number says."""
        phase = number % self.phases
        row = self.phase_row(rng, phase)
        return row._replace(slices={**row.slices, "phase": np.full(len(row.inputs), phase)})

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val/phase_0`` ...; ``val``, ``test`` and ``test/phase_0`` ... too."""
        return ("train", *(f"val/{name}" for name in self._names()))

    def _names(self) -> list[str]:
        return [f"phase_{number}" for number in range(self.phases)]

    def rows(self, split: str, seed: int, index: Ints) -> list[Row]:
        """Rows of a split, or those of one phase of it, by their numbers."""
        name, _, phase = split.partition("/")
        if not phase:
            return super().rows(split, seed, index)
        names = self._names()
        if name not in BUCKETS or phase not in names:
            known = f"{', '.join(BUCKETS)}, or one of them with /{names[0]} to /{names[-1]}"
            raise ConfigError(f"split {split!r} of {self.kind}: use {known}.")
        return super().rows(name, seed, index * self.phases + names.index(phase))

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless, phase after phase; any other goes once through its rows."""
        self.rows(split, seed, np.arange(1))
        size = self._size(split)
        plan: SequentialPlan | PhasePlan = SequentialPlan([size])
        fetch = self._fetch(split, seed)
        if split == "train":
            phases = [PhaseConfig(domain=name, steps=self.phase_steps) for name in self._names()]
            sizes = dict.fromkeys(self._names(), self.train_size or ENDLESS_ROWS)
            plan = PhasePlan(phases, sizes, self.batch_size, seed)

        def numbered(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
            return fetch(source, index * self.phases + source if split == "train" else index)

        return RowStream(
            plan,
            numbered,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{self}, {split}, seed {seed}",
            scored=COUNT,
        )

    def _size(self, split: str) -> int:
        name, _, phase = split.partition("/")
        size = int(getattr(self, f"{name}_size"))
        return size // self.phases if phase else size


@register("stream", "cl_mqar_stream")
@dataclass(frozen=True, kw_only=True)
class ClMqarStreamConfig(PhasedProbeConfig):
    """Recall as in mqar, in every phase with keys and values that no other phase has.

    What a phase teaches about recall serves the next; what is forgotten are its tokens.
    """

    length: int = 64
    """L, tokens of a row; even, at least 4 N."""
    pairs: int = 4
    """N."""
    vocab: int = 64
    """V, even: V - 1 ids per phase, keys and values, and one that fills."""
    power: float = 0.01
    """Exponent of the gaps; small: most queries come soon, 1: evenly."""

    def check(self) -> None:
        """See the base class."""
        assert self._one

    @functools.cached_property
    def _one(self) -> MqarConfig:
        fields = {name: getattr(self, name) for name in ("length", "pairs", "vocab", "power")}
        return MqarConfig(**fields)

    def phase_row(self, rng: np.random.Generator, phase: int) -> Row:
        """See the base class."""
        row = self._one.row(rng, "train")
        shift = phase * (self.vocab - 1)
        inputs = np.where(row.inputs > 0, row.inputs + shift, 0)
        targets = np.where(row.targets == IGNORE, IGNORE, row.targets + shift)
        return Row(inputs, targets, row.slices)

    def _plain(self, tokens: Ints) -> Ints:
        """Ids as in phase 0."""
        return np.asarray(np.where(tokens > 0, (tokens - 1) % (self.vocab - 1) + 1, tokens))

    def oracle(self, inputs: Ints) -> Ints:
        """The token after the first time that the token was there."""
        return recalled(inputs, first=True)

    def shortcuts(self) -> dict[str, Guess]:
        """The value seen last."""

        def last(inputs: Ints) -> Ints:
            plain = self._plain(inputs)
            shift = (inputs - plain).max(axis=1, keepdims=True)
            return np.asarray(last_of(plain, self.vocab // 2) + shift)

        return {"last value": last}

    def bound(self) -> float:
        """See mqar."""
        return self._one.bound()

    def chance(self) -> float:
        """Among the values of the row."""
        return self._one.chance()

    def tokens(self) -> int:
        """Ids of all phases."""
        return 1 + self.phases * (self.vocab - 1)

    def name(self, token: int) -> str:
        """Keys k, values v, after the number of the phase."""
        if token == 0:
            return "."
        phase = (token - 1) // (self.vocab - 1)
        return f"{phase}{pair_name(int(self._plain(np.asarray(token))), self.vocab // 2)}"

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """A value of another key; a value of another phase; anything else that is not there."""
        plain = self._plain(inputs)
        shift = (inputs - plain).max(axis=1, keepdims=True)
        values = {
            v for v in range(1, self.tokens()) if self._plain(np.asarray(v)) >= self.vocab / 2
        }
        found = wrong_values(inputs, guess, values)
        mine = (guess > shift) & (guess < shift + self.vocab)
        outside = found["out of context"] == 1
        return {
            "value of another key": found["value of another key"],
            "token of another phase": (outside & ~mine & (guess > 0)).astype(np.int64),
            "out of context": (outside & (mine | (guess <= 0))).astype(np.int64),
        }


@register("stream", "cl_remap")
@dataclass(frozen=True, kw_only=True)
class ClRemapConfig(PhasedProbeConfig):
    """The same keys in all phases, with other values in each: the new ones overwrite the old.

    A phase has one map from keys to values, which has to get into the weights. A row shows a few of
    its pairs, which tell its phase, then asks for every key once.
    """

    keys: int = 16
    """Keys, in all phases the same."""
    values: int = 16
    """Values; a key has another one in every phase."""
    shown: int = 4
    """Pairs that a row shows, of different keys."""
    map_seed: int = 0
    """Seed of the maps; seed it from the run (map_seed: ${seed}) where seeds shall differ in it."""

    shared = "the maps from keys to values; held out are rows, what is shown and the order of keys"

    def check(self) -> None:
        """See the base class."""
        fits = self.values >= max(2, self.phases)
        require(fits, f"values: {self.values}; {self.phases} phases need as many at least.")
        fits = 1 <= self.shown < self.keys
        require(fits, f"shown: {self.shown}; must be 1 to keys - 1 ({self.keys - 1}).")
        require(self.map_seed >= 0, f"map_seed: {self.map_seed}; must be >= 0.")

    @functools.cached_property
    def maps(self) -> Ints:
        """(P, keys) ids of values; the values of a key differ in all phases."""
        rng = np.random.default_rng([self.map_seed, self.keys, self.values])
        drawn = rng.permuted(np.tile(np.arange(self.values), (self.keys, 1)), axis=1)
        return np.ascontiguousarray(drawn[:, : self.phases].T) + self.keys

    def phase_row(self, rng: np.random.Generator, phase: int) -> Row:
        """See the base class."""
        told, asked = rng.permutation(self.keys)[: self.shown], rng.permutation(self.keys)
        values, start = self.maps[phase], 2 * self.shown
        inputs = np.concatenate([np.stack([told, values[told]], axis=1).reshape(-1), asked])
        targets = np.concatenate([np.full(start, IGNORE), values[asked]])
        seen = np.concatenate([np.zeros(start, dtype=np.int64), np.isin(asked, told)])
        return Row(inputs, targets, {"shown in the row": seen})

    def _phase_of(self, inputs: Ints) -> Ints:
        """The phase of every row, told by its first pair."""
        return np.asarray((self.maps[:, inputs[:, 0]] == inputs[:, 1]).argmax(axis=0))

    def _by(self, phases: Ints, inputs: Ints) -> Ints:
        """What the map of a phase says, per row."""
        return np.asarray(self.maps[phases[:, None], np.minimum(inputs, self.keys - 1)])

    def oracle(self, inputs: Ints) -> Ints:
        """The map of the phase that the first pair tells."""
        return self._by(self._phase_of(inputs), inputs)

    def shortcuts(self) -> dict[str, Guess]:
        """The newest map for every row; recall of what the row shows, nothing else."""

        def newest(inputs: Ints) -> Ints:
            return self._by(np.full(len(inputs), self.phases - 1), inputs)

        def from_row(inputs: Ints) -> Ints:
            return recalled(inputs, first=True, reads=self.keys)

        return {"newest map": newest, "shown pairs alone": from_row}

    def bound(self) -> float:
        """One phase of all is the newest; a share of the keys is shown."""
        return max(1 / self.phases, self.shown / self.keys) + 0.1

    def chance(self) -> float:
        """Among the values."""
        return 1 / self.values

    def tokens(self) -> int:
        """Keys and values."""
        return self.keys + self.values

    def name(self, token: int) -> str:
        """Keys k, values v."""
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """What the key was in an earlier phase, what it is in a later one; never a value of it."""
        said = self.maps[:, np.minimum(inputs, self.keys - 1)] == guess
        number, mine = np.arange(self.phases)[:, None, None], self._phase_of(inputs)[:, None]
        earlier, later = (said & (number < mine)).any(0), (said & (number > mine)).any(0)
        kinds = {"value of an earlier phase": earlier, "value of a later phase": later}
        kinds["never its value"] = ~said.any(0)
        return {name: held.astype(np.int64) for name, held in kinds.items()}
