"""How a launcher ends: with its exit code, without taking Python down. Floor 4.

Process groups that FSDP2 and DeepSpeed still hold when the run is over keep gloo's threads alive
(two per group). Where one of them asks for the interpreter while that is being taken down, the
process ends with SIGABRT after all its work was done and saved. Taking down torch's modules also
takes a second or more. So a process that is nothing but a launcher does what Python does before it
ends, and then ends.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from nl.core.stopped import stopped_code
from nl.dist.meeting import met
from nl.run.ending import leave, open_streams


@contextlib.contextmanager
def leaving(script: Path) -> Iterator[None]:
    """Around all that a launcher does: its process ends here with its exit code.

    One that fails with an exception ends as Python does; so does a process that was not started
    to run ``script``, unless it is one rank of several.
    """
    open_streams()
    code: object = None
    try:
        yield
    except SystemExit as ending:
        code = ending.code
        if not _ours(script) or not isinstance(code, int | None):
            raise
    except KeyboardInterrupt as stop:  # training itself listens: nothing had begun
        if not _ours(script):
            raise
        sys.stderr.write("stopped\n")
        code = stopped_code(stop)
    if _ours(script):
        leave(code if isinstance(code, int) else 0)


def _ours(script: Path) -> bool:
    """Whether nothing else is left to do in this process after ``script``."""
    mine = (Path(word).resolve() == script for word in sys.orig_argv if word.endswith(script.name))
    return met() is not None or any(mine)
