"""The backend, devices and launcher that flags and file ask for. Floor 1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nl.config import ConfigError
from nl.sweep.clusters import Ray, Slurm
from nl.sweep.slots import Backend, Local, Place
from nl.sweep.warm import Warm


def backend_of(place: Place, root: Path) -> Backend:
    """The backend that the flags ask for.

    Raises:
        ConfigError: its package is not installed, or what it needs is not there.
    """
    if place.kind == "warm":
        return Warm(place)
    if place.kind == "slurm":
        return Slurm(place, root)
    if place.kind == "ray":
        return Ray(place)
    return Local(place)


def visible_gpus(text: str, *, here: bool = False) -> tuple[str, ...]:
    """Devices by ``--gpus``: ``none``, ``auto`` (all that nvidia-smi lists), or ``0,1``.

    Args:
        text: as given.
        here: jobs run on this machine, which then has to have those that are named.

    Raises:
        ConfigError: neither, or not on this machine.
    """
    if text in ("", "none"):
        return ()
    if text == "auto":
        return listed_gpus()
    names = tuple(part.strip() for part in text.split(","))
    if not all(name.isdigit() for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"--gpus: {text}; allowed: none, auto, or numbers such as 0,1.")
    if here and (absent := set(names) - set(there := listed_gpus())):
        raise ConfigError(
            f"--gpus: {text}; nvidia-smi lists no {', '.join(sorted(absent))} on this machine, "
            f"only {', '.join(there) or 'none at all'}. Name those that are there; --gpus auto "
            "takes all, --gpus none the CPU."
        )
    return names


def listed_gpus() -> tuple[str, ...]:
    """Numbers of the devices that nvidia-smi lists."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return ()
    gpus = [row for row in listed.stdout.splitlines() if row.startswith("GPU ")]
    return tuple(str(n) for n, _ in enumerate(gpus))


def program(launcher: Sequence[str], root: Path) -> tuple[str, ...]:
    """The beginning of every command: this Python, and the launcher's file by its full path.

    Raises:
        ConfigError: no such launcher.
    """
    words = list(launcher)
    files = [n for n, word in enumerate(words) if word.endswith(".py")]
    if len(files) != 1 or files[0] != len(words) - 1:
        raise ConfigError(
            f"launcher: {' '.join(words)}; allowed: a launcher such as train.py, last, after "
            "torchrun or deepspeed with options where it needs them."
        )
    named = Path(words[-1])
    found = [place for place in (named, root / named) if place.is_file()]
    if not found:
        raise ConfigError(f"launcher: {named}; no such file here or in {root}.")
    words[-1] = str(found[0].resolve())
    if words[0] == "torchrun":
        return (sys.executable, "-m", "torch.distributed.run", *words[1:])
    return tuple(words) if len(words) > 1 else (sys.executable, *words)
