"""Ctrl-C and SIGTERM for work that has nothing to save. Floor 0."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

Answer: TypeAlias = Callable[[int, FrameType | None], None]

PAUSE = 0.05
"""Seconds until a signal that came during an import is tried again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what Ctrl-C cleans up is cleaned up, too."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside, both signals end the process at once, with a line and its code: nothing has begun.

    Also inside ``terminable``.
    """
    with _answered({signal.SIGINT: _end, signal.SIGTERM: _end}, instead_of_own=True):
        yield


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, Ctrl-C raises ``KeyboardInterrupt`` and SIGTERM ``Terminated``.

    An import under way is waited for: some packages swallow what is raised while they load, others
    are left half loaded. A second signal meanwhile ends the process at once.
    """
    waiting: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not _loads(frame):
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if waiting:
            _end(number, frame)
        waiting.append(number)
        signal.setitimer(signal.ITIMER_REAL, PAUSE)

    def again(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(waiting.pop())

    with _answered({signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGALRM: again}):
        try:
            yield
        finally:
            if waiting:
                signal.setitimer(signal.ITIMER_REAL, 0)


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


@contextlib.contextmanager
def _answered(
    answers: dict[signal.Signals, Answer], *, instead_of_own: bool = False
) -> Iterator[None]:
    """Inside, signals are answered so, with ``instead_of_own`` also where this module listens.

    Without effect beside the main thread, and for a signal that is ignored or somebody else's.
    """

    def free(number: signal.Signals) -> bool:
        found = signal.getsignal(number)
        own = instead_of_own and getattr(found, "__module__", "") == __name__
        return own or found in (signal.SIG_DFL, signal.default_int_handler)

    alone = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in answers if alone and free(number)}
    for number in before:
        signal.signal(number, answers[number])
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loads(frame: FrameType | None) -> bool:
    """Whether an import is under way where the signal came."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end(number: int, _frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(128 + number)
