"""A head that learns: chunks against tokens, on outputs, states and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nl.bench.live import LiveBytes
from nl.core.batch import IGNORE
from nl.ops.head_memory import (
    head_cross_entropy,
    head_cross_entropy_reference,
    head_logits,
    head_logits_reference,
)
from nl.ops.head_walk import HeadRule, HeadWeights, HeadWrites

ROWS, WORDS, DIM = 3, 11, 6
SIZE = 32
RULES = [
    HeadRule(4, 1.0, SIZE),
    HeadRule(8, 0.9, SIZE),
    HeadRule(5, 0.8, 30, 0.5),
    HeadRule(1, 0.95, 16),
]


def drawn(length: int, seed: int = 0) -> tuple[Tensor, HeadWeights, Tensor]:
    """Hidden states, a head with strong rates that differ by word, targets with gaps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = normal(ROWS, length, DIM), normal(WORDS, DIM)
    head = HeadWeights(weight, normal(1) * 0.1 + 0.5, normal(DIM) * 0.3, 0.7, 3.0)
    target = torch.randint(WORDS, (ROWS, length), generator=generator)
    target[torch.rand(ROWS, length, generator=generator) < 0.1] = IGNORE
    return hidden, head, target


def leaves(hidden: Tensor, head: HeadWeights) -> list[Tensor]:
    parts = [hidden, head.weight, head.log_rate, head.toward]
    return [part.detach().requires_grad_() for part in parts]


def compare(found: HeadWrites, other: HeadWrites) -> None:
    for one, two in zip(found, other, strict=True):
        assert type(one) is type(two)
        assert isinstance(one, Tensor) or one == two
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("start", "length"), [(0, 24), (3, 17), (7, 2), (0, SIZE + 9), (13, 1)])
def test_chunks_are_the_token_loop(rule: HeadRule, start: int, length: int) -> None:
    hidden, head, target = drawn(start + length)
    before = HeadWrites()
    if start:
        first = hidden[:, :start], head, target[:, :start], before, 0, rule
        before = head_cross_entropy_reference(*first)[-1]
    grads, outs = [], []
    scale = torch.rand(ROWS, length, generator=torch.Generator().manual_seed(1)).double()
    for op in (head_cross_entropy, head_cross_entropy_reference):
        x, weight, log_rate, toward = leaves(hidden[:, start:], head)
        weights = HeadWeights(weight, log_rate, toward, *head[3:])
        nll, *rest = op(x, weights, target[:, start:], before, start, rule)
        parts = x, weight, log_rate, toward
        grads.append(torch.autograd.grad((nll * scale).sum(), parts, allow_unused=True))
        outs.append((nll, *rest))
    for one, two in zip(outs[0][:3], outs[1][:3], strict=True):
        torch.testing.assert_close(one, two)
    compare(outs[0][3], outs[1][3])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if two is None else two)


@pytest.mark.parametrize("rule", [*RULES, HeadRule(4, 0.9, SIZE, None)], ids=str)
@pytest.mark.parametrize("last", [0, 1])
def test_logits_are_the_token_loop_and_what_the_loss_is_of(rule: HeadRule, last: int) -> None:
    hidden, head, target = drawn(29)
    writes = head_cross_entropy_reference(hidden, head, target, HeadWrites(), 0, RULES[0])[-1]
    label = target[:, : 29 - last]
    outs, grads = [], []
    for op in (head_logits, head_logits_reference):
        parts = leaves(hidden, head)
        weights = HeadWeights(*parts[1:], *head[3:])
        logits, signal, after = op(parts[0], weights, label, writes, 29, rule)
        grads.append(torch.autograd.grad(logits.square().sum(), parts))
        outs.append((logits, signal, after))
    torch.testing.assert_close(outs[0][:2], outs[1][:2])
    compare(outs[0][2], outs[1][2])
    torch.testing.assert_close(grads[0], grads[1])
    if not last:
        _, *rest, after = head_cross_entropy(hidden, head, target, writes, 29, rule)
        torch.testing.assert_close(rest, [outs[0][1], outs[0][0].detach()])
        compare(after, outs[0][2])


def test_writes_do_not_depend_on_the_cut() -> None:
    hidden, head, target = drawn(2 * SIZE + 5)
    rule = RULES[1]
    whole = head_cross_entropy(hidden, head, target, HeadWrites(), 0, rule)
    writes, parts = HeadWrites(), []
    for begin, end in ((0, 3), (3, 4), (4, 50), (50, 56), (56, 2 * SIZE + 5)):
        piece = hidden[:, begin:end], head, target[:, begin:end], writes, begin, rule
        nll, _, _, writes = head_cross_entropy(*piece)
        parts.append(nll)
    torch.testing.assert_close(torch.cat(parts, 1), whole[0])
    compare(writes, whole[-1])
    writes, parts = HeadWrites(), []
    for begin, end in ((0, 3), (3, 20), (20, 36), (36, 2 * SIZE + 5)):  # parts of one call
        own = rule._replace(last=end == 2 * SIZE + 5)
        piece = hidden[:, begin:end], head, target[:, begin:end], writes, begin, own
        nll, _, _, writes = head_cross_entropy(*piece)
        parts.append(nll)
    torch.testing.assert_close(torch.cat(parts, 1), whole[0])
    compare(writes, whole[-1])


def test_a_head_that_only_reads_keeps_its_writes() -> None:
    hidden, head, target = drawn(20)
    writes = head_cross_entropy(hidden, head, target, HeadWrites(), 0, RULES[0])[-1]
    frozen = HeadRule(4, 1.0, SIZE, None)
    _, _, logits, after = head_cross_entropy(hidden, head, target, writes, 20, frozen)
    assert after is writes
    said = hidden @ head.weight.mT - head.rate() * (hidden @ writes.fast.mT)
    torch.testing.assert_close(logits, said)


def test_a_write_makes_what_was_said_likelier() -> None:
    hidden, head, target = drawn(4)
    again, twice = hidden.repeat(1, 2, 1), target.clamp(min=0).repeat(1, 2)
    nll, *_ = head_cross_entropy(again, head, twice, HeadWrites(), 0, RULES[0])
    assert (nll[:, 4:] < nll[:, :4]).all()


def test_low_precision_is_close() -> None:
    hidden, head, target = drawn(40)
    single = HeadWeights(*(part.float() for part in head[:3]), *head[3:])
    exact = head_cross_entropy(hidden, head, target, HeadWrites(), 0, RULES[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_cross_entropy(hidden.float(), single, target, HeadWrites(), 0, RULES[1])
    assert found[0].dtype == torch.float32
    assert found[3].fast is not None
    assert found[3].fast.dtype == torch.float32
    assert (found[0] - exact[0]).abs().mean() < 0.05 * exact[0].mean()


@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_gathered_stays_in_single_precision(grads: bool, autocast: bool) -> None:
    """Logits as the loss has them, in two calls, under autocast and with weights in bf16."""
    hidden, head, target = drawn(45)
    dtype = torch.float32 if autocast else torch.bfloat16
    low = HeadWeights(*(part.to(dtype) for part in head[:3]), *head[3:])
    hidden, rule = hidden.to(dtype), RULES[1]
    with (
        torch.set_grad_enabled(grads),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        writes = other = HeadWrites()
        for begin, end in ((0, 20), (20, 45)):
            part, label = hidden[:, begin:end], target[:, begin:end]
            logits, _, writes = head_logits(part, low, label, writes, begin, rule)
            _, _, said, other = head_cross_entropy(part, low, label, other, begin, rule)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, said, rtol=1e-4, atol=1e-4)
            compare(writes, other)
            assert {t.dtype for t in writes if isinstance(t, Tensor)} == {torch.float32}


def test_logits_are_the_same_with_and_without_a_graph() -> None:
    hidden, head, target = drawn(40)
    call = hidden, head, target, HeadWrites(), 0, RULES[0]
    logits, signal, writes = head_logits(*call)
    with torch.no_grad():
        found = head_logits(*call)
    torch.testing.assert_close(found[:2], (logits, signal))
    compare(found[2], writes)


def test_only_what_gradients_ask_for_is_computed_and_kept() -> None:
    """Products over all words: none for rates that are frozen; without a graph nothing is kept."""
    hidden, head, target = drawn(24)
    weight, (log_rate, toward) = head.weight.requires_grad_(), head[1:3]
    call = target, HeadWrites(), 0, RULES[0]
    work, kept = [], []
    for graph, rates in ((False, False), (True, False), (True, True)):
        own = (part.detach().requires_grad_(rates) for part in (log_rate, toward))
        saved: list[Tensor] = []
        with (
            torch.set_grad_enabled(graph),
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t), lambda t: t),
        ):
            head_cross_entropy(hidden, HeadWeights(weight, *own, *head[3:]), *call)
        work.append(counter.get_total_flops())
        kept.append(len(saved))
    assert work[0] == work[1] < work[2]
    assert kept[0] == 0 < kept[1] < kept[2]


def test_going_back_makes_nothing_of_the_size_of_the_logits() -> None:
    words, length = 500, 24
    hidden, weight = torch.randn(1, length, DIM), torch.randn(words, DIM, requires_grad=True)
    head = HeadWeights(weight, torch.zeros(1), torch.zeros(DIM), 1.0, 4.0)
    target = torch.zeros(1, length, dtype=torch.int64)
    nll, *_ = head_cross_entropy(hidden, head, target, HeadWrites(), 0, RULES[0])
    with LiveBytes() as live:
        nll.sum().backward()
    assert live.peak < nll.element_size() * length * words
