"""Functions that ``train.compile`` turns into machine code, each on its own. Floor 0.

A program is given plain data and tensors and gives tensors back: no side effects, and autograd does
not look inside (it is called from the two passes of an ``autograd.Function``, or without
gradients). Compiled code is for fixed sizes. Whether a call is compiled depends on its sizes alone,
so that a continued run computes what the uninterrupted one would have.

A step is what a loop does again and again, with autograd looking inside: in a compiled module the
loop would be unrolled for every number of turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from nl.core.logs import get_logger

log = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

TOKEN_MULTIPLE = 8
"""Calls with another number of tokens run as they are: pieces of chunks come in all sizes."""
MAX_VARIANTS = 16
"""Compiled forms of one program (sizes, dtypes, layouts); further ones run as they are."""

PIECES = "train.compile: %s runs uncompiled on %d tokens: only multiples of %d are compiled"
FULL = "train.compile: %s has %d compiled forms; calls of other sizes run uncompiled"

_backend: str | None = None


def set_compiled(backend: str | None) -> str | None:
    """Compile programs from now on, in this process, with this backend of torch.compile.

    None: run them as they are. Returns what was set before.
    """
    global _backend
    before, _backend = _backend, backend
    return before


@contextmanager
def compiled(backend: str | None = "inductor") -> Iterator[None]:
    """``set_compiled`` for a while."""
    before = set_compiled(backend)
    try:
        yield
    finally:
        set_compiled(before)


def _plain(x: Tensor) -> bool:
    """Whether a tensor is what ``detach`` makes of it."""
    return type(x) is Tensor and not x.requires_grad


def step(function: Callable[P, R]) -> Callable[P, R]:
    """A function or method, compiled where that is asked for; sizes that vary become variables."""
    made: dict[str, Callable[P, R]] = {}

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _backend is None or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if _backend not in made:
            made[_backend] = torch.compile(function, backend=_backend)
        return made[_backend](*args, **kwargs)

    return run


class Program:
    """A function ``(spec, *tensors) -> tensors``, compiled where that is asked for.

    Args:
        function: of hashable plain data and tensors (or None); gives a tensor or a tuple of them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.variants: set[Any] = set()
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._full = self._pieces = False

    def __call__(self, spec: Any, *tensors: Tensor | None, tokens: int) -> Any:
        """Run; ``tokens`` is how many there are."""
        backend = _backend
        if backend is None or not self.wanted(tokens) or not self._allowed(backend, spec, tensors):
            return self.function(spec, *tensors)
        if backend not in self._compiled:
            self._compiled[backend] = torch.compile(
                self.function, fullgraph=True, dynamic=False, backend=backend
            )
        # What has no gradient here must not make two variants of itself.
        given = (t if t is None or _plain(t) else t.detach() for t in tensors)
        with torch.no_grad():
            return self._compiled[backend](spec, *given)

    def wanted(self, tokens: int) -> bool:
        """Whether calls of this many tokens are to be compiled; if not for their number, say so."""
        if torch.compiler.is_compiling() or _backend is None:
            return False
        if tokens % TOKEN_MULTIPLE and not self._pieces:
            log.warning(PIECES, self.function.__qualname__, tokens, TOKEN_MULTIPLE)
            self._pieces = True
        return tokens % TOKEN_MULTIPLE == 0

    def _allowed(self, backend: str, spec: Any, tensors: tuple[Tensor | None, ...]) -> bool:
        """Whether this call is compiled: no autograd is needed and there is room."""
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return False
        layout = tuple(
            None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors
        )
        variant = backend, spec, layout
        if variant in self.variants:
            return True
        if len(self.variants) == MAX_VARIANTS:
            if not self._full:
                log.warning(FULL, self.function.__qualname__, MAX_VARIANTS)
            self._full = True
            return False
        self.variants.add(variant)
        return True
