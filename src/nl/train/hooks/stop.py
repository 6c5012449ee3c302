"""Signals: the first asks for a save after this step, the second ends at once. Floor 5."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from nl.core.logs import get_logger

log = get_logger(__name__)

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


class StopSignals:
    """Context manager that listens to SIGTERM, SIGINT and SIGUSR1 while work runs.

    Args:
        answer: what is done after the first signal, as the user is told.

    Attributes:
        received: number of the first signal, 0 before any.
    """

    def __init__(self, answer: str = "saving after this step") -> None:
        self.received = 0
        self._told = f"signal received: {answer}; a second one ends at once\n".encode()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        os.write(2, self._told)


def exit_code(number: int) -> int:
    """What the process exits with after saving for signal ``number``."""
    return EXIT_CODES[signal.Signals(number)]
