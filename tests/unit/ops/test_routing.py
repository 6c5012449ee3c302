"""Routing: keyed numbers, choices and gates against their naive twins, losses by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nl.ops.routing import (
    choose_experts,
    choose_experts_reference,
    choose_pairs,
    effective_experts,
    expert_counts,
    keyed_normal,
    limit_groups,
    mix_bits,
    mix_bits_reference,
    switch_loss,
    token_keys,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_bits_are_mixed_as_in_integers() -> None:
    values = [0, 1, -1, 12345, -(1 << 63), (1 << 63) - 1, 0x123456789ABCDEF]
    assert mix_bits(torch.tensor(values)).tolist() == [mix_bits_reference(v) for v in values]


def test_keyed_numbers_are_normal_and_functions_of_their_key() -> None:
    tokens = torch.arange(600).view(3, 200) % 7
    keys = token_keys(tokens, 5, draw=3)
    noise = keyed_normal(keys.flatten(), 64)
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03
    assert abs(float((noise[:, 1:] * noise[:, :-1]).mean())) < 0.03
    cut = torch.cat([token_keys(tokens[:, :9], 5, 3), token_keys(tokens[:, 9:], 14, 3)], 1)
    assert torch.equal(cut, keys)
    assert torch.equal(token_keys(tokens[1:2], 5, 3), keys[1:2])
    assert torch.equal(keyed_normal(keys[0], 64), noise[:200])
    others = [token_keys(tokens, 5, 4), token_keys(tokens, 6, 3), token_keys(tokens + 1, 5, 3)]
    assert not any((other == keys).any() for other in others)
    assert not torch.equal(keyed_normal(keys[0], 64, 1), noise[:200])


@pytest.mark.parametrize("gate", ["normalised", "probability", "sigmoid"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_choices_and_gates_are_those_of_the_loop(gate: Any, k: int) -> None:
    logits = draw(11, 6).requires_grad_()
    values = logits if gate == "sigmoid" else logits.log_softmax(-1)
    score = logits.detach() + draw(11, 6, seed=1)
    chosen = choose_experts(values, score, torch.tensor(k), 3, gate)
    naive = choose_experts_reference(values, score, k, gate)
    for n, own in enumerate(naive):
        assert chosen.ids[n].tolist() == [e for e, _ in own] + [6] * (3 - k)
        for slot, (_, value) in enumerate(own):
            torch.testing.assert_close(chosen.gates[n, slot], value)
    assert not chosen.gates[:, k:].any()
    weights = draw(11, 3, seed=2)
    ours = torch.autograd.grad((chosen.gates * weights).sum(), logits, retain_graph=True)[0]
    total = torch.stack(
        [weights[n, slot] * v for n, own in enumerate(naive) for slot, (_, v) in enumerate(own)]
    )
    torch.testing.assert_close(ours, torch.autograd.grad(total.sum(), logits)[0])
    assert ours.abs().amax(-1).min() > 0
    if gate == "normalised":
        torch.testing.assert_close(chosen.gates.sum(-1), torch.ones_like(chosen.gates[:, 0]))


def test_product_keys_find_the_best_sums() -> None:
    left, right = draw(13, 5), draw(13, 5, seed=1)
    for most in (1, 3, 7):
        pairs = choose_pairs(left, right, (left, right), torch.tensor(most), most, "probability")
        whole = (left[:, :, None] + right[:, None, :]).flatten(1)
        best = whole.topk(most)
        assert torch.equal(pairs.ids, best.indices)
        torch.testing.assert_close(pairs.gates, best.values.exp())


def test_only_the_best_groups_are_left() -> None:
    score = torch.tensor([[5.0, 0.0, 4.0, 4.5, 1.0, 1.0], [0.0, 0.0, 9.0, -9.0, 1.0, 8.0]])
    kept = limit_groups(score, 3, 1)
    assert torch.isfinite(kept).tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert torch.equal(limit_groups(score, 3, 3), score)
    two = limit_groups(score, 2, 1)  # groups of three: 5 and 4 against 4.5 and 1
    assert torch.isfinite(two)[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_losses_and_counts_by_hand() -> None:
    ids = torch.tensor([[0, 1, 0, 3], [2, 2, 2, 2]])
    counts = expert_counts(ids, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 0, 4]]
    probs = torch.tensor([[1.0, 1.0, 2.0], [0.0, 1.0, 3.0]], requires_grad=True)
    value = switch_loss(counts, probs)
    expected = 3 * ((2 / 3 * 0.25 + 1 / 3 * 0.25) + 0.75) / 2
    assert float(value.detach()) == pytest.approx(expected)
    assert torch.autograd.grad(value, probs)[0][1, 2] > 0
    even = torch.ones(2, 3)
    assert float(switch_loss(even, even)) == pytest.approx(1)
    assert float(effective_experts(torch.ones(64))) == pytest.approx(64)
    assert float(effective_experts(torch.tensor([0.0, 9.0]))) == pytest.approx(1)
    assert float(effective_experts(torch.tensor([1.0, 3.0]))) == pytest.approx(
        math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    )
