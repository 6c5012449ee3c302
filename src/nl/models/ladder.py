"""model=ladder: seven small classifiers, from a linear map to two transformer blocks. Floor 3.

Every network maps (B, T, F) to one logit (B, 1); the first layer serves as the embedding. Linear
maps begin with Xavier-uniform weights and zero biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nl.config import register, require
from nl.config.groups import ModelConfig
from nl.core.output import Knobs, Output

Network = Literal[
    "logreg",
    "mlp",
    "temporal",
    "self_attention",
    "bahdanau_attention",
    "singlelayer_transformer",
    "multilayer_transformer",
]

ONLY_FOR: dict[str, tuple[str, ...]] = {
    "width": tuple(name for name in get_args(Network) if name != "logreg"),
    "attention_heads": ("multilayer_transformer",),
    "blocks": ("multilayer_transformer",),
    "position_scale": ("singlelayer_transformer", "multilayer_transformer"),
    "legacy": ("singlelayer_transformer", "bahdanau_attention"),
}
"""Options that not every network has."""


@register("model", "ladder")
@dataclass(frozen=True, kw_only=True)
class LadderModelConfig(ModelConfig):
    """One rung of the ladder."""

    row_kind: ClassVar[str] = "examples"
    """Vectors with a label."""

    network: Network = "mlp"
    """Which network."""
    steps: int = 5
    """T, rows of an example."""
    features: int = 2
    """F, columns of an example."""
    width: int | None = None
    """Hidden width d; null: 16, and 32 for multilayer_transformer."""
    attention_heads: int = 4
    """multilayer_transformer: attention heads."""
    blocks: int = 2
    """multilayer_transformer: blocks."""
    position_scale: float = 0.1
    """Transformers: factor of the sinusoidal positions."""
    legacy: bool = False
    """The network of the earlier tables. bahdanau_attention: score a step by the mean of its
    features instead of the learned scorer, which then is not trained. singlelayer_transformer:
    neither a residual nor norms."""

    def __post_init__(self) -> None:
        for name in ("steps", "features", "attention_heads", "blocks"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(self.width is None or self.width >= 1, f"width: {self.width}; must be >= 1.")
        require(
            self.network != "multilayer_transformer" or self.size % self.attention_heads == 0,
            f"attention_heads: {self.attention_heads}; must divide the width {self.size}.",
        )
        for name, networks in ONLY_FOR.items():
            value = getattr(self, name)
            require(
                value == type(self).__dataclass_fields__[name].default or self.network in networks,
                f"{name}: {value}; {self.network} has none, only {' and '.join(networks)}.",
            )

    @property
    def size(self) -> int:
        """d."""
        if self.width is not None:
            return self.width
        return 32 if self.network == "multilayer_transformer" else 16

    def build(self) -> LadderModel:
        """The model with weights drawn from torch's global generator."""
        return LadderModel(self)


class LadderModel(nn.Module):
    """inputs (B, T, F) -> logits (B, 1)."""

    def __init__(self, config: LadderModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = NETWORKS[config.network](config)
        self.may_skip_parameters = config.legacy and config.network == "bahdanau_attention"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.network, SingleLayerTransformer) and not config.legacy:
            nn.init.zeros_(self.network.attend.query.weight)

    def forward(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output:
        wanted = (self.config.steps, self.config.features)
        if inputs.shape[1:] != wanted:
            raise ValueError(
                f"inputs: (T, F) = {tuple(inputs.shape[1:])}, the model has {wanted}: set "
                "model.steps and model.features as the task has them"
            )
        return Output(self.network(inputs))

    def init_state(self, batch: int) -> None:
        """None: nothing is carried from one batch to the next."""

    def shard_units(self) -> Sequence[nn.Module]:
        """The network."""
        return [self.network]

    def flops_per_token(self) -> int:
        """Forward FLOPs per row of an example: two per weight of every linear map."""
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        return 2 * weights

    def attention(self) -> list[Tensor]:
        """Attention (B, H, Q, T') of the last forward pass per layer, where there is any.

        Q is T', or 1 where one query weighs all steps.
        """
        return [m.last for m in self.modules() if isinstance(m, Attends) and m.last is not None]

    def attention_logits(self) -> list[Tensor]:
        """What the softmax of every layer saw in the last training batch, where there is any."""
        found = [m.logits for m in self.modules() if isinstance(m, Attends)]
        return [logits for logits in found if logits is not None]

    def final_linear(self) -> nn.Linear:
        """The map that makes the logit."""
        network: Any = self.network
        last = network[-1] if isinstance(network, nn.Sequential) else network.out
        assert isinstance(last, nn.Linear)
        return last

    def vocabulary_attention(self) -> Tensor | None:
        """Attention (F, F) between tokens out of context, where a network has such a thing."""
        found = self.network.vocabulary() if isinstance(self.network, SelfAttention) else None
        return None if found is None else found.detach()


class Attends(nn.Module):
    """Keeps what its last forward pass looked at: logits in training, attention outside it."""

    last: Tensor | None = None
    logits: Tensor | None = None

    def attention_of(self, scores: Tensor) -> Tensor:
        """Softmax of ``scores`` (B, H, Q, T) over T, remembered in evaluation mode."""
        weights = scores.softmax(dim=-1)
        self.last = None if self.training else weights.detach()
        if self.training:
            self.logits = scores.detach()
        return weights


def logreg(c: LadderModelConfig) -> nn.Module:
    """One linear map of everything."""
    return nn.Sequential(nn.Flatten(), nn.Linear(c.steps * c.features, 1))


def mlp(c: LadderModelConfig) -> nn.Module:
    """One hidden layer over everything."""
    wide = nn.Linear(c.steps * c.features, c.size)
    return nn.Sequential(nn.Flatten(), wide, nn.Tanh(), nn.Linear(c.size, 1))


class Temporal(nn.Module):
    """One number per step, then a linear map over steps."""

    def __init__(self, c: LadderModelConfig) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(c.features, c.size), nn.Linear(c.steps, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(torch.tanh(self.embed(x)).mean(dim=-1))
        return found


class SelfAttention(Attends):
    """Queries, keys and values are the embedding itself; the mean over steps decides."""

    def __init__(self, c: LadderModelConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(c.features, c.size)
        self.mix, self.out = nn.Linear(c.size, c.size), nn.Linear(c.size, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        scores = h @ h.transpose(1, 2) / math.sqrt(h.shape[-1])
        weights = self.attention_of(scores.unsqueeze(1)).squeeze(1)
        # Mixed after the mean, as below after the sum: tanh sees the whole sequence at once.
        found: Tensor = self.out(torch.tanh(self.mix((weights @ h).mean(dim=1))))
        return found

    def vocabulary(self) -> Tensor:
        """Attention (F, F) of every token to every token, were all of them in one sequence."""
        h = torch.tanh(self.embed(torch.eye(self.embed.in_features).to(self.embed.weight)))
        return (h @ h.T / math.sqrt(h.shape[-1])).softmax(dim=-1)


class BahdanauAttention(Attends):
    """Steps are weighted by a score of their embedding (arXiv:1409.0473, without a query)."""

    def __init__(self, c: LadderModelConfig) -> None:
        super().__init__()
        self.legacy = c.legacy
        self.embed, self.scorer = nn.Linear(c.features, c.size), nn.Linear(c.size, 1)
        self.mix, self.out = nn.Linear(c.size, c.size), nn.Linear(c.size, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        scores = h.mean(dim=-1) if self.legacy else self.scorer(h).squeeze(-1)
        # Mixed after the sum: a linear map of the sum alone is a linear rule of what occurs.
        weights = self.attention_of(scores[:, None, None])[:, 0, 0]
        context = (weights.unsqueeze(-1) * h).sum(dim=1)
        found: Tensor = self.out(torch.tanh(self.mix(context)))
        return found


class HeadedAttention(Attends):
    """Scaled dot-product attention over all steps, without an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = self.attention_of(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))
        return (weights @ v).transpose(1, 2).flatten(2)


class SingleLayerTransformer(nn.Module):
    """A mark in front and positions, both in the input's own space; x += attention(norm(x)); norm.

    One head; a hidden layer behind; the mark's vector decides. Queries begin at zero: attention is
    a mean before it chooses; where it begins with a choice, some seeds never see a token that it
    leaves out. With ``legacy`` there are neither residual nor norms; at a high rate the mark then
    comes to look at one step alone (reports/ladder.md).
    """

    def __init__(self, c: LadderModelConfig) -> None:
        super().__init__()
        self.legacy = c.legacy
        self.mark = nn.Parameter(torch.zeros(1, 1, c.features))
        self.scale = c.position_scale
        self.embed = nn.Linear(c.features, c.size)
        self.attend = HeadedAttention(c.size, 1)
        self.mix, self.out = nn.Linear(c.size, c.size), nn.Linear(c.size, 1)
        if not c.legacy:
            self.first, self.second = nn.LayerNorm(c.size), nn.LayerNorm(c.size)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.mark.expand(len(x), -1, -1), x], dim=1)
        x = self.embed(x + self.scale * sinusoids(x.shape[1], x.shape[2]).to(x))
        x = self.attend(x) if self.legacy else self.second(x + self.attend(self.first(x)))
        found: Tensor = self.out(torch.tanh(self.mix(x))[:, 0])
        return found


class TransformerBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = HeadedAttention(width, heads)
        self.into, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.first(x))
        found: Tensor = x + self.back(F.gelu(self.into(self.second(x))))
        return found


class MultiLayerTransformer(nn.Module):
    """Embedding, a mark in front, positions, blocks; the mark's vector decides."""

    def __init__(self, c: LadderModelConfig) -> None:
        super().__init__()
        self.embed, self.scale = nn.Linear(c.features, c.size), c.position_scale
        self.mark = nn.Parameter(torch.zeros(1, 1, c.size))
        self.blocks = nn.Sequential(
            *(TransformerBlock(c.size, c.attention_heads) for _ in range(c.blocks))
        )
        self.out = nn.Linear(c.size, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.mark.expand(len(x), -1, -1), self.embed(x)], dim=1)
        x = x + self.scale * sinusoids(x.shape[1], x.shape[2]).to(x)
        found: Tensor = self.out(self.blocks(x)[:, 0])
        return found


def sinusoids(length: int, width: int) -> Tensor:
    """Positions (length, width): angle p / 10000^(2 floor(i / 2) / width), sine at even i."""
    index = torch.arange(width)
    angles = torch.arange(length)[:, None] / 10000 ** (2 * (index // 2) / width)
    return torch.where(index % 2 == 0, angles.sin(), angles.cos())


NETWORKS: dict[str, Callable[[LadderModelConfig], nn.Module]] = {
    "logreg": logreg,
    "mlp": mlp,
    "temporal": Temporal,
    "self_attention": SelfAttention,
    "bahdanau_attention": BahdanauAttention,
    "singlelayer_transformer": SingleLayerTransformer,
    "multilayer_transformer": MultiLayerTransformer,
}
