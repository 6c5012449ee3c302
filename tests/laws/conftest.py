"""Small models of every registered block kind, with every period short enough to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import nl.models.language  # noqa: F401 - registers the blocks
from nl.config import structure, table
from nl.config.groups import ModelConfig

VOCAB = 29
PERIODS = (4, 8, 16)


def block_kinds() -> list[str]:
    """Every registered block kind: a new kind is under the laws the moment it is registered."""
    return sorted(table("block"))


@pytest.fixture(params=block_kinds())
def kind(request: pytest.FixtureRequest) -> str:
    """One registered block kind."""
    return str(request.param)


def small(kind: str | list[str], seed: int = 0, **changes: Any) -> Any:
    """A two-layer model in the default dtype whose zero-initialised weights are woken up."""
    data: dict[str, Any] = {
        "kind": "language",
        "vocab_size": VOCAB,
        "dim": 12,
        "layers": 2,
        "block": kind,
        "attention": {"heads": 2},
        "cms": {"periods": list(PERIODS), "hidden": 10, "rate": 0.3, "allow_short_periods": True},
        "selfmod": {"head_size": 6, "hidden": 6, "period": 4},
        "gated_delta": {"heads": 2, "chunk": 8},
        "titan": {"head_size": 6, "hidden": 5, "period": 4, "window": 5, "persistent": 2},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    torch.manual_seed(seed)
    model = structure(ModelConfig, data).build()
    for parameter in model.parameters():
        if parameter.detach().abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def build() -> Callable[..., Any]:
    """``build(kind, seed=, **changes)``: a small model."""
    return small


@pytest.fixture
def float64() -> Iterator[None]:
    """Run in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids (batch, length)."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
