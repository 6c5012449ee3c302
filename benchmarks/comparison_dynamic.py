"""What does a model gain when all of it learns while it is read? Dynamic evaluation.

Levels read and learn in validation, so the fair opponent of a HOPE block is a transformer that does
so too: after every 32 tokens one SGD step on their loss, all parameters, fresh for every window
(Krause et al. 2018, arXiv 1709.07432). The numbers lie beside the runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comparison_positions as positions
import study
import torch

from nl.core.state import detach

RATES = (0.0, 0.01, 0.03, 0.1, 0.15)
"""Step sizes; the first reads without learning, as the validation of the run did."""
EVERY = 32
"""Tokens between steps: the period of the fastest level."""


def file(root: Path, name: str) -> Path:
    """Where the numbers of a run lie."""
    return root / f"{name}.dynamic.json"


def measure(root: Path, name: str, data: Path | None) -> None:
    """Read the validation windows of a finished run again, once per rate; kept if there."""
    if file(root, name).is_file():
        return
    opened = positions.opened(root, name, data)
    if opened is None:
        return
    run, model = opened
    start = [parameter.detach().clone() for parameter in model.parameters()]
    windows = [
        (inputs[None], targets[None])
        for split in positions.splits(run)
        for batch in positions.batches(run, split)
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
    ]
    found = [sum(loss_of(model, start, *one, rate) for one in windows) for rate in RATES]
    file(root, name).write_text(json.dumps([loss / len(windows) for loss in found]))
    print(f"{name}: learning while read", flush=True)


def loss_of(model: Any, start: list[Any], inputs: Any, targets: Any, rate: float) -> float:
    """Mean loss of the tokens of one window (1, T), each before it was learned from."""
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    total, state = 0.0, None
    for begin in range(0, inputs.shape[1], EVERY):
        part = slice(begin, begin + EVERY)
        with torch.set_grad_enabled(rate > 0):
            nll, out = model.nll(inputs[:, part], targets[:, part], state)
        total += float(nll.detach().double().sum())
        state = detach(out.state)
        if rate > 0:
            # A level that was not written in these tokens has a rate that they do not depend on.
            grads = torch.autograd.grad(nll.mean(), parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    if grad is not None:
                        parameter.sub_(grad, alpha=rate)
    return total / inputs.numel()


def losses(root: Path, name: str) -> list[float]:
    """Loss per rate; empty where it was not measured."""
    return json.loads(file(root, name).read_text()) if file(root, name).is_file() else []


def table(lines: dict[str, list[tuple[float, ...]]]) -> list[str]:
    """A row per label: losses by rate over its seeds."""
    body = [
        [label, str(len(seeds)), *(study.interval(list(c)) for c in zip(*seeds, strict=True))]
        for label, seeds in lines.items()
        if seeds
    ]
    head = ["model", "seeds", *(f"rate {rate:g}" for rate in RATES)]
    return study.table(head, body) if body else []
