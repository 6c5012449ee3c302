"""train.recompute_every: the same losses and gradients in less memory, or a refusal."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from nl.bench.live import LiveBytes
from nl.config import ConfigError
from nl.core.state import tensors
from nl.dist.recompute import check_segments, recompute_segments
from nl.dist.single import Single
from nl.fit import check
from nl.models.documents import Part
from nl.models.scoring import segments
from tests.laws.conftest import small, tokens

STARTS = ([], [7], [30])


def result(model: Any, keep: bool) -> list[torch.Tensor]:
    """Losses, gradients and, if kept, the State."""
    x, labels = tokens(3, 45), tokens(3, 45, 1)
    nll, out = model.nll(x, labels, keep=keep, starts=STARTS)
    extra = tensors(out.state) if keep else []
    weights = torch.linspace(0.5, 1.5, nll.numel()).view_as(nll)
    loss = (nll * weights).sum() + sum(t.square().sum() for t in extra)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [nll, *(g for g in found if g is not None), *extra]


@pytest.mark.parametrize("every", [1, 16, 40])
@pytest.mark.parametrize("keep", [True, False])
def test_segments_change_no_number(kind: str, float64: None, every: int, keep: bool) -> None:
    model = small(kind)
    other = copy.deepcopy(model)
    recompute_segments(other, every)
    for value, wanted in zip(result(other, keep), result(model, keep), strict=True):
        assert (value - wanted).abs().max() < 1e-10 * wanted.abs().max().clamp(min=1)


def test_a_long_row_takes_less_memory() -> None:
    def peak(every: int) -> int:
        model: Any = small("hope_attention")
        recompute_segments(model, every)
        x = tokens(2, 512)
        with LiveBytes() as live:
            nll, out = model.nll(x[:, :-1], x[:, 1:], keep=False)
            nll.sum().backward()
            del nll, out
        return live.peak

    assert peak(64) < 0.6 * peak(0)


def test_segments_are_whole_tiles() -> None:
    parts = [Part(slice(a, a + 8), []) for a in range(0, 40, 8)]
    found = [[p.tokens.start for p in group] for group in segments(parts, 12)]
    assert found == [[0, 8], [16, 24], [32]]
    assert [len(group) for group in segments(parts, 0)] == [5]


def test_what_cannot_be_read_again_is_refused(tiny: ModuleType) -> None:
    check(tiny.tiny_run(train__recompute_every=16), Single.start("cpu"))
    with pytest.raises(ConfigError, match="16; the model needs inner_autograd"):
        check_segments(16, {"inner_autograd"}, "row")
    with pytest.raises(ConfigError, match=r"model\.cms\.scope=batch"):
        check_segments(16, (), "batch")
    with pytest.raises(ConfigError, match="Linear does not read in segments"):
        recompute_segments(torch.nn.Linear(2, 2), 16)
    sharded = Single.start("cpu")
    sharded.capabilities = replace(sharded.capabilities, segments=False)
    with pytest.raises(ConfigError, match="single has not gathered"):
        check(tiny.tiny_run(train__recompute_every=16), sharded)
