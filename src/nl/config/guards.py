"""What protects a run from its numbers, its data and its neighbours. Floor 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nl.config.structure import require


@dataclass(frozen=True, kw_only=True)
class NonfiniteConfig:
    """What happens when loss, gradient norm or State is NaN or infinite.

    What ``train.spike`` leaves out or rolls back counts against the same limits.
    """

    policy: Literal["abort", "skip", "rollback"] = "abort"
    """abort: stop with an error. skip: leave the step out, bitwise. rollback: to the last
    checkpoint."""
    max_consecutive: int = 3
    """Consecutive bad steps that skip and rollback tolerate."""
    max_per_1000: int = 10
    """Bad steps among the last 1000 that skip and rollback tolerate."""
    after_limit: Literal["abort", "rollback"] = "abort"
    """What follows when skip has used up a limit: stop, or go back to the last checkpoint and on
    behind the batches since then, at most max_consecutive times at one place."""

    def __post_init__(self) -> None:
        for name in ("max_consecutive", "max_per_1000"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """Loss spikes: steps far above the median of the recent ones.

    A step is an outlier if its loss is over ``multiplier`` times the median and over ``z`` robust
    standard deviations (1.4826 median absolute deviations) above it. ``patience`` outliers in a row
    are a spike.
    """

    policy: Literal["off", "log", "skip", "rollback"] = "log"
    """log: say it once per spike. skip: leave the outliers of a spike out. rollback: to the last
    checkpoint, and on behind the batches since then. skip and rollback read the loss of every
    step from the device."""
    window: int = 100
    """Steps that median and deviation are taken over; judged from a fifth of it on."""
    multiplier: float = 2.0
    """Outliers are above this many medians."""
    z: float = 6.0
    """Outliers are above this many robust standard deviations."""
    patience: int = 4
    """Outliers in a row that make a spike."""

    def __post_init__(self) -> None:
        require(self.window >= 10, f"window: {self.window}; must be >= 10.")
        require(self.multiplier > 1, f"multiplier: {self.multiplier}; must be > 1.")
        require(self.z > 0, f"z: {self.z}; must be > 0.")
        require(self.patience >= 1, f"patience: {self.patience}; must be >= 1.")


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """How long a process waits before it ends itself, with what it waited for in its log."""

    data_seconds: float = 60.0
    """For a batch of the training stream; 0: for ever."""
    step_seconds: float = 60.0
    """For a step in one process, however short the usual ones are; the first five may take any
    time. 0: for ever."""
    step_factor: float = 10.0
    """For a step, in median steps, where that is longer."""
    collective_seconds: float = 300.0
    """For a step of several processes, where that is longer; twelve times as long for the first
    five steps of a compiled model. 0: for ever."""

    def __post_init__(self) -> None:
        for name in ("data_seconds", "step_seconds", "collective_seconds"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        require(self.step_factor > 1, f"step_factor: {self.step_factor}; must be > 1.")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Steps that torch.profiler records into artifacts/profile_rank_<n>.json (Chrome trace)."""

    first: int = 0
    """First step that is recorded; 0: none."""
    last: int = 0
    """Last step that is recorded."""

    def __post_init__(self) -> None:
        require(self.first >= 0, f"first: {self.first}; must be >= 0.")
        require(
            self.first == 0 or self.last >= self.first,
            f"last: {self.last}; must be >= first ({self.first}).",
        )
