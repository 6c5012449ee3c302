"""A model beside the exact predictor on the same windows: nats and divergences. Floor 6."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from nl.core.ergodic import bayes_filter, kl
from nl.eval.context import evaluating
from nl.eval.probe_read import TOKENS, Floats, Ints, Reading, logits_of


class Truth(NamedTuple):
    """What can be known of N windows at P places; V symbols. NaN where it is not defined.

    Attributes:
        predicted: (N, P, V) of the exact predictor of what was trained on.
        posterior: (N, P) probability that it gives the true component.
        nll, entropy: (N, P) of it.
        own: (N, P, V) prediction of who knows the component; empty with a hazard.
        own_nll: (N, P).
        component: (N, P) of the predicted symbol.
        trained: (N,) whether the window is of a component that was trained on.
        targets: (N, P).
    """

    predicted: Floats
    posterior: Floats
    nll: Floats
    entropy: Floats
    own: Floats
    own_nll: Floats
    component: Ints
    trained: Any
    targets: Ints


class Told(NamedTuple):
    """What a model made of them, (N, P) each; NaN where the truth is.

    Attributes:
        nll: of the symbol, over the model's whole vocabulary.
        kl: of the exact predictor's distribution from the model's.
        own_kl: of that of who knows the component.
    """

    nll: Floats
    kl: Floats
    own_kl: Floats


def truth_of(stream: Any, found: Any) -> Truth:
    """The exact predictors of a stream on windows of its sources."""
    codes = [found.names.index(name) for name in stream.names]
    skip = found.tokens.shape[1] - found.targets.shape[1]
    trained = np.isin(found.component[:, 0], codes)
    shape, size = found.tokens.shape, stream.alphabet
    predicted = np.full((*shape, size), np.nan)
    posterior, nll, entropy = (np.full(shape, np.nan) for _ in range(3))
    told = bayes_filter(stream.exact, found.tokens[trained])
    place = np.full(len(found.names), -1)
    place[codes] = np.arange(len(codes))
    which = place[found.component[trained]]
    predicted[trained], nll[trained], entropy[trained] = told.predicted, told.nll, told.entropy
    posterior[trained] = np.take_along_axis(told.posterior, which[..., None], 2)[..., 0]
    own, own_nll = np.full((*shape, size), np.nan), np.full(shape, np.nan)
    for code in np.unique(found.component[:, 0]) if not stream.hazard else ():
        mine = found.component[:, 0] == code
        alone = bayes_filter(stream.exact_one(found.names[code]), found.tokens[mine])
        own[mine], own_nll[mine] = alone.predicted, alone.nll
    return Truth(
        predicted[:, skip:],
        posterior[:, skip:],
        nll[:, skip:],
        entropy[:, skip:],
        own[:, skip:],
        own_nll[:, skip:],
        found.component[:, skip:],
        trained,
        found.targets,
    )


def read_windows(model: nn.Module, inputs: Ints, truth: Truth, reading: Reading) -> Told:
    """Read windows (N, P), each from a fresh State; symbols are the first ids of the model.

    What the model gives to ids that are no symbols counts against it.
    """
    device = next(model.parameters()).device
    rows, size = max(1, TOKENS // inputs.shape[1]), truth.predicted.shape[2]
    parts = []
    with evaluating(model):
        for start in range(0, len(inputs), rows):
            here = slice(start, start + rows)
            tokens = torch.from_numpy(inputs[here]).to(device)
            labels = torch.from_numpy(truth.targets[here]).to(device)
            logits, _ = logits_of(model, tokens, labels, reading)
            said = torch.log_softmax(logits.double(), 2)[..., :size].cpu().numpy()
            nll = -np.take_along_axis(said, truth.targets[here][..., None], 2)[..., 0]
            parts.append((nll, kl(truth.predicted[here], said), kl(truth.own[here], said)))
    nll, over, own = (np.concatenate(part) for part in zip(*parts, strict=True))
    over[np.isnan(truth.nll)] = np.nan
    own[np.isnan(truth.own_nll)] = np.nan
    return Told(nll, over, own)


def digest(names: Sequence[str], tokens: Ints, component: Ints) -> str:
    """SHA-256 of windows and the names of what they are of: equal for what may be paired."""
    found = hashlib.sha256("\n".join(names).encode())
    for part in (tokens, component):
        found.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return found.hexdigest()
