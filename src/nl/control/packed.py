"""Tensors as JSON: little-endian bytes in base64, exact. Floor 6."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data}."""
    found = {}
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"))
        data = base64.b64encode(little.tobytes()).decode()
        found[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}
    return found


def unpack(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inverse."""
    found = {}
    for name, entry in data.items():
        kind = np.dtype(entry["dtype"]).newbyteorder("<")
        flat = np.frombuffer(base64.b64decode(entry["data"]), dtype=kind)
        native = flat.astype(np.dtype(entry["dtype"]))
        found[name] = torch.from_numpy(native.reshape(entry["shape"]).copy())
    return found
