"""The end of a process that has done its work. Floor 1."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn

UNWRITTEN = 120
"""Python's own exit code where its last words could not be written."""


def open_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr an empty one.

    Otherwise the next file it opens takes their number, and what a library prints goes into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            empty = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(empty, mode, encoding="utf-8"))


def leave(code: int) -> NoReturn:
    """Wait for threads that want it, run what is registered for the end, flush, end.

    Python is not taken down: with torch imported that takes a second or more.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # as Python: wakes idle pools, then joins
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed before
            try:
                stream.flush()
            except OSError as error:
                if not isinstance(error, BrokenPipeError):
                    sys.stderr.write(f"{stream.name}: {error}\n")
                    code = code or UNWRITTEN
    os._exit(code)
