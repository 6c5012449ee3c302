"""Plateaus of a measured loss beside those of theory. Floor 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nl.core.groups.staircase import Step

NEAR = 0.05
"""Relative distance from a level within which the loss counts as on its plateau."""


@dataclass(frozen=True)
class Plateau:
    """One level of the loss.

    Attributes:
        level: by theory.
        measured: the loss where it is flattest between the two stairs; None: it was not there.
        error: measured / level - 1.
        start, end: first and last step within 5 % of the level; None: none was.
        learned: the irreps whose learning ends it.
        escape: the step at which half of their amplitude is there (the loss fell by three quarters
            of the stair).
    """

    level: float
    measured: float | None
    error: float | None
    start: float | None
    end: float | None
    learned: tuple[str, ...]
    escape: float | None


def plateaus(
    steps: Sequence[float], losses: Sequence[float], stairs: Sequence[Step]
) -> list[Plateau]:
    """Every plateau that theory knows, as far as a run reached it.

    Args:
        steps: of the optimizer, rising.
        losses: mean squared error at them; not finite where a run diverged.
        stairs: of ``staircase``.
    """
    found = []
    ceiling = math.inf
    for stair in stairs:
        level, floor = stair.before, (stair.before + stair.after) / 2
        pairs = zip(steps, losses, strict=True)
        near = [step for step, loss in pairs if abs(loss / level - 1) < NEAR]
        inside = [
            n for n, loss in enumerate(losses) if floor < loss < ceiling and n + 1 < len(losses)
        ]
        flat = min(inside, key=lambda n: abs(losses[n + 1] - losses[n]), default=None)
        measured = None if flat is None else losses[flat]
        fallen = (level + 3 * stair.after) / 4
        pairs = zip(steps, losses, strict=True)
        found.append(
            Plateau(
                level=level,
                measured=measured,
                error=None if measured is None else measured / level - 1,
                start=near[0] if near else None,
                end=near[-1] if near else None,
                learned=stair.names,
                escape=next((step for step, loss in pairs if loss < fallen), None),
            )
        )
        ceiling = floor
    return found


def reached(steps: Sequence[float], losses: Sequence[float], reduction: float) -> float | None:
    """The first step whose loss is that much below the first one (0.9: a tenth is left)."""
    goal = (1 - reduction) * losses[0]
    return next((step for step, loss in zip(steps, losses, strict=True) if loss <= goal), None)
