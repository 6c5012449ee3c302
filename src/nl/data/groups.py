"""stream=group_composition: words over a cyclic group, encoded by shifts of a template. Floor 1.

Element g of C_n is shown as L_g x, (L_g x)(h) = x(h - g), for a centred template x in R^n; the
target of g_1 ... g_k is L_{g_1 ... g_k} x. A zero prediction has mean squared error Var(x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.seeds import SeedBook
from nl.data.order import Ints, KeyedPermutation, MixturePlan, Plan, SequentialPlan
from nl.data.stream import Fetch, RowStream

LARGEST_SPACE = 1 << 62
AMPLITUDES = (100.0, 10.0)
Floats = npt.NDArray[np.float64]


@register("stream", "group_composition")
@dataclass(frozen=True, kw_only=True)
class GroupCompositionConfig(StreamConfig):
    """Compose k elements of C_n. Inputs (B, k, n), targets (B, n) or (B, k - 1, n) floats."""

    order: int = 5
    """n, the order of the cyclic group."""
    length: int = 2
    """k, the number of elements to compose."""
    template: Literal["onehot", "fourier"] = "onehot"
    """onehot: 1 at the identity. fourier: random frequencies of falling power. Both centred."""
    frequencies: int = 1
    """Number of frequencies of the fourier template, at most n // 2."""
    template_seed: int = 0
    """Draws the frequencies and phases of the fourier template."""
    targets: Literal["last", "prefixes"] = "last"
    """last: the product of all. prefixes: every product of the first 2, 3, ... k."""
    held_out: float = 0.0
    """Share of all n**k words that is kept for validation; 0 validates on every word."""
    batch_size: int = 25
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        for name, least in (("order", 2), ("length", 2), ("batch_size", 1), ("template_seed", 0)):
            value = getattr(self, name)
            require(value >= least, f"{name}: {value}; must be >= {least}.")
        require(
            self.order**self.length < LARGEST_SPACE,
            f"length: {self.order}**{self.length} words; must be below 2**62, lower length.",
        )
        require(
            1 <= self.frequencies <= self.order // 2,
            f"frequencies: {self.frequencies}; must be 1 to order // 2 = {self.order // 2}.",
        )
        require(0 <= self.held_out < 1, f"held_out: {self.held_out}; must be in [0, 1).")

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """None: the inputs are no tokens."""
        return None

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless, every word once per epoch; ``val`` goes once through its words."""
        if split not in self.splits():
            raise ConfigError(f"split {split!r} of group_composition: use train or val.")
        space = self.order**self.length
        held = round(self.held_out * space)
        first, size = (held, space - held) if split == "train" else (0, held or space)
        plan: Plan = SequentialPlan([size])
        if split == "train":
            plan = MixturePlan([size], ["words"], [1], seed)
        return RowStream(
            plan,
            self._fetch(first, KeyedPermutation(space, SeedBook(seed).seed("words"))),
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{self}, {split}, seed {seed}",
        )

    def values(self) -> Floats:
        """The template (n,), zero mean."""
        if self.template == "onehot":
            return centred(np.eye(self.order)[0])
        return fourier_template(self.order, self.frequencies, self.template_seed)

    def _fetch(self, first: int, words: KeyedPermutation) -> Fetch:
        shown = torch.from_numpy(orbit(self.values()).astype(np.float32))
        table = cyclic_table(self.order)

        def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
            del source
            elements = digits(words(index + first, np.zeros_like(index)), self.order, self.length)
            products = prefix_products(elements, table)[:, 1:]
            chosen = products[:, -1] if self.targets == "last" else products
            return shown[torch.from_numpy(elements)], shown[torch.from_numpy(chosen)]

        return fetch


def cyclic_table(order: int) -> Ints:
    """Cayley table (n, n) of C_n: entry (g, h) is g + h modulo n."""
    elements = np.arange(order, dtype=np.int64)
    return (elements[:, None] + elements) % order


def orbit(template: Floats) -> Floats:
    """All shifts (n, n) of a template: row g is L_g x."""
    return np.asarray([np.roll(template, g) for g in range(template.size)])


def digits(index: Ints, base: int, length: int) -> Ints:
    """Words (B, length) of element numbers; the first position changes fastest."""
    return (index[:, None] // base ** np.arange(length, dtype=np.int64)) % base


def prefix_products(elements: Ints, table: Ints) -> Ints:
    """Products (B, k) of the first 1, 2, ... k elements of each word (B, k)."""
    products = elements.copy()
    for position in range(1, elements.shape[1]):
        products[:, position] = table[products[:, position - 1], elements[:, position]]
    return products


def centred(values: Floats) -> Floats:
    """The values minus their mean."""
    return np.asarray(values - values.mean())


def fourier_template(order: int, frequencies: int, seed: int) -> Floats:
    """A real template of unit variance with ``frequencies`` random modes of falling amplitude.

    Mode j has amplitude sqrt(a_j), a_j evenly spaced from 100 to 10, and a random phase.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.arange(1, order // 2 + 1), size=frequencies, replace=False)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=frequencies)
    spectrum: npt.NDArray[Any] = np.zeros(order, dtype=np.complex128)
    for frequency, power, phase in zip(
        chosen, np.linspace(*AMPLITUDES, frequencies), phases, strict=True
    ):
        value = np.sqrt(power) * np.exp(1j * phase)
        spectrum[frequency] = value
        spectrum[-frequency] = np.conj(value)
    values = centred(np.fft.ifft(spectrum).real)
    return np.asarray(values / values.std())
