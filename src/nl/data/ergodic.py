"""stream=ergodic: sequences of known sources, whose best possible loss is known. Floor 1.

Names of sources are those of ``nl.core.ergodic.specs``. A window is W symbols of one sequence that
begins stationary; before it stands a mark (``bos``), so that the first symbol is predicted too.
Row i of training is a function of (configuration, seed, i), row i of a component's held-out rows of
(environment, split, the component's name, i): whatever else is trained on, and with whatever seed,
a component is asked the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.ergodic import Mixture, Source, SourceError, bayes_filter, expand, parse
from nl.core.ergodic.sources import Floats
from nl.core.seeds import SeedBook
from nl.data.order import Ints, MixturePlan, Plan, SequentialPlan
from nl.data.phases import PhaseConfig, PhasePlan
from nl.data.probe import Probes
from nl.data.stream import ENDLESS_ROWS, RowStream, stream_of

HELD = ("val", "test")
Order = Literal["mixture", "switching", "sequential"]


class Windows(NamedTuple):
    """Held-out windows; P predictions of each, C names.

    Attributes:
        inputs, targets: (N, P) ids of the model.
        tokens: (N, W) symbols, without the mark.
        component: (N, W) of each symbol, as a place in ``names``.
        names: components in the order of their codes.
    """

    inputs: Ints
    targets: Ints
    tokens: Ints
    component: Ints
    names: tuple[str, ...]


@register("stream", "ergodic")
@dataclass(frozen=True, kw_only=True)
class ErgodicConfig(StreamConfig):
    """Windows of ergodic sources with an exact predictor. Inputs and targets (B, P) ids."""

    components: tuple[str, ...] = ("mess3:0.05:0.85", "mess3:0.15:0.6")
    """Sources that are trained on, by name: mess3:x:a, coin:p, chain:V:m:alpha:seed, hmm:V:S:seed,
    unifilar:V:S:seed, z1r, golden, even, rrxor, file:<path.json>; @p<k> permutes symbols, @+<k>
    moves them; a range a..b makes several (chain:5:1:0.5:0..7)."""
    library: tuple[str, ...] = ()
    """Sources with held-out windows, the components among them: the same windows for all runs that
    have the same library. Empty: the components."""
    weights: tuple[float, ...] = ()
    """Of the components, adding up to 1; empty: equal."""
    order: Order = "mixture"
    """mixture: a component for each window. switching: within a window, component and state are
    drawn again with probability ``hazard`` before each symbol. sequential: one component after the
    other, ``phase_steps`` each, then from the first again."""
    hazard: float = 0.0
    """Probability of a switch (order=switching)."""
    phase_steps: int = 0
    """Global micro-batches of a component: optimizer steps times train.grad_accum
    (order=sequential)."""
    window: int = 64
    """W, symbols of a window."""
    bos: bool = True
    """A mark before every window, with the id behind the alphabet; W predictions. false: W - 1."""
    environment: int = 0
    """Seed of held-out windows: part of the task, not of a run."""
    val_size: int = 64
    """Validation windows of each component."""
    test_size: int = 128
    """Test windows of each source of the library."""
    batch_size: int = 32
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        least = {"window": 2, "environment": 0, "val_size": 1, "test_size": 1, "batch_size": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            require(value >= smallest, f"{name}: {value}; must be >= {smallest}.")
        switching, sequential = self.order == "switching", self.order == "sequential"
        need = "missing; order={0} needs {1}."
        require(switching or not self.hazard, f"hazard: {self.hazard}; has no effect without "
                "order=switching.")  # fmt: skip
        fits = not switching or 0 < self.hazard <= 1
        require(fits, f"hazard: {self.hazard}; order=switching needs one above 0, at most 1.")
        unused = sequential or not self.phase_steps
        require(unused, f"phase_steps: {self.phase_steps}; has no effect without order=sequential.")
        if sequential:
            require(self.phase_steps >= 1, f"phase_steps: {need.format('sequential', '1 or more')}")
            require(not self.weights, f"weights: {list(self.weights)}; components take turns with "
                    "order=sequential: leave them out.")  # fmt: skip
        require(not (switching and self.library), "library: has no effect with order=switching, "
                "whose windows hold all components: leave it out.")  # fmt: skip
        self._check_sources()

    def _check_sources(self) -> None:
        for name in ("components", "library"):
            try:
                for one in expand(getattr(self, name)):
                    parse(one)
            except SourceError as error:
                raise ConfigError(f"{name}: {error}.") from error
        require(bool(self.components), "components: empty; name one source at least.")
        missing = [name for name in self.names if name not in self.all_names]
        require(not missing, f"library: {list(self.library)}; lacks the component {missing[:1]}.")
        try:
            mixture = Mixture(tuple(self._sources), self.weights, self.hazard)
            assert mixture.weights.size
        except SourceError as error:
            raise ConfigError(f"{error}.") from error

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The components, ranges written out."""
        return expand(self.components)

    @functools.cached_property
    def all_names(self) -> tuple[str, ...]:
        """Sources with held-out windows."""
        return expand(self.library) or self.names

    @functools.cached_property
    def alphabet(self) -> int:
        """Symbols of all sources together."""
        return max(parse(name).alphabet for name in self.all_names)

    @property
    def _sources(self) -> list[Source]:
        return [self._source(name) for name in self.names]

    def _source(self, name: str) -> Source:
        found = parse(name)
        return found.relabelled(np.arange(found.alphabet), self.alphabet, name)

    @functools.cached_property
    def exact(self) -> Mixture:
        """What a model of this stream can know at best."""
        return Mixture(tuple(self._sources), self.weights, self.hazard)

    def exact_one(self, name: str) -> Mixture:
        """One source of the library by itself, in the alphabet of all."""
        return Mixture((self._source(name),))

    @property
    def phases(self) -> tuple[PhaseConfig, ...]:
        """Components in turn; empty where they are not."""
        steps = self.phase_steps
        return tuple(PhaseConfig(domain=name, steps=steps) for name in self.names) if steps else ()

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``; ``test`` can be built too."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """Symbols, and the mark."""
        return self.alphabet + self.bos

    def windows(self, split: str, names: Sequence[str] = (), count: int = 0) -> Windows:
        """Held-out windows, component after component.

        Args:
            split: ``val`` or ``test``.
            names: of the library; empty: all of it.
            count: of each; 0: as many as the split has.

        Raises:
            ConfigError: no such split, or a name outside the library.
        """
        require(split in HELD, f"split: {split!r}; windows are held out of {', '.join(HELD)}.")
        count = count or int(getattr(self, f"{split}_size"))
        if self.order == "switching":
            key = SeedBook(self.environment).seed(self.kind, split, self.hazard_name)
            drawn = self.exact.sample(
                self._uniform(self.exact, key, np.arange(len(self.names) * count))
            )
            return self._windows(drawn.tokens, drawn.component, self.names)
        tokens = [self._held(split, name, np.arange(count)) for name in names or self.all_names]
        codes = [self.all_names.index(name) for name in names or self.all_names]
        component = np.repeat(codes, count)[:, None].repeat(self.window, axis=1)
        return self._windows(np.concatenate(tokens), component, self.all_names)

    @property
    def hazard_name(self) -> str:
        """What a switching process is, for its seed."""
        return f"{'+'.join(self.names)} {self.exact.weights.tolist()} {self.hazard}"

    def _windows(self, tokens: Ints, component: Ints, names: tuple[str, ...]) -> Windows:
        inputs, targets = self._pair(tokens)
        return Windows(inputs, targets, tokens, component, names)

    def _pair(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Inputs and targets (B, P) of symbols (B, W)."""
        if not self.bos:
            return tokens[:, :-1], tokens[:, 1:]
        mark = np.full((len(tokens), 1), self.alphabet, dtype=np.int64)
        return np.concatenate([mark, tokens[:, :-1]], axis=1), tokens

    def _held(self, split: str, name: str, index: Ints) -> Ints:
        """Symbols (B, W) of rows of one source."""
        if name not in self.all_names:
            raise ConfigError(f"component {name!r}: the stream has {', '.join(self.all_names)}.")
        source, key = self.exact_one(name), SeedBook(self.environment).seed(self.kind, split, name)
        return source.sample(self._uniform(source, key, index)).tokens

    def _uniform(self, mixture: Mixture, key: int, index: Ints) -> Floats:
        begin, each = mixture.uniforms
        size = begin + each * self.window
        return np.stack([stream_of(key, int(row)).random(size) for row in index])

    def examples(self, split: str, seed: int) -> Probes:
        """Held-out windows of the components, with the phase that each belongs to."""
        del seed
        found = self.windows(split, self.names)
        codes = {self.all_names.index(name): place for place, name in enumerate(self.names)}
        phase = np.array([codes[int(code)] for code in found.component[:, 0]])
        whole = phase[:, None].repeat(found.targets.shape[1], axis=1)
        return Probes(found.inputs, found.targets, {"phase": whole})

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """No kinds of wrong answers are told apart."""
        return {}

    def floors(self, split: str) -> dict[str, list[float]]:
        """Nats per target that knowing a component leaves, for each, on its own held-out windows.

        ``entropy`` is the expectation, ``paired`` what the symbols of these windows cost.
        """
        found: dict[str, list[float]] = {"entropy": [], "paired": []}
        for name in self.names:
            told = bayes_filter(self.exact_one(name), self.windows(split, (name,)).tokens)
            skip = 0 if self.bos else 1
            found["entropy"].append(float(told.entropy[:, skip:].mean()))
            found["paired"].append(float(told.nll[:, skip:].mean()))
        return found

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` and ``test`` go once through the components' windows.

        Raises:
            ConfigError: another split.
        """
        if split not in ("train", *HELD):
            raise ConfigError(f"split {split!r} of {self.kind}: use train, val or test.")
        rows = Rows(self, split, seed)
        plan: Plan = MixturePlan([ENDLESS_ROWS], [self.kind], [1], seed)
        if split != "train":
            plan = SequentialPlan([int(getattr(self, f"{split}_size")) * len(self.names)])
        elif self.phases:
            plan = PhasePlan(
                self.phases, dict.fromkeys(self.names, ENDLESS_ROWS), self.batch_size, seed
            )
        return RowStream(
            plan,
            rows,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{self}, {split}, seed {seed}",
        )


class Rows:
    """Rows of a split by their numbers."""

    rows_at_once = 1024

    def __init__(self, config: ErgodicConfig, split: str, seed: int) -> None:
        self.config, self.split = config, split
        book = SeedBook(seed)
        self.keys = [book.seed(config.kind, "train", name) for name in config.names]
        self.key = book.seed(config.kind, "train")
        self.held = None if split == "train" else config.windows(split, config.names)

    def __call__(self, source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, P); held-out rows take the components by turns."""
        config = self.config
        if self.held is not None:
            each = len(self.held.inputs) // len(config.names)
            turn, row = index % len(config.names), index // len(config.names)
            place = index if config.order == "switching" else turn * each + row
            pair = self.held.inputs[place], self.held.targets[place]
        elif config.phases:
            drawn = np.concatenate(
                [self._uniform(self.keys[int(c)], i) for c, i in zip(source, index, strict=True)]
            )
            pair = config._pair(config.exact.sample(drawn, source).tokens)
        else:
            drawn = config._uniform(config.exact, self.key, index)
            pair = config._pair(config.exact.sample(drawn).tokens)
        return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])

    def _uniform(self, key: int, row: int) -> Floats:
        return self.config._uniform(self.config.exact, key, np.array([row]))
