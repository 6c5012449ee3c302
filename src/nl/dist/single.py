"""One process, one device. Floor 4."""

from __future__ import annotations

from nl.dist.base import Strategy
from nl.dist.env import select_device


class Single(Strategy):
    """Everything here; the reference that the other strategies are compared with."""

    name = "single"

    @classmethod
    def start(cls, device: str) -> Single:
        """On the device that ``train.device`` asks for."""
        return cls(select_device(device))
