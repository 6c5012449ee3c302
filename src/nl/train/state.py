"""TrainState: what the loop knows and a checkpoint brings back. Floor 5."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Best:
    """The best value of ``checkpoint.best`` so far and where it was reached."""

    metric: str
    value: float
    step: int


@dataclass
class TrainState:
    """Counters and carried values.

    Attributes:
        step: optimizer steps done; a skipped step does not count.
        tokens: scored targets of all ranks.
        seconds: training time over all resumes.
        skipped: steps left out for non-finite numbers or a spike.
        rollbacks: returns to a checkpoint for the same reasons.
        troubles: steps that were refused, the last few among 1000.
        losses: of the last steps, for the spike detector.
        outliers: how many of them in a row, at the end, were far above the others.
        best: best validation so far.
        validation: finite numbers of the last validation, ``<split>/loss``.
        observations: finite numbers of the last logged step, for the controller.
        signals: moving averages and counts of ``nl.train.signals``.
        wandb_id: W&B run to continue.
        fast: the model State carried by the stream (saved as tensors, not in ``as_dict``).
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    rollbacks: int = 0
    troubles: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    outliers: int = 0
    best: Best | None = None
    validation: dict[str, float] = field(default_factory=dict)
    observations: dict[str, float] = field(default_factory=dict)
    signals: dict[str, float] = field(default_factory=dict)
    wandb_id: str | None = None
    fast: Any = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without ``fast``."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "fast"}
        data["best"] = vars(self.best) if self.best else None
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], fast: Any) -> TrainState:
        """The inverse of ``as_dict``; keys of others are ignored."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data and f.name != "fast"}
        if known.get("best"):
            known["best"] = Best(**known["best"])
        return cls(**known, fast=fast)
