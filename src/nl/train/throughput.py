"""Tokens per second, per device, and as a share of the device's peak (MFU). Floor 5.

MFU is model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B): tokens per second times
FLOPs per token over the peak of all devices. FLOPs per token are three forward passes by
``model.flops_per_token``: 6 per matrix parameter and 12 d per position that attention looks at.
What memories compute beyond reading their weights, and recomputation, never count.
"""

from __future__ import annotations

import inspect
import re
import resource
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nl.core.logs import get_logger

log = get_logger(__name__)

TRAINING = 3
PEAKS = {
    "B200": (2250.0, 80.0),
    "H200": (989.0, 67.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "4090": (165.0, 82.6),
}
"""Dense TFLOP/s of a GPU by a word of its name: (bf16, fp32), from the makers' data sheets."""
PCIE = {"H100": (756.0, 51.0)}
"""The same for cards whose name says PCIe."""


def forward_flops(model: nn.Module, seq_len: int) -> float:
    """Forward FLOPs per token of a model, at this context length where it depends on one."""
    count: Any = getattr(model, "flops_per_token", None)
    if count is None:
        return 0.0
    return float(count(seq_len) if inspect.signature(count).parameters else count())


def peak_tflops(name: str, precision: str) -> float:
    """Peak of a device by its name, 0 where it is not known.

    >>> peak_tflops("NVIDIA A100-SXM4-80GB", "bf16")
    312.0
    """
    words = re.split(r"[^A-Za-z0-9]+", name)
    table = PEAKS | PCIE if "PCIe" in words else PEAKS
    found = next((table[word] for word in words if word in table), (0.0, 0.0))
    return found[0] if precision == "bf16" else found[1]


@dataclass(frozen=True)
class Throughput:
    """What a run is measured against.

    Attributes:
        device: of this rank.
        world: devices in all.
        flops: training FLOPs per token, 0 if not known.
        peak: FLOP/s of one device, 0 if not known.
    """

    device: torch.device
    world: int
    flops: float
    peak: float

    @classmethod
    def of(
        cls, device: torch.device, world: int, *, forward: float, configured: float, precision: str
    ) -> Throughput:
        """By ``train.peak_tflops`` or, for a GPU, by the table; says what was taken."""
        source, peak = "train.peak_tflops", configured
        if not peak and device.type == "cuda":
            source = torch.cuda.get_device_name(device)
            peak = peak_tflops(source, precision)
        if peak and forward:
            log.info(
                "perf/mfu: %.4g FLOPs per token (6 per matrix parameter, 12 d per attended "
                "position), peak %g TFLOP/s per device (%s, %s)",
                TRAINING * forward,
                peak,
                source,
                precision,
            )
        return cls(device, world, TRAINING * forward, peak * 1e12)

    def read(self, tokens_per_s: float) -> dict[str, float]:
        """The columns of a training row that follow from its tokens per second."""
        found = {
            "perf/tokens_per_s_device": tokens_per_s / self.world,
            "perf/memory_gib": self.memory() / 2**30,
        }
        if self.peak and self.flops:
            found["perf/mfu"] = tokens_per_s * self.flops / (self.peak * self.world)
        return found

    def memory(self) -> float:
        """Bytes at the highest point so far: allocated on the GPU, else resident in memory."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
