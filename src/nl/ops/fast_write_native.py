"""``nl.ops.fast_write`` in machine code: the tensors that go there and come back. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nl.core.native import Kernel, bits, sizes_of, ungraded
from nl.ops.fast_mlp import FastWeights, WriteRule

KERNEL = Kernel("fast_write")
ANSWERS = Kernel("fast_answers")
_OUTPUTS = ("decay", "delta", "delta_error")


def _takes(spec: Any, given: Sequence[Tensor]) -> bool:
    """Whether the kernel writes these: letters as in ``nl.ops.fast_mlp``, H heads, G units."""
    first, banks = _banks(spec[1], given)
    common = sizes_of([("NKC", given[0]), *(("NC", t) for t in given[1:first])])
    skips = [skip for _, own in spec[1] for skip in own]
    if common is None or len(skips) != len(banks) or not KERNEL.takes(*given):
        return False
    if not common["N"] * common["C"]:
        return False
    for bank, skip in zip(banks, skips, strict=True):
        letters = ("HGK", "HMPF", "NGK", "NMPF", "NMPC")
        sizes = sizes_of(zip(letters, bank, strict=True), common)
        if sizes is None or sizes["G"] != sizes["M"] * sizes["F"] or sizes["N"] % sizes["H"]:
            return False
        if skip and sizes["P"] != sizes["K"]:
            return False
        common["H"] = sizes["H"]
    return True


def _banks(shape: Any, given: Sequence[Tensor]) -> tuple[int, list[tuple[Tensor, ...]]]:
    """Where the tensors of the banks begin, and those of each."""
    first = 2 + sum(1 if same else 2 for same, _ in shape)
    return first, [tuple(given[i : i + 5]) for i in range(first, len(given), 5)]


def _call(function: str, spec: Any, given: Sequence[Tensor], more: Sequence[Tensor]) -> None:
    """Run a function on what ``fast_write._written`` is given and on further tensors."""
    rule: WriteRule = spec[0]
    keys, (_, banks) = given[0], _banks(spec[1], given)
    numbers = [
        keys.shape[0],
        banks[0][0].shape[0],
        *keys.shape[1:],
        rule.activation == "gelu",
        rule.objective == "dot",
        rule.anchored,
        _OUTPUTS.index(rule.output),
        bits(rule.clip),
        len(spec[1]),
    ]
    sizes = iter(banks)
    for same, skips in spec[1]:
        numbers += [same, len(skips)]
        for skip in skips:
            *_, output, targets = next(sizes)
            numbers += [targets.shape[1], output.shape[-1], targets.shape[2], skip]
    KERNEL.run(function, numbers, [*given, *more])


def _written_native(spec: Any, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What ``fast_write._written`` gives."""
    given = [t.contiguous() for t in given]
    _, banks = _banks(spec[1], given)
    made = [torch.empty_like(t) for bank in banks for t in bank[2:4]]
    _call("write", spec, given, made)
    return tuple(made)


def _adjoints_native(
    spec: Any, grads: Sequence[Tensor], given: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """What ``fast_write._adjoints`` gives for gradients of the results and the same inputs."""
    given = [t.contiguous() for t in given]
    first, banks = _banks(spec[1], given)
    shared = [torch.empty_like(t) for t in given[:first]]
    made: list[Tensor] = []
    for _, _, hidden, output, targets in banks:
        made += [torch.empty_like(t) for t in (hidden, output, hidden, output, targets)]
    _call("write_back", spec, given, [*(g.contiguous() for g in grads), *shared, *made])
    by_banks: list[Tensor] = []
    heads = banks[0][0].shape[0]
    for i in range(0, len(made), 5):
        *own, hidden, output, targets = made[i : i + 5]
        start = own if spec[0].anchored else (hidden, output)
        by_banks += [t if len(t) == heads else t.unflatten(0, (-1, heads)).sum(0) for t in start]
        by_banks += [hidden, output, targets]
    return (*shared, *by_banks)


def _answers_native(
    initial: FastWeights,
    added: FastWeights,
    inputs: Tensor,
    rule: WriteRule,
    skip: bool,
    unit: bool,
) -> Tensor | None:
    """What a bank says to inputs (N, K, C), (N, M, P, C), as unit vectors if asked.

    None where the kernel cannot be used, or gradients are asked for.
    """
    tensors = (*initial, *added, inputs)
    letters = ("HGK", "HMPF", "NGK", "NMPF", "NKC")
    if not ungraded(*tensors) or not ANSWERS.takes(*tensors):
        return None
    sizes = sizes_of(zip(letters, tensors, strict=True))
    if sizes is None or sizes["G"] != sizes["M"] * sizes["F"] or sizes["N"] % sizes["H"]:
        return None
    made = inputs.new_empty([sizes[c] for c in "NMPC"])
    skip = skip and sizes["P"] == sizes["K"]
    plan = [*(sizes[c] for c in "NHKC"), rule.activation == "gelu", 0, 1, 0, 0]
    bank = [1, 1, 1, *(sizes[c] for c in "MFP"), skip]
    ANSWERS.run("answers", [unit, *plan, *bank], [*(t.contiguous() for t in tensors), made])
    return made
