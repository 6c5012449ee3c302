"""Where this process runs: device, rank, world, process group. Floor 4."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from nl.config import ConfigError


def select_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device of this rank for ``train.device`` = auto | cpu | cuda.

    Raises:
        ConfigError: CUDA was asked for and is not there, or has fewer devices than local ranks.
    """
    present = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not present):
        return torch.device("cpu")
    if not present:
        raise ConfigError(
            "train.device: cuda, but torch sees no CUDA device; set train.device=cpu or auto, "
            "or check the driver and CUDA_VISIBLE_DEVICES."
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: local rank {local_rank}, but only {torch.cuda.device_count()} CUDA "
            "devices; start at most one process per device or set train.device=cpu."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r} in the environment; must be a whole number >= 0.")
    return int(text)


def local_rank() -> int:
    """Rank among the processes of this machine, from the launcher's environment."""
    return _number("LOCAL_RANK", 0)


def init_group(device: torch.device) -> tuple[int, int]:
    """Join the process group of the launcher, or make one of one process.

    Host-side values travel over gloo, device tensors over nccl.

    Returns:
        (rank, world size).
    """
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            _number("RANK", 0), _number("WORLD_SIZE", 1)
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()
