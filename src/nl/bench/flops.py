"""Floating-point operations by stated formulas, for shares of the GEMM peak. Floor 8.

Per token, a multiplication and an addition are two operations; N_matmul is the number of
parameters with two or more dimensions, the embedding table left out, the head counted once; of
experts those that read a token.

    model         6 N_matmul + 12 sum(d T_eff)    the sum over attention layers of width d
    algorithmic   model + what memories compute beyond reading their weights, see ``writes``
    one block     2 N_matmul + 4 sum(d T_eff) + writes of its memories; with backward 3 times

T_eff is T for attention to everything (the causal half is not taken off), the window where there
is one. Recomputation never counts.
"""

from __future__ import annotations

from torch import nn

from nl.nn.attention import Attention
from nl.nn.experts import idle_parameters
from nl.nn.gated_delta import GatedDelta
from nl.nn.head_memory import HeadMemory
from nl.nn.level import Level
from nl.nn.selfmod import SelfMod
from nl.nn.titan_bank import TitanBank

TRAINING = 3
"""Forward and backward of an operation that gradients flow through, in forwards."""


def matmul_parameters(model: nn.Module) -> int:
    """N_matmul."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    found = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in tables)
    return found - idle_parameters(model)


def attention_width(model: nn.Module, seq_len: int) -> float:
    """Sum over attention layers of d times T_eff."""
    total = 0.0
    for m in model.modules():
        if isinstance(m, Attention):
            window = getattr(m, "window", None)
            seen = min(seq_len, window) if window else 2 * m.attended(seq_len)
            total += m.out.weight.shape[0] * seen
    return total


def model_flops(model: nn.Module, seq_len: int) -> float:
    """Training FLOPs per token, 6 N_matmul + 12 d T_eff per attention layer."""
    return 6 * matmul_parameters(model) + 12 * attention_width(model, seq_len)


def selfmod_flops(layer: SelfMod) -> float:
    """Forward FLOPs per token of a self-modifying layer of width d, writes included.

    d (54 h + 16 g) + 7 C d for three memories of h and two of g hidden units per head (12 h + 4 g
    of them reads) and 2 per weight of the static projections. What the chosen rule computes beyond
    that (the running error, grams and inverses) does not count.
    """
    projections = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    c = layer.config
    reads = layer.heads * c.head_size * (12 * c.hidden + 4 * c.gate_hidden)
    return reads + writes(layer) + 2 * projections


def writes(module: nn.Module) -> float:
    """Forward FLOPs per token of what one memory computes beyond reading.

    self-modifying: d (42 h + 12 g) + 7 C d with h and g as above. Titans, L layers of K x K, M = 2
    with momentum: reading the keys 2 L, deltas 2 (L - 1), updates 2 L M, times d K. Gated delta:
    6 d d_h + 6 C d. Level of width h: 8 d h (two outer products, two products for the signal).
    """
    if isinstance(module, SelfMod):
        own = module.config
        d = module.heads * own.head_size
        return d * (42 * own.hidden + 12 * own.gate_hidden + 7 * module.period)
    if isinstance(module, TitanBank):
        c = module.config
        d, depth, sides = module.heads * c.head_size, c.depth, 2 if c.momentum else 1
        return 2 * (2 * depth - 1 + depth * sides) * d * c.head_size
    if isinstance(module, GatedDelta):
        d = module.out.weight.shape[0]
        return 6 * d * (d // module.config.heads) + 6 * module.config.chunk * d
    if isinstance(module, Level):
        hidden, d = module.up.weight.shape
        return 8 * d * hidden
    return 0.0


def head_memory_flops(model: nn.Module) -> float:
    """FLOPs per token of a head of S words and width d that learns, 8 S d.

    Its fast matrix is read forward and for the gradient of what the head reads, and written; the
    gradient of its rates is one more product of that size. Nothing flows back through any of them.
    """
    if not any(isinstance(m, HeadMemory) for m in model.modules()):
        return 0.0
    weight = model.get_parameter("head.weight")
    return 8.0 * weight.numel()


def algorithmic_flops(model: nn.Module, seq_len: int) -> float:
    """Training FLOPs per token with the writes; no gradient flows through levels' and head's."""
    extra = head_memory_flops(model)
    for m in model.modules():
        extra += writes(m) * (1 if isinstance(m, Level) else TRAINING)
    return model_flops(model, seq_len) + extra


def layer_flops(block: nn.Module, seq_len: int) -> float:
    """Forward FLOPs per token of one block; levels are read, other memories written too."""
    total = 2 * matmul_parameters(block) + 4 * attention_width(block, seq_len)
    return total + sum(writes(m) for m in block.modules() if not isinstance(m, Level))
