"""What is timed in benchmarks/peers.py: steps of nested-learning, titans-pytorch and of nl.

Every function returns a closure; calling it does one forward pass, one forward and backward pass,
or one whole train step, on random data drawn once. The peers are imported here only, inside
functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from nl.bench.config import BenchConfig
from nl.bench.layers import randomize_zeros
from nl.bench.steps import language, train_step
from nl.core.native import torch_only
from nl.core.program import compiled
from nl.models.compiled import compile_module
from nl.models.language import LanguageConfig
from nl.nn.selfmod import SelfMod, SelfModConfig
from nl.nn.titan import TitanConfig, TitanMemory

Step = Callable[[], object]
PEER_PERIODS = (1, 4, 32, 128)
"""Levels of nested-learning's pilot configuration."""
EXPANSION = 4
"""Hidden width of its levels in units of the model's."""


@dataclass(frozen=True)
class Shape:
    """A language model for one train step."""

    dim: int = 256
    layers: int = 2
    heads: int = 4
    seq_len: int = 256
    batch: int = 4
    vocab: int = 1024
    chunk: int = 64

    def bench(self) -> BenchConfig:
        """As ``nl.bench`` has it."""
        return BenchConfig(
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            batch_size=self.batch,
            vocab_size=self.vocab,
        )

    def tokens(self) -> torch.Tensor:
        """(B, T) ids."""
        torch.manual_seed(1)
        return torch.randint(0, self.vocab, (self.batch, self.seq_len))


def ours(block: str, shape: Shape) -> Step:
    """nl's step: loss, gradients and the writes in one pass, clipping, AdamW."""
    model: LanguageConfig = language(shape.bench(), block, shape.chunk)
    cms = replace(model.cms, hidden=EXPANSION * shape.dim)
    model = replace(model, cms=cms, tie_embeddings=True)
    return train_step(model, shape.bench(), shape.seq_len)[0]


def nested_learning(block: str, shape: Shape, periods: tuple[int, ...]) -> Step:
    """nested-learning's step as its training loop takes it without online chunks.

    Forward, loss, backward, clipping, AdamW; then its update pass over the same tokens with the
    teach signal of the head. Surprise gates are left out, so that every period is written.
    """
    from nested_learning.levels import LevelSpec
    from nested_learning.model import HOPEModel, ModelConfig
    from nested_learning.training import compute_teach_signal

    torch.manual_seed(0)
    levels = [LevelSpec(name=f"level_{p}", update_period=p, optimizer_key="o") for p in periods]
    model = HOPEModel(
        ModelConfig(
            vocab_size=shape.vocab,
            dim=shape.dim,
            num_layers=shape.layers,
            heads=shape.heads,
            titan_level=LevelSpec(name="titan", update_period=8),
            cms_levels=levels,
            block_variant=block,
            self_mod_chunk_size=shape.chunk,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = shape.tokens()

    def step() -> object:
        logits = model(tokens)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model(tokens, teach_signal=compute_teach_signal(model, logits, tokens))
        metrics = model.pop_update_metrics()
        if not any(key.endswith("gate_hit") and value for key, value in metrics.items()):
            raise RuntimeError(f"nested-learning wrote nothing: {metrics}")
        return loss

    return step


def written_layers(dim: int, batch: int, seq_len: int, chunk: int) -> dict[str, Step]:
    """The self-modifying layer alone, one memory of the whole width: forward, writing."""
    from nested_learning.titan.self_modifying import (
        SelfModifyingTitans,
        SelfModifyingTitansConfig,
    )

    torch.manual_seed(0)
    x = torch.randn(batch, seq_len, dim)
    peer = SelfModifyingTitans(SelfModifyingTitansConfig(dim=dim, chunk_size_other=chunk))
    config = SelfModConfig(
        head_size=dim, hidden=dim, gate_hidden=dim, period=chunk, activation="gelu"
    )
    layers = {
        "ours": replace(config, compat="literal"),
        "ours, default rule": config,
        "ours, default options": SelfModConfig(period=chunk),
        "ours, compiled": replace(config, compat="literal"),
    }
    steps: dict[str, Step] = {
        "nested-learning": lambda: peer.forward_with_updates(x, peer.init_fast_state())
    }
    for name, chosen in layers.items():
        layer = SelfMod(chosen, dim)
        randomize_zeros(layer)
        steps[name] = forward_only(layer, x, "inductor" if "compiled" in name else None)
    steps["ours, torch alone"] = torch_only()(steps["ours"])
    return steps


def forward_only(layer: torch.nn.Module, x: torch.Tensor, backend: str | None = None) -> Step:
    """The layer from a fresh state, no gradients; ``backend`` as ``nl.core.program`` has it."""

    @compiled(backend)
    def step() -> object:
        with torch.no_grad():
            return layer(x, None, position=0)

    return step


def titan_layers(chunk: int, batch: int, seq_len: int, heads: int, head: int) -> dict[str, Step]:
    """Titans memories of depth 2, forward and backward; see DIFFERENCES in the page."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    x = torch.randn(batch, seq_len, heads * head)
    steps: dict[str, Step] = {}
    boundaries = {"128": 128, "none": None, "chunk": chunk}
    for name, boundary in boundaries.items():
        torch.manual_seed(0)
        peer = NeuralMemory(
            dim=heads * head,
            chunk_size=chunk,
            batch_size=boundary,
            dim_head=head,
            heads=heads,
            model=MemoryMLP(head, depth=2, expansion_factor=1.0),
        )
        steps[f"titans-pytorch, boundary {name}"] = forward_backward(peer, x)
    full = TitanConfig(head_size=head, period=chunk)
    rate = 0.5 / chunk  # plain steps of a whole chunk must not run away: numbers stay numbers
    same = replace(full, conv=0, step="plain", rate=rate, rate_hidden=rate / 50)
    configs = {
        "ours": replace(same, recompute=False),
        "ours, compiled": replace(same, recompute=False),
        "ours, recomputing": same,
        "ours, default options": full,
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        memory = TitanMemory(config, heads * head)
        randomize_zeros(memory)
        backend = None
        if "compiled" in name:
            backend = "inductor"
            compile_module(memory)
        steps[name] = compiled(backend)(forward_backward(memory, x, position=0))
    steps["ours, torch alone"] = torch_only()(steps["ours"])
    for name, step in steps.items():
        gradient = step()
        if not (isinstance(gradient, torch.Tensor) and gradient.isfinite().all()):
            raise RuntimeError(f"{name}: gradients are not finite")
    return steps


def forward_backward(layer: torch.nn.Module, x: torch.Tensor, **kw: int) -> Step:
    """One forward and one backward pass, gradients of the input included."""
    leaf = x.clone().requires_grad_()

    def step() -> object:
        layer.zero_grad()
        leaf.grad = None
        out = layer(leaf, **kw)[0]
        out.square().mean().backward()
        return leaf.grad

    return step
