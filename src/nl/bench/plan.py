"""Memory, communication and speed of a run on many devices, by stated formulas. Floor 8.

With P parameters of 4 bytes, optimizer state O, N devices, activations A(r) of r rows, the largest
shard unit U and B what is read between units (bytes of parameters), a device holds

    ddp         2 P + O + A(r)
    fsdp2       (2 P + O) / N + B + W + G + A(r)   G = P where levels are taught, else B + U
    zero1       2 P + O / N + A(r)
    zero2       P + (P + O) / N + A(r)
    zero3       (2 P + O) / N + B + 2 U + A(r)

with W = 2 U where units are given back after use (fsdp.reshard_after_forward), else P - B. Levels
cut a row into t tiles that go through all blocks one after the other. It sends, per step with m
micro-batches, f = (N - 1) / N,

    ddp         2 f P                           one all-reduce in a ring
    fsdp2       f (m g (P - B) + m B + P)       g = 2 t where units are given back, else 1
    zero1, 2    2 f P                           a reduction, and the new parameters
    zero3       f (2 m t P + P)

(DeepSpeed's own buckets come on top.) Speed is devices * peak * share / FLOPs per token; the share
of the peak (MFU with writes) is an assumption that the caller states. Communication is hidden
behind arithmetic as far as it takes less time; its time is given beside the step's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nl.bench.footprint import FP32, Footprint
from nl.config import require
from nl.config.run import RunConfig
from nl.core.protocols import Capabilities
from nl.dist.ddp import DDP
from nl.dist.deepspeed import DeepSpeed
from nl.dist.fsdp import FSDP2

STRATEGIES: dict[str, Any] = {
    "ddp": DDP,
    "fsdp2": FSDP2,
    "zero1": DeepSpeed,
    "zero2": DeepSpeed,
    "zero3": DeepSpeed,
}
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What a plan is for.

    Attributes:
        gpus: devices.
        memory: GiB each, of which ``usable`` is planned with.
        tflops: peak of one at the run's precision.
        share: of that peak that a step reaches.
        bandwidth: GB/s that one sends.
        usable: the rest is for the runtime, fragments and communication buffers.
    """

    gpus: int
    memory: float = 80.0
    tflops: float = 989.0
    share: float = 0.35
    bandwidth: float = 50.0
    usable: float = 0.9

    def __post_init__(self) -> None:
        require(self.gpus >= 1, f"--gpus: {self.gpus}; must be >= 1.")
        for name in ("memory", "tflops", "bandwidth"):
            require(getattr(self, name) > 0, f"--{name}: {getattr(self, name)}; must be > 0.")
        require(0 < self.share <= 1, f"--share: {self.share}; must be in (0, 1].")


def check_devices(run: RunConfig, devices: Devices) -> int:
    """The rows of a step; refuses a number of devices that does not divide them."""
    stream: Any = run.stream
    total: int = stream.batch_size * run.train.grad_accum
    require(
        total % devices.gpus == 0,
        f"--gpus: {devices.gpus}; must divide the {total} rows of a step "
        "(stream.batch_size * train.grad_accum).",
    )
    return total


def plan(run: RunConfig, found: Footprint, devices: Devices) -> list[dict[str, Any]]:
    """One row per strategy that takes the run; memory in GiB, communication in GB.

    ``rows`` is the largest micro-batch per device that fits and divides the rows of a step, 0 where
    nothing fits.

    Raises:
        ConfigError: the devices do not divide the rows of a step.
    """
    stream: Any = run.stream
    total = check_devices(run, devices)
    found = replace(found, given_back=run.fsdp.reshard_after_forward)
    names = [name for name, kind in STRATEGIES.items() if takes(kind.capabilities, run)]
    return [row(name, found, devices, total, stream.seq_len) for name in names]


def takes(capabilities: Capabilities, run: RunConfig) -> bool:
    """Whether a strategy that can do this would not refuse the run."""
    needs = [need for part in (run.model, run.optim) for need in getattr(part, "requires", ())]
    needs += ["segments"] if run.train.recompute_every else []
    return all(getattr(capabilities, need) for need in needs)


def row(name: str, found: Footprint, devices: Devices, total: int, seq_len: int) -> dict[str, Any]:
    """The plan of one strategy for steps of ``total`` rows."""
    fixed = held(name, found, devices.gpus)
    room = devices.usable * devices.memory * GIB - fixed
    each = total // devices.gpus
    parts = (r for r in range(1, each + 1) if each % r == 0)
    rows = max((r for r in parts if found.activations(r) <= room), default=0)
    micro = each // max(rows, 1)
    compute = total * seq_len * found.flops / (devices.gpus * devices.tflops * 1e12 * devices.share)
    sending = sent(name, found, devices.gpus, micro) / (devices.bandwidth * 1e9)
    return {
        "strategy": name,
        "gpus": devices.gpus,
        "rows": rows,
        "grad_accum": micro if rows else 0,
        "memory": (fixed + found.activations(max(rows, 1))) / GIB,
        "fixed": fixed / GIB,
        "sent": sent(name, found, devices.gpus, micro) / 1e9,
        "compute_seconds": compute,
        "communication_seconds": sending,
        "tokens_per_s": total * seq_len / max(compute, sending) if rows else 0.0,
    }


def held(name: str, found: Footprint, gpus: int) -> float:
    """Bytes on a device beside activations."""
    numbers, moments = FP32 * found.parameters, found.optimizer
    between, unit = FP32 * found.between, FP32 * found.unit
    if name == "ddp":
        return 2 * numbers + moments
    if name == "zero1":
        return 2 * numbers + moments / gpus
    if name == "zero2":
        return numbers + (numbers + moments) / gpus
    gathered = between + 2 * unit
    if name == "fsdp2":
        gathered = numbers if not found.given_back else gathered
        gathered += numbers if found.taught else between + unit
    return (2 * numbers + moments) / gpus + gathered


def sent(name: str, found: Footprint, gpus: int, micro: int) -> float:
    """Bytes that a device sends per step of ``micro`` micro-batches."""
    numbers, between = FP32 * found.parameters, FP32 * found.between
    share = (gpus - 1) / gpus
    again = 2 * found.tiles
    if name == "fsdp2":
        times = again if found.given_back else 1
        return share * (micro * (times * (numbers - between) + between) + numbers)
    if name == "zero3":
        return share * (micro * again + 1) * numbers
    return share * 2 * numbers
