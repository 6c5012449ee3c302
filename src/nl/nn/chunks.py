"""Where chunk ends cut a segment. Floor 2."""

from __future__ import annotations


def pieces(clock: int, length: int, period: int) -> list[int]:
    """Sizes of the pieces that chunk ends at multiples of ``period`` cut ``length`` tokens into.

    Args:
        clock: tokens before the segment, >= 0.
        length: of the segment, >= 1.
        period: tokens per chunk, >= 1.
    """
    first = min(length, period - clock % period)
    # Not divmod: torch.compile has no such thing for a symbolic clock.
    whole, rest = (length - first) // period, (length - first) % period
    return [first] + [period] * whole + ([rest] if rest else [])
