"""Keep less and compute it again in the backward pass. Floor 4.

``train.activation_checkpointing`` keeps what enters a unit (block); ``train.recompute_every`` keeps
the State between segments of a row.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from nl.config import require
from nl.core.logs import get_logger

log = get_logger(__name__)


def check_recompute(wanted: bool, needs: Container[str] = (), *, compiled: bool) -> None:
    """Refuse ``train.activation_checkpointing`` where gradients are taken inside the forward pass.

    Args:
        wanted: ``train.activation_checkpointing``.
        needs: what the model asks of a strategy.
        compiled: ``train.compile``.

    Raises:
        ConfigError: naming the keys.
    """
    require(
        not wanted or not compiled,
        "train.activation_checkpointing: true, train.compile: true; a checkpointed block would not "
        "be compiled: set one of them to false.",
    )
    for need, remedy in (
        ("inner_autograd", "model.cms.signal=head"),
        ("grad_through_write", "model.cms.write_gradient=stop"),
    ):
        require(
            not wanted or need not in needs,
            f"train.activation_checkpointing: true; the model needs {need}, whose graph has to "
            f"stay: set train.activation_checkpointing=false or {remedy}.",
        )


def recompute_units(model: nn.Module) -> int:
    """Checkpoint every shard unit in place; names of parameters do not change.

    A unit with written levels is called once per tile, and the State of every call stays: that is
    allowed, and the log says what keeps less.

    Returns:
        How many units there are.

    Raises:
        ConfigError: the model has none.
    """
    units: Any = getattr(model, "shard_units", list)()
    require(
        len(units) > 0,
        f"train.activation_checkpointing: true; {type(model).__name__} has no shard units: set "
        "train.activation_checkpointing=false.",
    )
    writing = 0
    for unit in units:
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)
        for part in unit.modules():
            if hasattr(part, "keep_writes"):
                part.keep_writes()
                writing += 1
    if writing:
        log.warning(
            "train.activation_checkpointing: true; the written weights that each tile enters with "
            "stay in %d of %d blocks, often more than is saved: train.recompute_every=512 keeps "
            "less (nl plan says how much)",
            writing,
            len(units),
        )
    return len(units)


def check_segments(every: int, needs: Container[str], scope: str) -> None:
    """Refuse ``train.recompute_every`` where a second reading would not be the first again.

    Args:
        every: ``train.recompute_every``.
        needs: what the model asks of a strategy.
        scope: ``model.cms.scope``.

    Raises:
        ConfigError: naming the keys.
    """
    for need, remedy in (
        ("inner_autograd", "model.cms.signal=head"),
        ("grad_through_write", "model.cms.write_gradient=stop"),
    ):
        require(
            not every or need not in needs,
            f"train.recompute_every: {every}; the model needs {need}, whose graph has to stay: set "
            f"train.recompute_every=0 or {remedy}.",
        )
    require(
        not every or scope == "row",
        f"train.recompute_every: {every}; with model.cms.scope={scope} ranks would sum their "
        "writes during the backward pass: set train.recompute_every=0 or model.cms.scope=row.",
    )


def recompute_segments(model: nn.Module, every: int) -> None:
    """Let a model keep only the State every so many tokens.

    Raises:
        ConfigError: the model cannot.
    """
    require(
        hasattr(model, "recompute_every"),
        f"train.recompute_every: {every}; {type(model).__name__} does not read in segments: set "
        "train.recompute_every=0.",
    )
    owner: Any = model
    owner.recompute_every = every
