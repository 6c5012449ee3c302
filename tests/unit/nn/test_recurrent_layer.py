"""Recurrent layers: torch's cells, the balance of the quadratic one, frozen reading, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nl.config import ConfigError, structure
from nl.models.language import LanguageConfig
from nl.nn.recurrent import GRU, LSTM, QuadraticRNN, Recurrent, RecurrentConfig

DIM = 6
LAYERS: list[type[Recurrent]] = [LSTM, GRU, QuadraticRNN]


def layer(kind: type[Recurrent], **changes: Any) -> Any:
    """A float64 layer of width 6."""
    torch.manual_seed(0)
    return kind(RecurrentConfig(**{"hidden": 5, **changes}), DIM, 1.0).double()


def inputs(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randn(
        rows, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(("kind", "theirs"), [(LSTM, torch.nn.LSTM), (GRU, torch.nn.GRU)])
def test_the_cells_are_those_of_torch(kind: type[Recurrent], theirs: Any) -> None:
    module, other = layer(kind), theirs(DIM, 5, batch_first=True).double()
    other.load_state_dict(
        {f"{name}_l0": p for name, p in module.named_parameters() if name != "out.weight"}
    )
    out, state = module(inputs(), position=0)
    wanted, last = other(inputs())
    assert torch.allclose(out, module.out(wanted), atol=1e-12)
    hidden = last[0] if isinstance(last, tuple) else last
    assert torch.allclose(state.hidden, hidden[0], atol=1e-12)
    assert (state.cell is not None) == (kind is LSTM)


def test_the_forget_gate_is_open() -> None:
    module = layer(LSTM, forget_bias=2.5)
    assert (module.bias_ih[5:10] == 2.5).all()
    assert not module.bias_hh[5:10].any()
    assert module.bias_hh[:5].any()


@pytest.mark.parametrize("transform", ["quadratic", "multiplicative"])
def test_a_small_change_keeps_its_size(transform: str) -> None:
    torch.manual_seed(0)
    config = RecurrentConfig(hidden=256, transform=transform)
    module: Any = QuadraticRNN(config, 256, 1.0).double()
    x = torch.randn(16, 20, 256, dtype=torch.float64)
    _, near = module(x[:, :10], position=0)
    change = torch.randn_like(near.hidden) * 1e-6
    ends = [
        module(x[:, 10:], near._replace(hidden=near.hidden + moved), position=10)[1].hidden.detach()
        for moved in (torch.zeros_like(change), change)
    ]
    growth = (ends[1] - ends[0]).norm() / change.norm()
    assert 0.2 < float(growth) < 5


@pytest.mark.parametrize("kind", LAYERS)
def test_frozen_tokens_are_read_by_one_step_from_the_state_as_it_is(kind: type[Recurrent]) -> None:
    module, x = layer(kind), inputs()
    _, state = module(x[:, :4], position=0)
    out, after = module(x[:, 4:], state, position=4, write=False)
    assert after.frozen == 5
    assert torch.equal(after.hidden, state.hidden)
    for t in range(4, 9):
        one, _ = module(x[:, t : t + 1], state, position=t)
        assert torch.allclose(out[:, t - 4 : t - 3], one, atol=1e-12)
    written, _ = module(x[:, 4:], state, position=4)
    assert (out - written).abs().max() > 1e-3


def test_options_are_checked() -> None:
    def model(**changes: Any) -> LanguageConfig:
        data = {"kind": "language", "vocab_size": 9, "dim": 12, "layers": 1, **changes}
        return structure(LanguageConfig, data)

    with pytest.raises(ConfigError, match=r"recurrent\.hidden: 0; must be >= 1"):
        model(recurrent={"hidden": 0})
    with pytest.raises(ConfigError, match="forget_bias: expected a finite number"):
        model(recurrent={"forget_bias": float("inf")})
    changed = {"recurrent": {"transform": "multiplicative"}}
    with pytest.raises(ConfigError, match=r"recurrent\.transform: multiplicative; only quadratic"):
        model(block="lstm", **changed)
    with pytest.raises(ConfigError, match=r"recurrent\.forget_bias: 0.0; only lstm reads it"):
        model(block=["gru"], recurrent={"forget_bias": 0.0})
    assert model(block=["lstm", "quadratic_rnn"], **changed).recurrent.hidden is None
