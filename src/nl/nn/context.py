"""What every sub-layer is told about the call it is part of. Floor 2."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ReadContext(NamedTuple):
    """One contiguous read of the sequence.

    Attributes:
        position: tokens read before this call (host-side int, the same for all rows).
        write: False freezes every memory.
        keep: False when the State after this call is dropped, so that work which only it would
            see may be left out; outputs are the same either way.
        cos, sin: rotary tables (T, K / 2) for this call, None without rotary positions.
    """

    position: int
    write: bool
    keep: bool
    cos: Tensor | None
    sin: Tensor | None
