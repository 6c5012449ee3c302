"""SIGTERM for work that has nothing to save: it ends as Ctrl-C ends it. Floor 0."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what Ctrl-C cleans up is cleaned up, too."""


PAUSE = 0.05
"""Seconds until a signal that came during an import is tried again."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``; without effect beside the main thread.

    An import under way is waited for: some packages swallow what is raised while they load, others
    are left half loaded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(signal.SIGTERM, _raise), signal.signal(signal.SIGALRM, _again)]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGTERM, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """A stop inside carries what was kept by then, for ``stopped_text``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(kept())
        raise


def stopped_text(stop: KeyboardInterrupt) -> str:
    """That it stopped, and what was kept where that is known."""
    return ": ".join(["stopped", *getattr(stop, "__notes__", ())])


def stopped_code(stop: KeyboardInterrupt) -> int:
    """The exit code after it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _raise(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.setitimer(signal.ITIMER_REAL, PAUSE)
            return
        frame = frame.f_back
    raise Terminated


def _again(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)
