"""The ladder's data as the earlier system drew it, number by number. Floor 1.

Drawn from torch's generator with its seed: 10 n candidates, then n of them with replacement, half
of each class. Train and test overlap; the counts are known and the tests hold them.
"""

from __future__ import annotations

import numpy as np
import torch

from nl.data.ladder_tasks import AllTokens, Numeric, Raw, Rule, Sums

CANDIDATES, FEWEST, AT_ONCE = 10, 512, 128


def legacy_examples(rule: Rule, size: int, seed: int) -> Raw:
    """``size`` raw examples of one seed; examples of different seeds may be equal."""
    draws = torch.Generator().manual_seed(seed)
    raw = _candidates(rule, max(CANDIDATES * size, FEWEST), draws)
    label = torch.from_numpy(rule.label(raw))
    right, wrong = (torch.where(label == value)[0] for value in (1, 0))
    half = size // 2
    chosen = torch.cat(
        [
            right[torch.randint(0, len(right), (half,), generator=draws)],
            wrong[torch.randint(0, len(wrong), (size - half,), generator=draws)],
        ]
    )
    return np.asarray(raw[chosen[torch.randperm(size, generator=draws)].numpy()])


def _candidates(rule: Rule, count: int, draws: torch.Generator) -> Raw:
    if isinstance(rule, Numeric):
        return torch.randn(count, rule.steps, rule.features, generator=draws).numpy()
    if isinstance(rule, AllTokens):
        return torch.randint(0, rule.features, (count, rule.steps), generator=draws).numpy()
    assert isinstance(rule, Sums)
    pairs = _single if rule.digits == 1 else _multi
    numbers, wrong, first = pairs(rule, (count + 1) // 2, draws)
    right = rule.written(numbers, first)
    turned = numbers.copy()
    turned[:, -1] = wrong
    both = np.concatenate([right, rule.written(turned, first)])
    order = torch.randperm(len(both), generator=draws).numpy()
    return np.asarray(both[order[:count]])


Pairs = tuple[Raw, Raw, Raw]


def _single(rule: Sums, count: int, draws: torch.Generator) -> Pairs:
    """Pairs of digits in lots, kept where their sum is a digit; one wrong sum for each."""
    numbers: list[tuple[int, int, int]] = []
    wrong: list[int] = []
    first: list[bool] = []
    while len(numbers) < count:
        lot = max(count - len(numbers), AT_ONCE)
        for turned in (False, True) if rule.swapped else (False,):
            a = torch.randint(0, 10, (lot,), generator=draws)
            b = torch.randint(0, 10, (lot,), generator=draws)
            kept = a + b <= 9
            for x, y in zip(a[kept].tolist(), b[kept].tolist(), strict=True):
                if len(numbers) >= count:
                    break
                offset = int(torch.randint(1, 10, (1,), generator=draws))
                numbers.append((x, y, x + y))
                wrong.append((x + y + offset) % 10)
                first.append(turned)
    return np.asarray(numbers), np.asarray(wrong), np.asarray(first)


def _multi(rule: Sums, count: int, draws: torch.Generator) -> Pairs:
    """One equation at a time, drawn again where the last number does not fit."""
    base = 10**rule.digits
    numbers: list[list[int]] = []
    wrong: list[int] = []
    while len(numbers) < count:
        left = torch.randint(0, base, (rule.left,), generator=draws).tolist()
        right = torch.randint(0, base, (rule.right - 1,), generator=draws).tolist()
        last = sum(left) - sum(right)
        if 0 <= last < base:
            offset = int(torch.randint(1, base, (1,), generator=draws))
            numbers.append([*left, *right, last])
            wrong.append((last + offset) % base)
    return np.asarray(numbers), np.asarray(wrong), np.zeros(count, dtype=bool)
