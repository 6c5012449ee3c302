"""The quadratic RNN against its formula."""

from __future__ import annotations

import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import ModelConfig
from nl.models.quadratic_rnn import QuadraticRNNConfig
from nl.nn.quadratic import Transform


def naive_rnn(
    model: torch.nn.Module, word: torch.Tensor, transform: Transform
) -> list[torch.Tensor]:
    """One word, coordinate by coordinate."""
    weights = dict(model.named_parameters())
    mix, drive = weights["cell.mix"], weights["cell.drive"]
    left, outputs = weights["first"] @ word[0], []
    for x in word[1:]:
        pairs = zip(left, drive @ x, strict=True)
        hidden = torch.stack(
            [(a + b) ** 2 if transform == "quadratic" else a * b for a, b in pairs]
        )
        outputs.append(weights["out"] @ hidden)
        left = mix @ hidden
    return outputs


@pytest.mark.parametrize("transform", ["quadratic", "multiplicative"])
@pytest.mark.parametrize("length", [2, 3, 5])
def test_quadratic_rnn_is_its_recurrence(length: int, transform: Transform) -> None:
    fields = {"size": 4, "hidden": 6, "init_scale": 1.0, "transform": transform}
    last = QuadraticRNNConfig(**fields).build().double()  # type: ignore[arg-type]
    every = QuadraticRNNConfig(**fields, readout="prefixes").build().double()  # type: ignore[arg-type]
    every.load_state_dict(last.state_dict())
    words = torch.randn(3, length, 4, dtype=torch.float64)
    for row, word in enumerate(words):
        wanted = naive_rnn(last, word, transform)
        assert torch.allclose(every(words).pred[row], torch.stack(wanted), rtol=1e-10)
        assert torch.allclose(last(words).pred[row], wanted[-1], rtol=1e-10)
    assert every(words).pred.shape == (3, length - 1, 4)


def test_quadratic_rnn_gradients() -> None:
    model = QuadraticRNNConfig(size=3, hidden=4, init_scale=1.0).build().double()
    words = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x).pred, (words,))
    model(words).pred.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_quadratic_rnn_declares_what_it_is() -> None:
    model = QuadraticRNNConfig(size=5, hidden=48, init_scale=0.1).build()
    assert sum(p.numel() for p in model.parameters()) == 48**2 + 3 * 48 * 5
    assert model.may_skip_parameters
    model(torch.randn(2, 2, 5)).pred.sum().backward()
    assert model.cell.mix.grad is None, "two elements never use the mixing matrix"
    assert model.cell.mix.std().item() == pytest.approx(0.1 / 48**0.5, rel=0.1)
    assert model.out.std().item() == pytest.approx(0.1 / 48**0.5, rel=0.3)
    assert model.shard_units() == [model.cell]
    assert model.flops_per_token() == 2 * 48 * (48 + 10)
    assert model.init_state(2) is None
    with pytest.raises(ValueError, match="1 elements; composition needs at least 2"):
        model(torch.randn(2, 1, 5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "quadratic_rnn", "hidden": 0}, "model.hidden: 0; must be >= 1"),
        ({"kind": "quadratic_rnn", "init_scale": 0}, "model.init_scale: 0.0; must be > 0"),
        ({"kind": "quadratic_rnn", "transform": "cubic"}, "model.transform: unknown 'cubic'"),
    ],
)
def test_bad_settings(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(ModelConfig, data, "model")
