"""A tiny run on several gloo ranks, some of which may die or hang; prints JSON.

Usage: group.py CASES_JSON; a case is {changes, world, strategy, places: {rank: environment}}. All
in one process that forks, so that everything loads once.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiny
import torch

import nl.assembly
from nl.config import ConfigError
from nl.dist.deepspeed import import_deepspeed
from nl.train import finish


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fork(action: Callable[[], object], words: Path) -> int:
    """Do ``action`` in a process of its own, its stderr in a file; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        action()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except ConfigError as error:
        code = 2
        sys.stderr.write(f"{error}\n")
    finally:  # whatever happened, a forked process ends here
        if isinstance(sys.exc_info()[1], Exception):
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def start(
    rank: int,
    world: int,
    port: int,
    changes: dict[str, Any],
    place: Mapping[str, str],
    strategy: str = "ddp",
) -> int:
    """Start one rank in a process of its own; returns its id."""

    def train() -> None:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        if strategy != "single":
            os.environ |= {name: str(value) for name, value in here.items()}
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ |= dict(place)
        if place.get("TINY_CRASH_IN") == "summary":
            finish.write_json = lambda *_: tiny.crash("SIGKILL")
        nl.assembly.launch(tiny.tiny_run(**changes), strategy=strategy)

    where = changes.get("run__dir") or changes["run__root"]
    return fork(train, Path(f"{where}-rank{rank}.txt"))


def wait(pids: list[int], seconds: float) -> list[int | None]:
    """Exit codes (negative: the signal) of processes; None: killed here for lasting too long."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(pids):
        late = time.monotonic() > deadline
        for pid in [p for p in pids if p not in codes]:
            if late:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if done:
                codes[pid] = None if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def group(
    changes: dict[str, Any],
    world: int,
    places: Mapping[int, Mapping[str, str]],
    *,
    strategy: str = "ddp",
    seconds: float = 300.0,
) -> list[int | None]:
    """All ranks to their ends, each with its own additions to the environment."""
    port = free_port()
    pids = [start(r, world, port, changes, places.get(r, {}), strategy) for r in range(world)]
    return wait(pids, seconds)


def main() -> None:
    cases, found = json.loads(sys.argv[1]), []
    warm = {"run__dir": cases[0]["changes"]["run__dir"] + "-warm", "train__steps": 1}
    nl.assembly.launch(tiny.tiny_run(**warm))  # imports what all ranks would import again
    if any(case.get("strategy") == "deepspeed" for case in cases):
        import_deepspeed(torch.device("cpu"))
        # What its engine asks for Muon, and with it torch's compiler: seconds in every rank.
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    for case in cases:
        begin = time.monotonic()
        places = {int(rank): place for rank, place in case.get("places", {}).items()}
        strategy = case.get("strategy", "ddp")
        codes = group(case["changes"], case["world"], places, strategy=strategy)
        found.append({"codes": codes, "seconds": time.monotonic() - begin})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
