"""Named, independent seed streams derived from one run seed. Floor 0."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class SeedBook:
    """Seeds by name: ``book.seed("model")``; equal (run seed, names) give equal seeds anywhere.

    Names in use: ``model``, ``data``, ``eval``, ``controller``, ``train`` (dropout, sampling),
    ``draw`` (keyed choices of a step).
    Data order never depends on rank; only ``train`` takes the rank.
    """

    run_seed: int

    def seed(self, *names: str | int) -> int:
        """A 63-bit seed for this name path."""
        text = ":".join([str(self.run_seed), *map(str, names)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def generator(self, *names: str | int) -> torch.Generator:
        """A CPU generator seeded for this name path."""
        return torch.Generator().manual_seed(self.seed(*names))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
