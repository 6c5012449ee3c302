"""Numbers as people read them: few digits, counts with a unit, times in words. Floor 1."""

from __future__ import annotations

import math

from nl.report.frames import is_number

DASH = "-"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def figure(value: object, digits: int = 4) -> str:
    """A measured number with ``digits`` significant digits; a dash for anything else."""
    if not isinstance(value, (int, float)) or not is_number(value):
        return DASH
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or value == int(value):
        return str(int(value)) if abs(value) < 1e6 else f"{value:.{digits}g}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}"
    return f"{value:#.{digits}g}".removesuffix(".")


def count(value: object) -> str:
    """A count with a unit: 1234567 -> 1.23M."""
    if not isinstance(value, (int, float)) or not is_number(value):
        return DASH
    for size, unit in UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def duration(seconds: object) -> str:
    """Seconds as ``1 h 02 min``, ``3 min 05 s`` or ``4.2 s``."""
    if not isinstance(seconds, (int, float)) or not is_number(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def with_error(value: object, stderr: object, digits: int = 4) -> str:
    """``value +- stderr``, the value given to the precision of its error."""
    if not isinstance(value, (int, float)) or not isinstance(stderr, (int, float)) or stderr <= 0:
        return figure(value, digits)
    if not math.isfinite(value) or not math.isfinite(stderr):
        return figure(value, digits)
    places = max(0, 1 - math.floor(math.log10(stderr)))
    if places > 6 or max(abs(value), stderr) >= 1e6:
        return f"{figure(value, digits)} +- {figure(stderr, 2)}"
    return f"{value:.{places}f} +- {stderr:.{places}f}"
