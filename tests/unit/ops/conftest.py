"""The two forms of operations that have kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from nl.core.native import cpp_compiler, torch_only


@pytest.fixture(params=["native", "torch"])
def done_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels, which then have to be there, and torch's own operations."""
    native = request.param == "native"
    if native and cpp_compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("NL_NATIVE", "on" if native else "auto")
    with contextlib.nullcontext() if native else torch_only():
        yield request.param
