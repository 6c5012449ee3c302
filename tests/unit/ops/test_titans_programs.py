"""Chunks of Titans memories as traced programs; ``test_titans_scan`` has them as they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nl.core.program import compiled
from nl.ops.titans_programs import CHUNK, CHUNK_BACK
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
