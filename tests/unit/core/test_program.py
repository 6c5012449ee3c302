"""Programs: compiled only where asked for, by size alone, and never where autograd must look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nl.core import program
from nl.core.program import MAX_VARIANTS, Program, compiled, set_compiled


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def doubled() -> Program:
    def function(spec: float, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return x * spec, x if y is None else x + y

    return Program(function)


def test_a_program_runs_as_it_is_unless_compilation_is_on() -> None:
    twice, x = doubled(), torch.ones(2, 16)
    assert torch.equal(twice(2.0, x, None, tokens=16)[0], 2 * x)
    assert not twice.variants
    with compiled("aot_eager"):
        found = twice(2.0, x, None, tokens=16)
    assert torch.equal(found[0], 2 * x)
    assert len(twice.variants) == 1
    assert set_compiled(None) is None


def test_only_whole_multiples_of_tokens_are_compiled_and_the_rest_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(program.log, "warning", lambda text, *args: lines.append(text % args))
    twice = doubled()
    with compiled("aot_eager"):
        for tokens in (12, 1, 15, 17):
            twice(2.0, torch.ones(2, tokens), None, tokens=tokens)
    assert not twice.variants
    assert len(lines) == 1
    assert "train.compile" in lines[0]
    assert "12 tokens: only multiples of 8" in lines[0]


def test_what_needs_a_gradient_is_left_to_autograd() -> None:
    twice, x = doubled(), torch.ones(2, 16, requires_grad=True)
    with compiled("aot_eager"):
        y = twice(3.0, x, None, tokens=16)[0]
        y.sum().backward()
        assert not twice.variants
        with torch.no_grad():
            twice(3.0, x, None, tokens=16)
    assert torch.equal(x.grad, torch.full_like(x, 3.0))
    assert len(twice.variants) == 1


def test_more_sizes_than_there_is_room_for_run_uncompiled_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(program.log, "warning", lambda text, *args: lines.append(text % args))
    monkeypatch.setattr(program, "MAX_VARIANTS", 2)
    twice = doubled()
    with compiled("aot_eager"):
        for rows in (1, 2, 3, 4):
            x = torch.ones(rows, 16)
            assert torch.equal(twice(2.0, x, x, tokens=16)[1], 2 * x)
    assert len(twice.variants) == 2 < MAX_VARIANTS
    assert len(lines) == 1
    assert "train.compile" in lines[0]
