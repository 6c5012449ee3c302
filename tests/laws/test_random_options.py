"""The laws under options drawn at random: what can be configured streams, and keeps rows apart.

Values come from the configurations themselves, so a new option or registered part is drawn the
moment it exists. What the configurations refuse together is drawn again.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest
import torch

from nl.config import ConfigError, table
from nl.core import state as states
from nl.models.language import LanguageConfig
from nl.nn.attention import AttentionConfig
from nl.nn.cms_config import CMSConfig
from nl.nn.gated_delta import GatedDeltaConfig
from nl.nn.head_memory import HeadMemoryConfig
from nl.nn.recurrent import RecurrentConfig
from nl.nn.selfmod import SelfModConfig
from nl.nn.titan_config import TitanConfig
from tests.laws.conftest import VOCAB, block_kinds, small, tokens

GROUPS: dict[str, Any] = {
    "attention": AttentionConfig,
    "cms": CMSConfig,
    "gated_delta": GatedDeltaConfig,
    "head_memory": HeadMemoryConfig,
    "recurrent": RecurrentConfig,
    "selfmod": SelfModConfig,
    "titan": TitanConfig,
}
NUMBERS: dict[str, tuple[Any, ...]] = {
    "attention.heads": (1, 2),
    "attention.rotary": (0.5, 1.0),
    "cms.bptt_chunks": (0, 0, 2, 3),
    "cms.clip": (0.0, 0.1),
    "cms.hidden": (None, 7),
    "cms.periods": ([4, 8, 16], [4], [3, 6], [8, 4], [4, 4, 8]),
    "cms.retention": (0.5, 0.9, 1.0),
    "cms.scope": ("row", "row", "row", "row", "batch"),
    "cms.surprise": (
        {},
        {"gate": "hard", "threshold": 0.7},
        {"gate": "soft", "threshold": 0.7},
        {"gate": "hard", "quantile": 0.4},
        {"gate": "soft", "quantile": 0.4},
    ),
    "experts": (
        {},
        {"form": "low_rank", "count": 4, "rank": 3},
        {"form": "low_rank", "count": 4, "rank": 3, "k": 1, "router": "hierarchical", "groups": 2},
        {"form": "swiglu", "count": 4, "width": 3, "shared": 1, "router": "product_key"},
    ),
    "gated_delta.chunk": (3, 8),
    "gated_delta.conv": (0, 4),
    "head_memory.period": (0, 0, 0, 3, 8),
    "head_memory.retention": (0.8, 1.0),
    "positions": ("rope", "rope", "rope", "none", "learned"),
    "selfmod.conv": (0, 1, 4),
    "selfmod.gate_hidden": (1, 5),
    "selfmod.hidden": (6, 12),
    "selfmod.period": (3, 4),
    "selfmod.period_other": (None, 12),
    "titan.conv": (0, 1, 4),
    "titan.depth": (1, 2, 3, 4),
    "titan.hidden": (None, 5),
    "titan.period": (3, 4),
    "titan.persistent": (0, 2),
    "titan.window": (1, 5, 9),
}
"""Where the type does not say what can be chosen, or not how often; numbers that are not here stay
as ``small`` has them."""
LEFT_OUT = {
    "selfmod.compat",  # a name for other options
    "titan.step",  # plain steps may diverge, which is why they are not the default
    "cms.allow_short_periods",  # the periods here are short
}
LENGTH, ROWS = 29, 3
EXACT = 1e-8


def choices(name: str, kind: Any) -> tuple[Any, ...]:
    """Values of an option: those named above, or all that its type allows."""
    if name in NUMBERS:
        return NUMBERS[name]
    if name in LEFT_OUT:
        return ()
    if name == "cms.inner":
        return tuple({"kind": inner} for inner in sorted(table("inner")))
    if kind is bool:
        return (False, True)
    return get_args(kind) if get_origin(kind) is Literal else ()


def drawn(draw: random.Random) -> dict[str, Any]:
    """Options of all groups and of the model itself, maybe such that do not fit together."""
    options: dict[str, Any] = {}
    for group, config in {"": LanguageConfig, **GROUPS}.items():
        hints, found = get_type_hints(config), {}
        for field in fields(config):
            name = f"{group}.{field.name}" if group else field.name
            if allowed := choices(name, hints[field.name]):
                found[field.name] = draw.choice(allowed)
        options.update({group: found} if group else found)
    return options


class Case(NamedTuple):
    """A model and what it reads."""

    model: Any
    inputs: torch.Tensor
    labels: torch.Tensor
    starts: tuple[list[int], ...]
    frozen: range
    shared: bool


def case(seed: int) -> Case:
    """A model that its configuration allows, a first block by turns; documents, frozen tokens."""
    draw, known = random.Random(seed), block_kinds()
    for _ in range(500):
        options = drawn(draw)
        kinds = [known[seed % len(known)], draw.choice(known)]
        try:
            model = small(kinds, seed, **options)
        except ConfigError:
            continue
        break
    else:
        pytest.fail(f"nothing that fits together in 500 draws with {kinds[0]}")
    shared = options["cms"]["scope"] == "batch"
    starts: tuple[list[int], ...] = ([],) * ROWS
    if not shared and options["positions"] != "learned" and draw.random() < 0.5:
        starts = tuple(sorted(draw.sample(range(1, LENGTH), draw.randrange(3))) for _ in starts)
    first = draw.randrange(LENGTH - 4)
    frozen = range(first, first + 4) if draw.random() < 0.5 else range(0)
    inputs, labels = tokens(ROWS, LENGTH, seed), tokens(ROWS, LENGTH, seed + 1)
    labels[1, 3:9] = -100
    for row, offsets in enumerate(starts):
        labels[row, [offset - 1 for offset in offsets]] = -100
    return Case(model, inputs, labels, starts, frozen, shared)


def read(given: Case, cuts: list[int]) -> tuple[torch.Tensor, Any]:
    """Losses and the State, read in pieces that end at ``cuts`` and where writing is switched."""
    edges = {given.frozen.start, given.frozen.stop} & set(range(1, LENGTH))
    ends = sorted({0, LENGTH, *edges, *cuts})
    state, losses = None, []
    for a, b in itertools.pairwise(ends):
        starts = tuple([s - a for s in row if a <= s < b] for row in given.starts)
        nll, out = given.model.nll(
            given.inputs[:, a:b],
            given.labels[:, a:b],
            state,
            write=a not in given.frozen,
            starts=starts if any(given.starts) else None,
        )
        state = out.state
        losses.append(nll)
    return torch.cat(losses, 1), state


def gradients(given: Case, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a weighted sum of losses, by every parameter."""
    given.model.zero_grad()
    (losses * torch.linspace(0.5, 1.5, LENGTH)).sum().backward()
    named = given.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding; infinities where the other has them."""
    return bool(((one == other) | ((one - other).abs() <= EXACT * (1 + one.abs()))).all())


SEEDS = range(26)


@pytest.mark.parametrize("seed", SEEDS)
def test_laws_under_random_options(seed: int, float64: None) -> None:
    given = case(seed)
    losses, state = read(given, [])
    assert torch.isfinite(losses).all()
    found = gradients(given, losses)
    # In pieces: the same losses, gradients and State.
    draw = random.Random(-seed)
    pieces, end = read(given, draw.sample(range(1, LENGTH), 4))
    assert near(pieces, losses)
    again = gradients(given, pieces)
    assert again.keys() == found.keys()
    for name, grad in found.items():
        assert torch.isfinite(grad).all(), name
        assert near(again[name], grad), name
    (one, skeleton), (other, same) = states.flatten(state), states.flatten(end)
    assert skeleton == same
    assert all(near(one[key], other[key]) for key in one)
    check_past_and_rows(given, losses.detach(), draw)


@torch.no_grad()
def check_past_and_rows(given: Case, losses: torch.Tensor, draw: random.Random) -> None:
    """No loss hears of later tokens, of other rows, or of the document before its own."""
    at = draw.randrange(1, LENGTH)
    inputs, labels = given.inputs.clone(), given.labels.clone()
    inputs[:, at:] = (inputs[:, at:] + 1) % VOCAB
    labels[:, at:] = (inputs[:, at:] + 3) % VOCAB
    other, _ = read(given._replace(inputs=inputs, labels=labels), [])
    assert near(other[:, :at], losses[:, :at])
    if given.shared:
        return
    one = slice(1, 2)
    alone = given._replace(
        inputs=given.inputs[one], labels=given.labels[one], starts=given.starts[one]
    )
    assert near(read(alone, [])[0], losses[one])
    for row, offsets in enumerate(given.starts):
        if offsets:
            changed = given.inputs.clone()
            changed[row, : offsets[-1]] = (changed[row, : offsets[-1]] + 5) % VOCAB
            other, _ = read(given._replace(inputs=changed), [])
            assert torch.equal(other[row, offsets[-1] :], losses[row, offsets[-1] :])


def test_draws_reach_every_value_and_no_name_is_stale() -> None:
    draw = random.Random(0)
    many = [drawn(draw) for _ in range(300)]
    names = {field.name for field in fields(LanguageConfig)}
    for group, config in GROUPS.items():
        hints = get_type_hints(config)
        for field in fields(config):
            name = f"{group}.{field.name}"
            names.add(name)
            found = [options[group].get(field.name) for options in many]
            assert all(value in found for value in choices(name, hints[field.name])), name
    assert names.issuperset({*NUMBERS, *LEFT_OUT})
    assert {config["inner"]["kind"] for config in (o["cms"] for o in many)} == set(table("inner"))
