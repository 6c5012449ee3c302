"""Ctrl-C and SIGTERM for work that has nothing to save. Floor 0."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what Ctrl-C cleans up is cleaned up, too."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``; without effect beside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once, with a line and code 130: nothing has begun.

    An exception would come out of the middle of a package, which may take it for its own. Without
    effect beside the main thread, and where Ctrl-C is ignored or somebody else's.
    """
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stopped_code(stop: KeyboardInterrupt) -> int:
    """The exit code after it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _raise(*_: object) -> None:
    raise Terminated


def _end(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(128 + number)
