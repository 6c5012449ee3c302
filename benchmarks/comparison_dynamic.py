"""What does a model gain when its parameters learn while it is read? Dynamic evaluation.

Levels read and learn in validation, so the fair opponent of a HOPE block is a transformer that does
so too: after every 32 tokens one step on their loss, fresh for every window. Plain steps are SGD;
scaled ones divide each gradient by its root mean square over training text (Krause et al. 2018,
arXiv 1709.07432; without their decay toward the start). The numbers lie beside the runs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparison_positions as positions
import study
import torch

from nl.core.state import detach

EVERY = 32
"""Tokens between steps: the period of the fastest level."""
DAMPING = 2.0
"""Added to the root mean square of every parameter, in units of its mean over all of them."""
GATHERED = 8
"""Batches of training text over which the squares are averaged."""
SCALED = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class Way:
    """One way of learning while reading.

    Attributes:
        told: what the page calls it.
        rates: step sizes.
        scaled: gradients are divided by their root mean square over training text.
        learns: all parameters, the head (with its embedding, which is the same matrix here), or
            the body, which is all but the head.
    """

    told: str
    rates: tuple[float, ...]
    scaled: bool = True
    learns: str = "all"


WAYS = {
    "dynamic": Way("SGD, all parameters", (0.0, 0.01, 0.03, 0.1, 0.15), scaled=False),
    "dynamic_scaled": Way("scaled steps, all parameters", SCALED),
    "dynamic_head": Way("scaled steps, head alone", SCALED, learns="head"),
    "dynamic_body": Way("scaled steps, all but the head", SCALED, learns="body"),
}
"""By the column of the file of runs. Rate 0 reads without learning, as the run's validation did."""


def file(root: Path, name: str, way: str) -> Path:
    """Where the numbers of a run lie."""
    return root / f"{name}.{way}.json"


def measure(root: Path, name: str, data: Path | None, way: str) -> None:
    """Read the validation windows of a finished run again, once per rate; kept if there."""
    if file(root, name, way).is_file():
        return
    opened = positions.opened(root, name, data)
    if opened is None:
        return
    run, model = opened
    parts = learning(model, WAYS[way].learns)
    scales = root_mean_squares(run, model, parts) if WAYS[way].scaled else None
    start = [parameter.detach().clone() for parameter in parts]
    windows = [
        window
        for split in positions.splits(run)
        for batch in positions.batches(run, split)
        for window in rows(batch)
    ]
    found = [
        sum(loss_of(model, parts, start, *window, rate, scales) for window in windows)
        for rate in WAYS[way].rates
    ]
    with torch.no_grad():
        for parameter, value in zip(parts, start, strict=True):
            parameter.copy_(value)
    file(root, name, way).write_text(json.dumps([loss / len(windows) for loss in found]))
    print(f"{name}: learning while read ({WAYS[way].told})", flush=True)


def rows(batch: Any) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets of a batch, one window (1, T) at a time."""
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        yield inputs[None], targets[None]


def learning(model: Any, which: str) -> list[Any]:
    """The parameters that learn."""
    named = model.named_parameters()
    head = {"head": (True,), "body": (False,), "all": (True, False)}[which]
    return [one for name, one in named if name.startswith("head.") in head]


def steps(model: Any, parts: list[Any], inputs: Any, targets: Any, learn: bool) -> Iterator[Any]:
    """Read a window ``EVERY`` tokens at a time: their losses, and gradients if they ``learn``.

    A level that was not written in these tokens has a rate that they do not depend on: None.
    """
    state = None
    for begin in range(0, inputs.shape[1], EVERY):
        part = slice(begin, begin + EVERY)
        with torch.set_grad_enabled(learn):
            nll, out = model.nll(inputs[:, part], targets[:, part], state)
        state = detach(out.state)
        yield (
            nll.detach(),
            torch.autograd.grad(nll.mean(), parts, allow_unused=True) if learn else (),
        )


def root_mean_squares(run: Any, model: Any, parts: list[Any]) -> list[Any]:
    """Of the gradients of training text, per entry of every parameter, with the damping."""
    sums, count = [torch.zeros_like(one) for one in parts], 0
    stream = run.stream.build("train", seed=run.seed, rank=0, world=1)
    for batch in itertools.islice(stream, GATHERED):
        for window in rows(batch.to("cpu")):
            for _, grads in steps(model, parts, *window, learn=True):
                count += 1
                for total, grad in zip(sums, grads, strict=True):
                    if grad is not None:
                        total.addcmul_(grad, grad)
    found = [(total / count).sqrt() for total in sums]
    mean = sum(one.sum() for one in found) / sum(one.numel() for one in found)
    return [one + DAMPING * mean for one in found]


def loss_of(
    model: Any,
    parts: list[Any],
    start: list[Any],
    inputs: Any,
    targets: Any,
    rate: float,
    scales: list[Any] | None = None,
) -> float:
    """Mean loss of the tokens of one window (1, T), each before it was learned from."""
    total = 0.0
    with torch.no_grad():
        for parameter, value in zip(parts, start, strict=True):
            parameter.copy_(value)
    for nll, grads in steps(model, parts, inputs, targets, learn=rate > 0):
        total += float(nll.double().sum())
        with torch.no_grad():
            for number, grad in enumerate(grads):
                if grad is not None:
                    scale = grad.new_ones(()) if scales is None else scales[number]
                    parts[number].addcdiv_(grad, scale, value=-rate)
    return total / float(inputs.numel())


def losses(root: Path, name: str, way: str) -> list[float]:
    """Loss per rate; empty where it was not measured."""
    path = file(root, name, way)
    return list(json.loads(path.read_text())) if path.is_file() else []


def table(way: str, lines: dict[str, list[tuple[float, ...]]]) -> list[str]:
    """A row per label: losses by rate over its seeds."""
    body = [
        [label, str(len(seeds)), *(study.interval(list(c)) for c in zip(*seeds, strict=True))]
        for label, seeds in lines.items()
        if seeds
    ]
    head = [WAYS[way].told, "seeds", *(f"rate {rate:g}" for rate in WAYS[way].rates)]
    return study.table(head, body) if body else []
