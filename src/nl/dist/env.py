"""Where this process runs: device, rank, world, process group. Floor 4."""

from __future__ import annotations

import os
import re

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store

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


def number(name: str, default: int) -> int:
    """A whole number from the environment.

    Raises:
        ConfigError: something else is there.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r} in the environment; must be a whole number >= 0.")
    return int(text)


def local_rank() -> int:
    """Rank among the processes of this machine, from the launcher's environment."""
    return number("LOCAL_RANK", 0)


def without_local_rank(arguments: list[str]) -> list[str]:
    """Arguments without the ``--local_rank=N`` that the deepspeed launcher puts before them."""
    kept = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--local_rank", "--local-rank") and equals:
            os.environ.setdefault("LOCAL_RANK", value)
        else:
            kept.append(argument)
    return kept


def adopt_slurm() -> None:
    """Fill in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from Slurm's variables.

    Only under ``srun`` without torchrun, which sets them itself. The port follows from the job
    id, so that all nodes know it: 15000 to 29999.
    """
    given = os.environ
    if "RANK" in given or "SLURM_PROCID" not in given or "SLURM_NTASKS" not in given:
        return
    nodes = given.get("SLURM_JOB_NODELIST", "")
    found = {
        "RANK": str(number("SLURM_PROCID", 0)),
        "WORLD_SIZE": str(number("SLURM_NTASKS", 1)),
        "LOCAL_RANK": str(number("SLURM_LOCALID", 0)),
        "MASTER_ADDR": first_host(nodes) if nodes else "localhost",
        "MASTER_PORT": str(15000 + number("SLURM_JOB_ID", 0) % 15000),
    }
    for name, value in found.items():
        given.setdefault(name, value)


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``gpu[003-005,9],login`` begins with ``gpu003``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def spread() -> tuple[int, int] | None:
    """(rank, world size) that the launcher gave this process; None where it is alone.

    Raises:
        ConfigError: the variables contradict each other.
    """
    adopt_slurm()
    if "RANK" not in os.environ:
        return None
    rank, world = number("RANK", 0), number("WORLD_SIZE", 1)
    if rank >= max(world, 1):
        raise ConfigError(f"RANK={rank}, WORLD_SIZE={world}; ranks go from 0 to WORLD_SIZE - 1.")
    return (rank, world) if world > 1 else None


def init_group(device: torch.device, store: Store | None = None) -> tuple[int, int]:
    """Join the process group of the launcher, or make one of one process.

    Host-side values travel over gloo, device tensors over nccl.

    Args:
        device: of this rank.
        store: where the ranks have met; None: this process is alone.

    Returns:
        (rank, world size).
    """
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        place = spread()
        if place is None or store is None:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        else:
            inside = PrefixStore("group", store)
            dist.init_process_group(backend, store=inside, rank=place[0], world_size=place[1])
    return dist.get_rank(), dist.get_world_size()
