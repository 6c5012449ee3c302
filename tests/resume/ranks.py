"""Run a tiny run on two gloo ranks; forks, so that everything loads once. Prints exit codes.

Usage: ranks.py CHANGES_JSON PORT; the first run is stopped by SIGTERM, the second resumes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tiny

import nl.assembly


def rank(number: int, port: int, changes: dict[str, Any]) -> int:
    """Start one rank; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    code = 0
    try:
        nl.assembly.launch(tiny.tiny_run(**changes), strategy="ddp")
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    os._exit(code)


def pair(port: int, changes: dict[str, Any]) -> list[int]:
    """Both ranks to their ends; their exit codes."""
    return [
        os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for pid in [rank(number, port, changes) for number in range(2)]
    ]


def main() -> None:
    changes, port = json.loads(sys.argv[1]), int(sys.argv[2])
    warm = changes | {"run__dir": changes["run__dir"] + "-warm", "train__steps": 1}
    nl.assembly.launch(tiny.tiny_run(**warm))  # imports what both ranks would import again
    os.environ |= {"TINY_CRASH_AT": "6", "TINY_CRASH_SIGNAL": "SIGTERM"}
    stopped = pair(port, changes)
    del os.environ["TINY_CRASH_AT"]
    print(json.dumps([stopped, pair(port, changes | {"resume": "auto"})]))


if __name__ == "__main__":
    main()
