"""One train step of a language model: forward, backward, clipping and AdamW. Floor 8.

The inner widths of the models (levels and feed-forward) are chosen so that all have the
parameters of the Transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from nl.bench.config import BenchConfig
from nl.bench.kept import kept_bytes
from nl.config import ConfigError
from nl.core.program import compiled
from nl.models.compiled import check_compile, compile_units
from nl.models.language import LanguageConfig
from nl.models.presets import count_parameters
from nl.nn.attention import AttentionConfig
from nl.nn.cms_config import SMALLEST_PERIOD

BASELINE = "transformer"
PARAMETER_TOLERANCE = 0.02
LEVEL_PERIODS = (1, 4, 16, 64)
"""Periods of the levels in units of the shortest."""


def language(config: BenchConfig, block: str, chunk: int | None = None) -> LanguageConfig:
    """The model of one row before its width is matched; ``chunk`` None: the blocks' defaults.

    Raises:
        ConfigError: the block does not fit the width.
    """
    try:
        model = LanguageConfig(
            vocab_size=config.vocab_size,
            dim=config.dim,
            layers=config.layers,
            block=block,
            attention=AttentionConfig(heads=config.heads),
        )
    except ConfigError as error:
        raise ConfigError(
            f"bench: {block} at --dim {config.dim}, --heads {config.heads}: {error} Choose another "
            f"--dim or --heads, or --blocks without {block}."
        ) from error
    if chunk is None:
        return model
    periods = tuple(chunk * factor for factor in LEVEL_PERIODS)
    short = chunk < SMALLEST_PERIOD
    return replace(
        model,
        cms=replace(model.cms, periods=periods, allow_short_periods=short),
        selfmod=replace(model.selfmod, period=chunk),
        titan=replace(model.titan, period=chunk),
        gated_delta=replace(model.gated_delta, chunk=chunk),
    )


def matched(config: BenchConfig, block: str, chunk: int | None = None) -> LanguageConfig:
    """The model of one row, its inner width chosen for the baseline's parameter count.

    Raises:
        ConfigError: no width comes close enough.
    """
    model = language(config, block, chunk)
    target = count_parameters(replace(model, block=BASELINE))
    widened = widest(model, target)
    gap = count_parameters(widened) / target - 1
    if abs(gap) > PARAMETER_TOLERANCE:
        raise ConfigError(
            f"bench: {block} has {gap:+.1%} of the baseline's parameters at dim {config.dim}; "
            f"within {PARAMETER_TOLERANCE:.0%} is needed: choose a larger --dim."
        )
    return widened


def widest(model: LanguageConfig, target: int) -> LanguageConfig:
    """``model`` with the inner width (levels and feed-forward) that comes closest to ``target``."""

    def with_width(width: int) -> LanguageConfig:
        return replace(model, mlp_hidden=width, cms=replace(model.cms, hidden=width))

    one, two = count_parameters(with_width(8)), count_parameters(with_width(16))
    width = max(8, 8 + 8 * round((target - one) / (two - one)))
    return with_width(width)


def train_step(
    model: LanguageConfig, config: BenchConfig, seq_len: int
) -> tuple[Callable[[], None], nn.Module]:
    """A closure that takes one optimizer step on random tokens, and the model."""
    torch.manual_seed(0)
    network = model.build().to(config.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    tokens = random_tokens(config, seq_len)

    check_compile(config.compile)
    if config.compile:
        with compiled(None):  # the switch is set for this model's steps only
            compile_units(network, kernels=config.device == "cpu")

    @compiled("inductor" if config.compile else None)
    def step() -> None:
        nll, _ = network.nll(tokens[:, :-1], tokens[:, 1:], keep=False)
        nll.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, network


def random_tokens(config: BenchConfig, seq_len: int) -> Tensor:
    """(B, T + 1) ids."""
    shape = (config.batch_size, seq_len + 1)
    return torch.randint(0, config.vocab_size, shape, device=config.device)


def kept_per_layer(model: LanguageConfig, config: BenchConfig, seq_len: int) -> float:
    """Bytes kept for backward by one layer of a train step, writes of its memories included.

    The difference between models of two layers and of one, so that embedding, head and loss do
    not count.
    """
    tokens = random_tokens(config, seq_len)
    found = []
    for layers in (1, 2):
        torch.manual_seed(0)
        network = replace(model, layers=layers).build().to(config.device)

        def forward(network: nn.Module = network) -> object:
            nll: Callable[..., object] = network.nll  # type: ignore[assignment]
            return nll(tokens[:, :-1], tokens[:, 1:], keep=False)

        found.append(kept_bytes(forward, network.parameters()))
    return float(found[1] - found[0])
