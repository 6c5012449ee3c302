"""What every sub-layer is told about the call it is part of. Floor 2."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nl.nn.router import RouteContext


class ReadContext(NamedTuple):
    """One contiguous read of the sequence.

    Attributes:
        position: tokens read before this call (host-side int, the same for all rows).
        write: False freezes every memory.
        keep: False when the State after this call is dropped, so that work which only it would
            see may be left out; outputs are the same either way.
        route: what the router of this block is told; None without experts.
        cos, sin: rotary tables (T, K / 2) for this call, None without rotary positions.
    """

    position: int
    write: bool
    keep: bool
    cos: Tensor | None
    sin: Tensor | None
    route: RouteContext | None = None

    def writes(self, length: int, period: int, frozen: int) -> bool:
        """Whether a memory has to write in this call of ``length`` tokens.

        It is left out where nothing will read it: the caller drops the State and the call ends
        before the next chunk. Period 0: every token reads its own write.
        """
        read_after_write = period == 0 or length > period - (self.position - frozen) % period
        return self.write and (self.keep or read_after_write)
