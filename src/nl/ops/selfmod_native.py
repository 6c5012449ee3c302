"""``nl.ops.selfmod_read`` as a kernel of C++: ``native/selfmod_read.cpp``. Floor 1.

The equations are those of the torch form; this module says whether a call can be taken and hands
the tensors over. Inputs that are pieces of longer tensors are read where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from nl.core.native import Kernel

KERNEL = Kernel("selfmod_read")

_BANK_TENSORS = 6
"""Of the initial weights, and as many of what was added to them."""


class _Numbers(NamedTuple):
    """Sizes, options and distances between numbers; ``Numbers`` of the kernel has this order."""

    batch: int
    heads: int
    size: int
    tokens: int
    taps: int
    makers: int
    memory_units: int
    maker_units: int
    gate_units: int
    skip: bool
    gelu: bool
    padded: tuple[int, int]
    logits: tuple[int, int, int] = (0, 0, 0)
    keys: tuple[int, int] = (0, 0)
    values: tuple[int, int] = (0, 0)
    answers: tuple[int, int] = (0, 0)

    def flat(self) -> list[int]:
        """In a row."""
        return [*map(int, self[:11]), *(stride for part in self[11:] for stride in part)]


def _first(x: Tensor) -> Tensor:
    """The first number: a place in memory from which the kernel finds the others by strides."""
    return x.as_strided((1,), (1,))


def _dense(x: Tensor) -> Tensor:
    """The same with the last dimension contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


class NativeRead:
    """Reading with given tensors and options, and its gradients.

    Args:
        skip: whether answers contain the query.
        gelu: the activation, instead of SiLU.
        tokens: how many there are.
        given: ``padded``, ``taps`` and the twelve tensors of the banks.
    """

    def __init__(self, skip: bool, gelu: bool, tokens: int, given: Sequence[Any]) -> None:
        padded, taps, *banks = given
        self.padded = _dense(padded)
        self.taps = None if taps is None else taps.contiguous()
        self.banks = [bank.contiguous() for bank in banks]
        hidden, _, _, maker, _, gate = self.banks[:_BANK_TENSORS]
        self.numbers = _Numbers(
            batch=padded.shape[0],
            heads=hidden.shape[0],
            size=hidden.shape[2],
            tokens=tokens,
            taps=0 if taps is None else len(taps),
            makers=maker.shape[1],
            memory_units=hidden.shape[1],
            maker_units=maker.shape[3],
            gate_units=gate.shape[3],
            skip=skip,
            gelu=gelu,
            padded=(self.padded.stride(0), self.padded.stride(1)),
        )

    def fits(self, logits: Tensor) -> bool:
        """Whether all sizes are as they should be: the kernel trusts them, torch says what not."""
        n = self.numbers
        rows, width = n.batch * n.heads, n.heads * n.size
        shapes = [
            (n.memory_units, n.size),
            (1, n.size, n.memory_units),
            (n.makers * n.maker_units, n.size),
            (n.makers, n.size, n.maker_units),
            (2 * n.gate_units, n.size),
            (2, 1, n.gate_units),
        ]
        wanted = [(lead, *shape) for lead in (n.heads, rows) for shape in shapes]
        return (
            n.makers in (2, 3)
            and rows * n.tokens > 0
            and self.padded.shape == (n.batch, n.tokens + max(n.taps, 1) - 1, 4 * width)
            and (self.taps is None or self.taps.shape == (n.taps, 3 * width))
            and logits.shape == (rows, 2, n.tokens)
            and all(t.shape == shape for t, shape in zip(self.banks, wanted, strict=True))
        )

    def read(self, logits: Tensor) -> list[Tensor]:
        """Keys, values, rate, log decay, answers, and the factors of keys and values."""
        n, new = self.numbers, self.padded.new_empty
        rows, tokens = n.batch * n.heads, n.tokens
        wide, flat, factor = (rows, n.size, tokens), (rows, tokens), (rows, 1, tokens)
        made = [new(shape) for shape in (wide, wide, flat, flat, wide, factor, factor)]
        numbers = n._replace(logits=(logits.stride(0), logits.stride(1), logits.stride(2)))
        inputs = [_first(self.padded), self.taps, _first(logits), *self.banks]
        KERNEL.run("read_forward", numbers.flat(), [*inputs, *made])
        return made

    def adjoints(self, grads: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the projections, taps, logits and the twelve tensors of the banks.

        Args:
            grads: of keys, values, rate, log decay and answers.
            kept: keys, values, their factors, rate, log decay.
        """
        n, new = self.numbers, self.padded.new_empty
        by_keys, by_values, by_rate, by_log, by_answers = grads
        by_keys, by_values, by_answers = map(_dense, (by_keys, by_values, by_answers))
        strides = [(grad.stride(0), grad.stride(1)) for grad in (by_keys, by_values, by_answers)]
        numbers = n._replace(keys=strides[0], values=strides[1], answers=strides[2])
        keys, values, key_factor, value_factor, rate, log_decay = kept
        made = [keys, values, rate, log_decay, None, key_factor, value_factor]
        rates = [by_rate.contiguous(), by_log.contiguous()]
        given = [_first(by_keys), _first(by_values), *rates, _first(by_answers)]
        by_padded, by_logits = new(self.padded.shape), new(len(rate), 2, n.tokens)
        by_taps = of_rows = None
        if self.taps is not None:
            by_taps, of_rows = new(self.taps.shape), new(n.batch, *self.taps.shape)
        found = [new(bank.shape) for bank in self.banks]
        initial, added = found[:_BANK_TENSORS], found[_BANK_TENSORS:]
        results = [by_padded, by_taps, by_logits, *added, *initial, of_rows]
        inputs = [_first(self.padded), self.taps, None, *self.banks]
        KERNEL.run("read_backward", numbers.flat(), [*inputs, *made, *given, *results])
        return [by_padded, by_taps, by_logits, *found]
