"""Experts on the tokens they are given: none is dropped, none is read for nothing. Floor 1.

    y_n = sum_j g_nj E_{i_nj}(x_n)          E_e(x) = phi(x U_e) V_e

Tokens are sorted by expert, so that each expert multiplies one block of rows: with ``grouped_mm``
where the device and dtype have it, else with one batched product over blocks padded to the longest
(``padded_experts``) or a loop over experts (``looped_experts``). All give the same numbers.
MegaBlocks (arXiv 2211.15841) is the idea; the naive form gathers the weights of every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Literal["relu", "silu", "gelu", "swiglu"]

ALIGNED = 16
"""Bytes that rows of a grouped product have to be a multiple of."""
MOST_PADDING = 8
"""Padded rows per token and slot above which a loop over experts is cheaper."""


class ExpertWeights(NamedTuple):
    """Weights of E experts.

    Attributes:
        up: U (E, D, F); with swiglu (E, D, 2 F), gates first.
        down: V (E, F, D).
        activation: phi; swiglu multiplies the second half with SiLU of the first.
    """

    up: Tensor
    down: Tensor
    activation: Activation = "relu"

    def to(self, dtype: torch.dtype) -> ExpertWeights:
        """The same weights in another dtype."""
        return self._replace(up=self.up.to(dtype), down=self.down.to(dtype))


class Order(NamedTuple):
    """The N K assignments sorted by expert.

    Attributes:
        order: (N K,) flat assignment of every sorted row.
        inverse: (N, K) sorted row of every assignment.
        ends: (E,) int32, where the rows of each expert end; assignments to nobody come last.
        live: (N, K) False for nobody; None where there are none.
    """

    order: Tensor
    inverse: Tensor
    ends: Tensor
    live: Tensor | None


def expert_activate(z: Tensor, activation: Activation) -> Tensor:
    """phi(z), half as wide with swiglu."""
    if activation == "swiglu":
        gate, value = z.chunk(2, -1)
        return F.silu(gate) * value
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "silu": F.silu,
        "gelu": F.gelu,
    }
    return functions[activation](z)


def sort_by_expert(ids_NK: Tensor, count: int, *, partial: bool = False) -> Order:
    """Sort assignments by expert, without reading anything on the host.

    Args:
        ids_NK: (N, K) int64 experts; ``count`` stands for nobody.
        count: E.
        partial: whether there may be assignments to nobody.
    """
    ranked, order = ids_NK.flatten().sort(stable=True)
    numbers = torch.arange(len(order), device=order.device)
    inverse = torch.empty_like(order).scatter_(0, order, numbers)
    experts = torch.arange(count, device=order.device)
    ends = torch.searchsorted(ranked, experts, right=True).to(torch.int32)
    return Order(order, inverse.view_as(ids_NK), ends, ids_NK < count if partial else None)


class _Dispatch(torch.autograd.Function):
    """(N, D) tokens -> (N K, D) rows sorted by expert; the gradient is summed slot by slot."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order: Tensor, inverse_NK: Tensor, live: Any) -> Tensor:
        ctx.save_for_backward(inverse_NK, live)
        return x_ND.index_select(0, order // inverse_NK.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inverse, live = ctx.saved_tensors
        total = None
        for slot in range(inverse.shape[1]):
            part = grad.index_select(0, inverse[:, slot])
            if live is not None:  # rows of nobody were never computed
                part = part.masked_fill_(~live[:, slot, None], 0.0)
            total = part if total is None else total.add_(part)
        return total, None, None, None


class _Combine(torch.autograd.Function):
    """(N K, D) sorted rows, (N, K) gates -> (N, D), summed over the slots of a token."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, inverse: Any, live: Any
    ) -> Any:
        ctx.save_for_backward(rows, gates, order, inverse, live)
        total = None
        for slot in range(inverse.shape[1]):
            part = rows.index_select(0, inverse[:, slot]).mul_(gates[:, slot, None].to(rows.dtype))
            if live is not None:
                part = part.masked_fill_(~live[:, slot, None], 0.0)
            total = part if total is None else total.add_(part)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, gates, order, inverse, live = ctx.saved_tensors
        scale = gates.flatten()[order].to(grad.dtype)
        by_rows = grad.index_select(0, order // inverse.shape[1]).mul_(scale[:, None])
        by_gates = []
        for slot in range(inverse.shape[1]):
            part = torch.linalg.vecdot(rows.index_select(0, inverse[:, slot]), grad)
            by_gates.append(part if live is None else part.masked_fill(~live[:, slot], 0.0))
        return by_rows, torch.stack(by_gates, 1).to(gates.dtype), None, None, None


def sparse_experts(
    x_ND: Tensor, ids_NK: Tensor, gates_NK: Tensor, w: ExpertWeights, *, partial: bool = False
) -> Tensor:
    """y_n = sum_j g_nj E_{i_nj}(x_n) by the fastest form that the device and dtype have.

    Differentiable once in tokens, gates and weights.

    Args:
        x_ND: (N, D) tokens.
        ids_NK: (N, K) int64 experts; E stands for nobody.
        gates_NK: (N, K) weights of the answers.
        w: the experts.
        partial: whether there may be assignments to nobody.

    Returns:
        (N, D) in the dtype of the tokens; under autocast products are in its dtype.
    """
    device = x_ND.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return sparse_experts(x_ND.to(low), ids_NK, gates_NK, w.to(low), partial=partial)
    order = sort_by_expert(ids_NK, len(w.up), partial=partial)
    if has_grouped_mm(device, x_ND.dtype):
        return grouped_experts(x_ND, gates_NK, order, w)
    longest = int(order.ends.diff(prepend=order.ends.new_zeros(1)).max())
    cheap = longest * len(w.up) <= MOST_PADDING * ids_NK.numel()
    return (padded_experts if cheap else looped_experts)(x_ND, gates_NK, order, w)


def sparse_experts_reference(
    x_ND: Tensor, ids_NK: Tensor, gates_NK: Tensor, w: ExpertWeights, *, partial: bool = False
) -> Tensor:
    """The same with the weights of every token gathered: 3 N K D F numbers."""
    live = ids_NK < len(w.up)
    ids = ids_NK.clamp(max=len(w.up) - 1)
    z = torch.einsum("nd,nkdf->nkf", x_ND, w.up[ids])
    y = torch.einsum("nkf,nkfd->nkd", expert_activate(z, w.activation), w.down[ids])
    gates = torch.where(live, gates_NK, 0.0) if partial else gates_NK
    return torch.einsum("nk,nkd->nd", gates, y)


def grouped_experts(x_ND: Tensor, gates_NK: Tensor, order: Order, w: ExpertWeights) -> Tensor:
    """``sparse_experts`` by grouped products; nothing is read on the host.

    Rows are padded with zeros to a multiple of 16 bytes, which the products ask for. Rows of nobody
    lie behind the last expert's: they cost nothing and hold nothing.
    """
    width = x_ND.shape[-1]
    x, w = _aligned(x_ND, w)
    rows = _Dispatch.apply(x, order.order, order.inverse, order.live)
    hidden = F.grouped_mm(rows, w.up, offs=order.ends)
    answer = F.grouped_mm(expert_activate(hidden, w.activation), w.down, offs=order.ends)
    y: Tensor = _Combine.apply(answer, gates_NK, order.order, order.inverse, order.live)
    return y[:, :width]


def padded_experts(x_ND: Tensor, gates_NK: Tensor, order: Order, w: ExpertWeights) -> Tensor:
    """``sparse_experts`` by batched products over blocks as long as the longest, a host read."""
    count, slots = len(w.up), gates_NK.shape[1]
    ends = order.ends.long()
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    longest = max(int((ends - begins).max()), 1)
    numbers = torch.arange(longest, device=ends.device)
    places = begins[:, None] + numbers  # (E, C) sorted rows, some of them of the next expert
    filled = places < ends[:, None]
    tokens = order.order[places.clamp(max=len(order.order) - 1)] // slots
    blocks = torch.where(filled[..., None], x_ND[tokens], 0.0)
    answer = expert_activate(blocks @ w.up, w.activation) @ w.down
    experts = torch.searchsorted(
        ends, torch.arange(len(order.order), device=ends.device), right=True
    )
    known = experts.clamp(max=count - 1)
    within = torch.arange(len(experts), device=ends.device) - begins[known]
    rows = answer[known, within.clamp(max=longest - 1)]
    y: Tensor = _Combine.apply(rows, gates_NK, order.order, order.inverse, order.live)
    return y


def looped_experts(x_ND: Tensor, gates_NK: Tensor, order: Order, w: ExpertWeights) -> Tensor:
    """``sparse_experts`` expert by expert; how many rows each has is read on the host."""
    rows = _Dispatch.apply(x_ND, order.order, order.inverse, order.live)
    begin, answers = 0, []
    for expert, end in enumerate(order.ends.tolist()):
        if end > begin:
            hidden = expert_activate(rows[begin:end] @ w.up[expert], w.activation)
            answers.append(hidden @ w.down[expert])
        begin = end
    answers.append(rows[begin:] * 0.0)
    y: Tensor = _Combine.apply(torch.cat(answers), gates_NK, order.order, order.inverse, order.live)
    return y


def _aligned(x_ND: Tensor, w: ExpertWeights) -> tuple[Tensor, ExpertWeights]:
    """Both widths padded with zeros to what grouped products accept."""
    unit = ALIGNED // x_ND.element_size()
    more, wider = -x_ND.shape[-1] % unit, -w.down.shape[1] % unit
    if not more and not wider:
        return x_ND, w
    halves = 2 if w.activation == "swiglu" else 1
    up = w.up.unflatten(-1, (halves, -1))
    up = F.pad(up, (0, wider, 0, 0, 0, more)).flatten(-2)
    return F.pad(x_ND, (0, more)), w._replace(up=up, down=F.pad(w.down, (0, more, 0, wider)))


_KNOWN: dict[tuple[str, torch.dtype], bool] = {}


def has_grouped_mm(device: str, dtype: torch.dtype) -> bool:
    """Whether grouped products, forward and backward, exist for this kind of device and dtype.

    Tried once; a layer has it tried when it is built, so that a compiled call knows.
    """
    if (device, dtype) not in _KNOWN:
        _KNOWN[device, dtype] = hasattr(F, "grouped_mm") and _grouped_mm_works(device, dtype)
    return _KNOWN[device, dtype]


def try_grouped_mm() -> None:
    """Know ``has_grouped_mm`` of the devices of this machine."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            has_grouped_mm(device, dtype)


def _grouped_mm_works(device: str, dtype: torch.dtype) -> bool:
    # What this keeps for its backward pass is nobody else's: activation checkpoints count.
    alone = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    try:
        with torch.enable_grad(), alone:
            rows = torch.ones(2, 16, dtype=dtype, device=device, requires_grad=True)
            weights = torch.ones(2, 16, 16, dtype=dtype, device=device, requires_grad=True)
            ends = torch.tensor([1, 2], dtype=torch.int32, device=device)
            out = F.grouped_mm(rows, weights, offs=ends)
            torch.autograd.grad(out, [rows, weights], torch.ones_like(out))
    except (RuntimeError, NotImplementedError):
        return False
    return True
