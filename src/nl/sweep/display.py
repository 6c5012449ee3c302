"""What a sweep shows: a changing line on a terminal, else a line now and then. Floor 1."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 15.0
NAMES = 3


class Display:
    """Lines on stderr.

    Args:
        eta: also say how long the rest may take.
    """

    def __init__(self, eta: bool = False) -> None:
        self.eta, self.terminal = eta, sys.stderr.isatty()
        self._last = time.monotonic()
        self._shown = False

    def tell(self, line: str) -> None:
        """Something happened."""
        self._clear()
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stderr.flush()

    def show(self, facts: dict[str, Any]) -> None:
        """How far it is."""
        now = time.monotonic()
        if self.terminal:
            self._clear()
            sys.stderr.write(progress_line(facts, self.eta)[:119])
            sys.stderr.flush()
            self._shown = True
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            self.tell(progress_line(facts, self.eta))

    def close(self) -> None:
        """Leave a clean line."""
        self._clear()

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            self._shown = False


def progress_line(facts: dict[str, Any], eta: bool) -> str:
    """Counts, rate, elapsed and what runs."""
    parts = [f"{facts['done']} of {facts['total']} done"]
    parts += [f"{facts['failed']} failed"] if facts["failed"] else []
    parts.append(f"{facts['jobs_per_minute']:.1f} jobs/min")
    parts.append(f"elapsed {clock(facts['elapsed_seconds'])}")
    if eta and facts["seconds_left"] is not None:
        parts.append(f"about {clock(facts['seconds_left'])} left")
    names = [
        name if share is None else f"{name} {share:.0%}" for name, share in facts["running"].items()
    ]
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(parts) + (f": {', '.join(names[:NAMES])}{more}" if names else "")


def clock(seconds: float) -> str:
    """``4:05`` or ``1:04:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
