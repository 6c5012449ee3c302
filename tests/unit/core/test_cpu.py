"""Memory that was freed is kept, unless the user said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from nl.core.cpu import use_cpu
kept = use_cpu(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(8):
    faults()
print(kept, torch.get_num_threads(), faults())
"""
PAGES = 4 * 40_000_000 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
@pytest.mark.parametrize("own", [False, True])
def test_blocks_are_reused_unless_the_user_tunes_malloc(own: bool) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    if own:
        env["MALLOC_TOP_PAD_"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True
    )
    kept, threads, faults = done.stdout.split()
    assert kept == str(not own)
    assert threads == "1"
    if not own:  # transparent huge pages may make few of many
        assert int(faults) < PAGES // 20
