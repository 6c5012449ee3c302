"""Chunks of Titans memories as traced programs; ``test_titans_scan`` has them as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from nl.core.native import cpp_compiler, torch_only
from nl.core.program import compiled
from nl.nn.titan import TitanMemory
from nl.nn.titan_config import TitanConfig
from nl.ops.titans_programs import CHUNK, CHUNK_BACK, WORTH
from nl.ops.titans_scan import ScanRule, titans_scan_programs
from tests.unit.ops import test_titans_scan


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(test_titans_scan, "fast_scan", titans_scan_programs)
    yield
    CHUNK.variants.clear()
    CHUNK_BACK.variants.clear()
    torch.compiler.reset()


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("momentum", [True, False])
def test_traced_chunks_equal_the_token_loop(momentum: bool, anchored: bool) -> None:
    inputs = test_titans_scan.draw(24, 2)
    before = len(CHUNK.variants), len(CHUNK_BACK.variants)
    with compiled("aot_eager"):
        test_titans_scan.compare(inputs, ScanRule(8, True), momentum, anchored)
    assert (len(CHUNK.variants), len(CHUNK_BACK.variants)) == (before[0] + 1, before[1] + 1)


@torch.no_grad()
def test_chunks_that_are_slower_as_programs_are_left_to_the_scan() -> None:
    before = len(CHUNK.variants)
    for period in (WORTH - 8, WORTH):
        memory = TitanMemory(TitanConfig(head_size=8, period=period), 16)
        with compiled("aot_eager"), torch_only():
            memory(torch.randn(1, 2 * period, 16), position=0)
        assert len(CHUNK.variants) == before + (period == WORTH)


@torch.no_grad()
def test_where_there_are_kernels_chunks_are_no_programs() -> None:
    if cpp_compiler() is None or os.environ.get("NL_NATIVE") == "off":
        pytest.skip("no kernels here: there is no C++ compiler, or NL_NATIVE=off")
    before = len(CHUNK.variants)
    memory = TitanMemory(TitanConfig(head_size=8, period=WORTH), 16)
    with compiled("aot_eager"):
        memory(torch.randn(1, 2 * WORTH, 16), position=0)
    assert len(CHUNK.variants) == before
