"""What the last linear map holds and how large attention's logits are, for W&B. Floor 5.

Of models that name their last map (``final_linear()``), with ``attention_logits()`` where they
attend. One line per row of training goes to ``artifacts/last_layer.jsonl``, so that histories
survive a resume; the numbers that fit into a row of W&B are sent with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nl.run.records import RecordWriter, cut_records

FILE = "last_layer.jsonl"


class LastLayer:
    """Measures a model between steps; the file appears with the first line.

    Args:
        model: the trained one; without ``final_linear`` there is nothing to measure.
        path: the file.
        start: step that training begins after; later lines are cut.
    """

    def __init__(self, model: Any, path: Path, start: int) -> None:
        self.model, self.path = model, path
        self._writer: RecordWriter | None = None
        self.rewind(start)

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``."""
        if self.path.is_file():
            cut_records(self.path, step)

    def measure(self, step: int) -> dict[str, float]:
        """Write a line -> ``metrics/weight_norm``, ``metrics/attn_logits_mean`` ... of a row."""
        found = numbers(self.model)
        if not found:
            return {}
        if self._writer is None:
            self._writer = RecordWriter(self.path)
        self._writer.append({"step": step, **found})
        return {f"metrics/{key}": value for key, value in found.items() if is_scalar(key)}

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def is_scalar(key: str) -> bool:
    """Whether a number is sent with every row; weight and bias are drawn at the end."""
    return key not in ("weight", "bias")


@torch.no_grad()
def numbers(model: Any) -> dict[str, Any]:
    """``weight`` (flat), ``bias``, ``weight_norm``, ``attn_logits_mean``, ``_std``, ``_maxabs``.

    Logits are those of the last training batch, of all layers and heads. Nothing of a model
    without ``final_linear``, or whose parameters are cut over ranks.
    """
    linear = model.final_linear() if hasattr(model, "final_linear") else None
    if linear is None or hasattr(linear.weight, "full_tensor"):
        return {}
    weight = linear.weight.float().flatten()
    found: dict[str, Any] = {"weight_norm": float(weight.norm()), "weight": weight.tolist()}
    if linear.bias is not None:
        found["bias"] = linear.bias.float().flatten().tolist()
    logits = model.attention_logits() if hasattr(model, "attention_logits") else []
    if logits:
        every = torch.cat([one.float().flatten() for one in logits])
        found["attn_logits_mean"] = float(every.mean())
        found["attn_logits_std"] = float(every.std(correction=0))
        found["attn_logits_maxabs"] = float(every.abs().max())
    return found
