"""Progress of a long evaluation: a bar on a terminal, else a line every few seconds. Floor 6."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from nl.core.logs import get_logger

LINE_SECONDS = 5.0


class ProgressMeter:
    """``with ProgressMeter("perplexity", total, "texts") as meter: meter.advance(n)``; on stderr.

    Args:
        title: what is measured.
        total: how many items there are.
        unit: what they are, in the plural.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, rate="")

    def __enter__(self) -> ProgressMeter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count ``count`` more items as done."""
        self.done += count
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        if self._bar:
            self._bar.update(self._task, advance=count, rate=f"{rate:.1f}/s")
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            left = (self.total - self.done) / max(rate, 1e-9)
            get_logger(__name__).info(
                "%s: %d of %d %s, %.1f/s, %.0f s left",
                *(self.title, self.done, self.total, self.unit, rate, left),
            )
