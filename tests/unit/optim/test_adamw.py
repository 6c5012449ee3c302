"""AdamW against the update rule written out, in float64; grouping is explicit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nl.config import ConfigError, structure
from nl.optim.adamw import AdamWConfig, split_by_decay


def parameters() -> list[tuple[str, nn.Parameter]]:
    shapes = {
        "embed.weight": (5, 3),
        "block.proj.weight": (3, 3),
        "block.gate.weight": (3, 3),
        "conv.weight": (3, 1, 4),
        "norm.weight": (3,),
        "proj.bias": (3,),
    }
    return [(n, nn.Parameter(torch.randn(s, dtype=torch.float64))) for n, s in shapes.items()]


def test_only_matrices_that_are_not_named_decay() -> None:
    named = parameters()
    named.append(("frozen.weight", nn.Parameter(torch.ones(2, 2), requires_grad=False)))
    groups = split_by_decay(named, AdamWConfig().no_decay)
    assert [n for n, _ in groups["decay"]] == ["block.proj.weight", "conv.weight"]
    spared = ["embed.weight", "block.gate.weight", "norm.weight", "proj.bias"]
    assert [n for n, _ in groups["no_decay"]] == spared
    every = split_by_decay(named, None)
    assert [n for n, _ in every["decay"]] == [n for n, p in named if p.requires_grad]
    assert every["no_decay"] == []


def test_the_update_is_adamw() -> None:
    config = AdamWConfig(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    named = parameters()
    optimizer = config.build(named)
    value = {n: p.detach().clone() for n, p in named}
    first = {n: torch.zeros_like(p) for n, p in value.items()}
    second = {n: torch.zeros_like(p) for n, p in value.items()}
    for step in range(1, 5):
        for name, parameter in named:
            grad = torch.randn_like(parameter)
            parameter.grad = grad.clone()
            decay = 0.3 if name in ("block.proj.weight", "conv.weight") else 0.0
            first[name] = 0.8 * first[name] + 0.2 * grad
            second[name] = 0.95 * second[name] + 0.05 * grad**2
            mean, square = first[name] / (1 - 0.8**step), second[name] / (1 - 0.95**step)
            value[name] = value[name] * (1 - 0.1 * decay) - 0.1 * mean / (square.sqrt() + 1e-6)
        optimizer.step()
    for name, parameter in named:
        torch.testing.assert_close(parameter.detach(), value[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0.0), ("lr", -1), ("betas", [0.9]), ("betas", [0.9, 1.0]), ("eps", 0), ("lr", True)],
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^optim\.{key}: "):
        structure(AdamWConfig, {key: value}, "optim")
