"""One block alone: forward, and forward with backward. Floor 8.

The writes of label-driven levels belong to the model, not to the block, so a block with a
continuum memory is timed reading it; the train step times everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nl.bench.config import BenchConfig
from nl.config import lookup
from nl.core.program import compiled
from nl.models.compiled import compile_module
from nl.models.language import LanguageConfig
from nl.nn.context import ReadContext
from nl.nn.router import RouteContext
from nl.ops.rotary import rotary_table

OUTPUT_SCALE = 0.05


def layer_steps(
    model: LanguageConfig, kind: str, config: BenchConfig, seq_len: int
) -> tuple[dict[str, Callable[[], object]], nn.Module]:
    """``forward`` and ``both`` of one fresh block on random input (B, T, D), and the block.

    Output projections that start at zero are drawn at random: zeros would be faster to multiply
    on some machines, and no gradient would reach the memory behind them.
    """
    torch.manual_seed(0)
    block: Any = lookup("block", kind, "block")().build(model).to(config.device)
    randomize_zeros(block)
    x = torch.randn(config.batch_size, seq_len, model.dim, device=config.device)
    table = (0, seq_len, model.dim // model.attention.heads, model.rope_base, x.device, x.dtype)
    route = RouteContext.of(model.experts, x.device) if model.experts.sparse else None
    ctx = ReadContext(0, True, True, *rotary_table(*table), route)
    leaf = x.clone().requires_grad_()

    backend = "inductor" if config.compile else None
    if config.compile and block.compile_whole:
        compile_module(block)

    @compiled(backend)
    def forward() -> object:
        with torch.no_grad():
            return block(x, block.init_state(len(x)), ctx)[0]

    @compiled(backend)
    def both() -> object:
        block.zero_grad()
        leaf.grad = None
        block(leaf, block.init_state(len(x)), ctx)[0].square().mean().backward()
        return leaf.grad

    return {"forward": forward, "both": both}, block


def randomize_zeros(module: nn.Module) -> None:
    """Draw every matrix that is all zeros from a normal distribution."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2 and not parameter.any():
                parameter.normal_(std=OUTPUT_SCALE)
