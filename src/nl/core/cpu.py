"""How a process that trains or measures uses the CPU: threads, and memory that was freed. Floor 0.

A step frees what it allocated, and the next one allocates the same again. glibc's malloc hands
large blocks back to the system each time, and every page of a block that comes back is zeroed at
its first touch: some percent of a step of width 512.
"""

from __future__ import annotations

import ctypes
import os

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 64 << 20))
"""Numbers of malloc.h: blocks below 1 GiB are reused, and nothing below 2 GiB is handed back."""


def use_cpu(threads: int) -> bool:
    """Threads of torch's operations, and freed memory is kept for what comes next.

    A user who tunes malloc by its environment variables is left alone.

    Args:
        threads: 0 leaves them as they are.

    Returns:
        Whether freed memory is kept: not where malloc is another than glibc's.
    """
    if threads:
        torch.set_num_threads(threads)
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    found = [mallopt(setting, value) for setting, value in _SETTINGS]
    return found == [1] * len(found)
