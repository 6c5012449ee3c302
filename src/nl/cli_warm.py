"""A process that has imported everything and forks launchers: ``python -m nl.cli_warm``. Floor 8.

One request per line on stdin, ``{"id", "argv", "environment", "log", "folder"}``: a fork runs the
launcher ``argv[0]`` as a script. Answers on stdout, one line each: ``{"id", "pid"}`` when it runs,
``{"id", "code", "cpu"}`` when it has ended. A job then costs no import of torch; it is a process of
its own all the same, with its own session, log and exit code. It ends with its stdin, its jobs do
not.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from nl.run.ending import leave


def main() -> None:
    """Serve until stdin ends and every fork has been told of."""
    import torch._dynamo  # noqa: F401 - imported by the first optimizer: half a second per job

    import nl.assembly  # noqa: F401 - what every launcher imports first
    from nl.assembly import publish
    from nl.config.hydra import find_plugins

    publish()
    find_plugins()
    gc.collect()
    gc.freeze()  # a collection in a fork then neither visits nor copies what was imported here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    names: dict[int, Any] = {}
    listen = selectors.DefaultSelector()
    listen.register(0, selectors.EVENT_READ)
    listen.register(wake, selectors.EVENT_READ)
    rest, open_input = b"", True
    answer({"ready": True})
    while open_input or names:
        for key, _ in listen.select():
            if key.fd == wake:
                os.read(wake, 4096)
                continue
            data = os.read(0, 65536)
            if not data:
                open_input = False
                listen.unregister(0)
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = begin(request)
                names[pid] = request["id"]
                answer({"id": request["id"], "pid": pid})
        reap(names)


def answer(data: dict[str, Any]) -> None:
    """One line for the sweep; nobody listens any more when it was killed."""
    try:
        os.write(1, json.dumps(data).encode() + b"\n")
    except BrokenPipeError:
        return


def reap(names: dict[int, Any]) -> None:
    """Tell of every fork that has ended."""
    while names:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in names:
            used = usage.ru_utime + usage.ru_stime
            code = os.waitstatus_to_exitcode(status)
            answer({"id": names.pop(pid), "code": code, "cpu": used})


def begin(request: dict[str, Any]) -> int:
    """Fork; the child becomes the launcher and never returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        become(request)
        code = launch(request["argv"])
    finally:
        kind, error, trace = sys.exc_info()
        if kind is not None:
            traceback.print_exception(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def become(request: dict[str, Any]) -> None:
    """Session, signals, files, environment and folder of the job."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])


def launch(argv: list[str]) -> int:
    """Run a launcher as a script -> exit code."""
    sys.argv = argv
    sys.path[0] = str(Path(argv[0]).resolve().parent)
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
    leave(0)
