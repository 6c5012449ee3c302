"""What a step tells the stream: the share to replay, and how hard its rows were. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nl.core.output import Knobs
from nl.core.protocols import Controller, Stream
from nl.dist.base import Strategy


def adjust(stream: Stream, knobs: Knobs) -> None:
    """Let the next batches replay as much as the knobs say."""
    if knobs.replay is not None:
        adjustable: Any = stream
        adjustable.adjust(knobs.replay)


def shown(knobs: Knobs, controller: Controller) -> dict[str, float]:
    """What a controller set, under ``knob/``, and what it tells of itself, under ``control/``."""
    found: dict[str, float] = {}
    for name in ("lr_scale", "write_scale"):
        found[name] = getattr(knobs, name)
    for name in ("experts_k", "router_noise", "router_temperature", "replay"):
        value = getattr(knobs, name)
        if isinstance(value, tuple):
            found |= {f"{name}_{layer}": k for layer, k in enumerate(value)}
        elif value is not None:
            found[name] = value
    told: dict[str, float] = getattr(controller, "told", dict)()
    return {f"knob/{name}": float(value) for name, value in found.items()} | {
        f"control/{name}": value for name, value in told.items()
    }


def replayed(tags: Mapping[str, Any]) -> dict[str, float]:
    """How many rows of a step's last micro-batch were replayed, of streams that replay."""
    return {"stream/replayed": tags["replayed"]} if "replayed" in tags else {}


def teach(stream: Stream, strategy: Strategy, losses: Sequence[Tensor | None]) -> None:
    """Tell a stream that wants to know the nats of every row of the step (collective).

    Args:
        stream: of the run; nothing happens unless it has ``wants_losses``.
        strategy: joins the ranks' rows.
        losses: per micro-batch the (B,) summed nats of this rank's rows.

    Raises:
        RuntimeError: the objective did not tell.
    """
    if not getattr(stream, "wants_losses", False):
        return
    known = [rows for rows in losses if rows is not None]
    if len(known) < len(losses):
        raise RuntimeError("stream.memory: loss; the objective does not tell the losses of rows")
    mine = torch.stack(known).double()
    count, share = mine.shape
    whole = mine.new_zeros(count, share * strategy.world)
    whole[:, strategy.rank * share : (strategy.rank + 1) * share] = mine
    wanting: Any = stream
    wanting.learned(strategy.reduce(whole).flatten().cpu().numpy())
