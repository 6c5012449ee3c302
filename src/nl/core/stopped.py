"""SIGTERM for work that has nothing to save: it ends as Ctrl-C ends it. Floor 0."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


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


def _raise(*_: object) -> None:
    raise Terminated
