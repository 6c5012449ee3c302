"""How a rank ends: with its exit code, whatever threads the libraries have left. Floor 4.

Process groups that FSDP2 and DeepSpeed still hold when the run is over keep gloo's threads alive
(two per group). Where one of them asks for the interpreter while that is being taken down, the
process ends with SIGABRT after all its work was done and saved. So a rank of several does what
Python does before it ends, and then ends without taking anything down.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from nl.dist.meeting import met


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Around all that a launcher does: one rank of several ends here with its exit code.

    A process alone, and one that fails with an exception, ends as Python does.
    """
    code: object = None
    try:
        yield
    except SystemExit as ending:
        code = ending.code
        if met() is None or not isinstance(code, int | None):
            raise
    if met() is not None:
        leave(code if isinstance(code, int) else 0)


def leave(code: int) -> NoReturn:
    """Wait for threads that want it, run what is registered for the end, flush, end."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the other end of a pipe may be gone
            stream.flush()
    os._exit(code)
