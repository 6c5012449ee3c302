"""Batch: what a stream yields and an objective turns into a summed loss. Floor 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""Target id of a position that is not scored."""


class Batch(NamedTuple):
    """One micro-batch of one rank.

    Attributes:
        inputs: (B, T) int64 token ids | (B, T, F) or (B, F) float features.
        targets: (B, T) int64 ids (``IGNORE`` = unscored) | (B,) | (B, T, F) float.
        weight: number of scored targets in this batch; the loss is summed, then divided by the
            global sum of weights of the whole accumulation group.
        tags: plain Python facts about the batch (phase, epoch, source, ids): never tensors.
        starts: per row the offsets of tokens that begin a document, where the row has to be fresh;
            host data. None: documents are ignored.
    """

    inputs: Tensor
    targets: Tensor
    weight: int
    tags: Mapping[str, Any] = {}
    starts: tuple[tuple[int, ...], ...] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``; narrow integer tokens become int64."""
        inputs = self.inputs.to(device, non_blocking=True)
        targets = self.targets.to(device, non_blocking=True)
        if not inputs.is_floating_point():
            inputs = inputs.long()
        if not targets.is_floating_point():
            targets = targets.long()
        return self._replace(inputs=inputs, targets=targets)
