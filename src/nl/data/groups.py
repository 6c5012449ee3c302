"""stream=group_composition: words over a finite group, shown by a moved template. Floor 1.

Element g is shown as L_g x, (L_g x)(h) = x(g^-1 h), for a centred template x on the group; the
target of g_1 ... g_k is L_{g_1 ... g_k} x, the product taken from left to right. A zero prediction
has mean squared error Var(x).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nl.config import ConfigError, defaults_of, register, require, unstructure
from nl.config.groups import StreamConfig
from nl.core.groups import FiniteGroup, group_of, parse_group
from nl.core.groups.finite import GroupError
from nl.core.seeds import SeedBook
from nl.data import group_templates as templates
from nl.data.order import Ints, KeyedPermutation, MixturePlan, Plan, SequentialPlan
from nl.data.stream import Fetch, RowStream

LARGEST_SPACE = 1 << 62
DRAWS = 1 << 40
"""Different draws of an online stream before they repeat."""
Floats = npt.NDArray[np.float64]
Template = Literal["onehot", "fourier", "gaussian", "powers", "file"]


@register("stream", "group_composition")
@dataclass(frozen=True, kw_only=True)
class GroupCompositionConfig(StreamConfig):
    """Compose k elements of a group of N. Inputs (B, k, N), targets (B, N) or (B, k - 1, N)."""

    row_kind: ClassVar[str] = "words"
    """Elements of a group."""

    group_name: str = "C5"
    """C10, C3xC3, D3, S4, A5, O (rotations of the cube), Q8, H3, products, or a JSON file with a
    multiplication table."""
    length: int = 2
    """k, the number of elements to compose."""
    template: Template = "onehot"
    """onehot; fourier: frequencies of falling power (C_n and C_p x C_q); gaussian: bells (C_n);
    powers: given power per irrep; file. All are centred."""
    template_at: int = 0
    """onehot: the element."""
    template_scale: float = 1.0
    """onehot: the value there."""
    frequencies: int = 1
    """fourier: number of frequencies. gaussian: number of bells."""
    amplitudes: tuple[float, float] = (100.0, 10.0)
    """fourier: squared amplitudes of the first and of the last frequency."""
    powers: dict[str, float] = field(default_factory=dict)
    """powers: name of an irrep (1b, 2a, ...; the error of a wrong one lists them) and its power."""
    template_file: str | None = None
    """file: .npy or JSON list with one number per element."""
    template_seed: int = 0
    """fourier, gaussian: draws frequencies, phases, places."""
    targets: Literal["last", "prefixes"] = "last"
    """last: the product of all. prefixes: every product of the first 2, 3, ... k."""
    sampling: Literal["epochs", "fresh"] = "epochs"
    """epochs: every word once per epoch. fresh: independent draws, an online stream."""
    held_out: float = 0.0
    """Share of all N**k words that is kept for validation; 0 validates on every word."""
    val_words: int = 0
    """Validate on at most so many words (a fixed random choice); 0: all of them."""
    batch_size: int = 25
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        least = {"length": 2, "batch_size": 1, "template_seed": 0, "frequencies": 1, "val_words": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            require(value >= smallest, f"{name}: {value}; must be >= {smallest}.")
        group = self.finite_group()
        require(
            group.order >= 2,
            f"group_name: {self.group_name}; one element has nothing to compose, take C2.",
        )
        require(
            group.order**self.length < LARGEST_SPACE,
            f"length: {group.order}**{self.length} words; must be below 2**62, lower length.",
        )
        require(0 <= self.held_out < 1, f"held_out: {self.held_out}; must be in [0, 1).")
        self._check_template(group)

    def _check_template(self, group: FiniteGroup) -> None:
        require(
            0 <= self.template_at < group.order,
            f"template_at: {self.template_at}; must be 0 to {group.order - 1}.",
        )
        for name, users in USED_BY.items():
            value, default = unstructure(getattr(self, name)), _default(name)
            require(
                value == default or self.template in users,
                f"{name}: {value}; template={self.template} has no use for it, only "
                f"{' and '.join(users)}.",
            )
        require(self.template_scale != 0, "template_scale: 0; nothing would be shown.")
        shape = circles(self.group_name)
        allowed = {"fourier": (1, 2), "gaussian": (1,)}.get(self.template)
        require(
            allowed is None or len(shape) in allowed,
            f"template: {self.template}; for C_n{' and C_p x C_q' if allowed == (1, 2) else ''}, "
            f"not {self.group_name}: take onehot or powers.",
        )
        if self.template == "fourier" and len(shape) == 1:
            most = shape[0] // 2
            require(
                self.frequencies <= most,
                f"frequencies: {self.frequencies}; must be 1 to order // 2 = {most}.",
            )
        require(
            self.template != "file" or self.template_file is not None,
            "template_file: missing; template=file reads it.",
        )
        self.values()

    def finite_group(self) -> FiniteGroup:
        """The group.

        Raises:
            ConfigError: no such name, or a table that is no group's.
        """
        path = Path(self.group_name)
        try:
            if path.suffix == ".json":
                return group_of(json.loads(path.read_text()), path.stem)
            return parse_group(self.group_name)
        except OSError as error:
            raise ConfigError(f"group_name: {path} cannot be read ({error.strerror}).") from error
        except (GroupError, ValueError, RecursionError) as error:
            raise ConfigError(f"group_name: {error}.") from error

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """None: the inputs are no tokens."""
        return None

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` goes once through its words.

        Raises:
            ConfigError: another split.
        """
        if split not in self.splits():
            raise ConfigError(f"split {split!r} of group_composition: use train or val.")
        group = self.finite_group()
        space = group.order**self.length
        held = round(self.held_out * space)
        first, size = (held, space - held) if split == "train" else (0, held or space)
        if split == "val" and self.val_words:
            size = min(size, self.val_words)
        plan: Plan = SequentialPlan([size])
        if split == "train":
            plan = MixturePlan([size], ["words"], [1], seed)
        fetch = self._fetch(group, KeyedPermutation(space, SeedBook(seed).seed("words")), first)
        if split == "train" and self.sampling == "fresh":
            plan = MixturePlan([DRAWS], ["words"], [1], seed)
            fetch = drawn(fetch, size, KeyedPermutation(DRAWS, SeedBook(seed).seed("draws")))
        return RowStream(
            plan,
            fetch,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{self}, {split}, seed {seed}",
        )

    def values(self) -> Floats:
        """The template (N,), zero mean.

        Raises:
            ConfigError: it cannot be made on this group.
        """
        group = self.finite_group()
        if self.template == "onehot":
            return templates.one_hot(group.order, self.template_at, self.template_scale)
        if self.template == "powers":
            return templates.of_powers(group, self.powers)
        if self.template == "file":
            return templates.from_file(Path(self.template_file or ""), group.order)
        shape = circles(self.group_name)
        if self.template == "gaussian":
            return templates.bumps(shape[0], self.frequencies, self.template_seed)
        if len(shape) == 1:
            return templates.fourier(
                shape[0], self.frequencies, self.amplitudes, self.template_seed
            )
        plane = (shape[0], shape[1])
        return templates.planar(plane, self.frequencies, self.amplitudes, self.template_seed)

    def _fetch(self, group: FiniteGroup, words: KeyedPermutation, first: int) -> Fetch:
        shown = torch.from_numpy(group.shown(self.values()).astype(np.float32))

        def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
            del source
            places = words(index + first, np.zeros_like(index))
            elements = digits(places, group.order, self.length)
            products = group.products(elements)[:, 1:]
            chosen = products[:, -1] if self.targets == "last" else products
            return shown[torch.from_numpy(elements)], shown[torch.from_numpy(chosen)]

        return fetch


USED_BY: dict[str, tuple[str, ...]] = {
    "template_at": ("onehot",),
    "template_scale": ("onehot",),
    "frequencies": ("fourier", "gaussian"),
    "amplitudes": ("fourier",),
    "powers": ("powers",),
    "template_file": ("file",),
    "template_seed": ("fourier", "gaussian"),
}
"""Options of templates that not every template has."""


def _default(name: str) -> object:
    return defaults_of(GroupCompositionConfig)[name]


def drawn(fetch: Fetch, size: int, draws: KeyedPermutation) -> Fetch:
    """``fetch`` at independent draws from range(size); draw i is a function of i alone."""

    def fetch_drawn(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        return fetch(source, draws(index, np.zeros_like(index)) % size)

    return fetch_drawn


def circles(name: str) -> tuple[int, ...]:
    """The orders of a product of cyclic groups; empty for any other group."""
    found = [re.fullmatch(r"C_?([0-9]+)", part) for part in name.split("x")]
    return tuple(int(one[1]) for one in found if one) if all(found) else ()


def digits(index: Ints, base: int, length: int) -> Ints:
    """Words (B, length) of element numbers; the first position changes fastest."""
    return (index[:, None] // base ** np.arange(length, dtype=np.int64)) % base
