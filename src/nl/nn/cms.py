"""Continuum memory system: MLP levels, each written once per period. Floor 2.

Nested Learning, Eq. 70-71: y = MLP_k(... MLP_1(x)); level l keeps its weights for ``period``
tokens and then takes one step along the summed per-token signal. The fast weights are per row of
the batch, decay with every write, and their size is bounded by ``clip / (1 - retention)``.

Arrangements: ``sequential`` is that chain. In ``nested`` the memory of a level decays toward that
of the next slower one and becomes it whenever the slower one is written; levels start with equal
weights, so that their hidden units mean the same. ``independent`` is x + sum_l gain_l MLP_l(x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.core.state import detach, map_tensors
from nl.nn.cms_config import CMSConfig
from nl.nn.experts_config import ExpertsConfig
from nl.nn.level import (
    Level,
    LevelShape,
    LevelState,
    LevelTokens,
    LevelTrace,
    Reduce,
    WriteRule,
    gather,
    known_tokens,
    restart,
)
from nl.nn.rebuilt import rebuilding, worth_rebuilding
from nl.nn.router import RouteContext, Routing
from nl.ops.level import LevelForm, level_pull_back
from nl.ops.level_chain import LinkTokens, level_chain, level_chain_signals

DENSE = ExpertsConfig()


class _Told(NamedTuple):
    """Tokens up to ``end`` with their signal, for the levels ``wanted``; see ``absorb``.

    ``learning``: whether a backward pass will need what is written.
    """

    state: tuple[LevelState, ...]
    trace: tuple[LevelTrace, ...]
    signal: Tensor
    end: int
    wanted: list[bool]
    learning: bool


class ContinuumMemory(nn.Module):
    """The chain. ``forward`` reads; ``absorb`` takes the signal of read tokens and writes."""

    memory_parameters = True
    read_between_units = True
    reduce: Reduce | None = None
    """Sums over ranks, where the rows of all ranks share a memory; set by the assembly."""

    def __init__(
        self,
        config: CMSConfig,
        dim: int,
        residual_scale: float,
        experts: ExpertsConfig = DENSE,
    ) -> None:
        super().__init__()
        self.config = config
        hidden = experts.hidden * ((experts.count or 0) + experts.shared) or config.hidden or dim
        scale = residual_scale * len(config.periods) ** -0.5
        self.through = config.write_gradient == "through"
        self.own = config.signal == "self"
        self.shared = config.scope == "batch"
        write = WriteRule(config.inner, config.retention, config.clip, self.own, self.shared)
        form = LevelForm(config.activation, config.norm, config.norm_eps)
        shape = LevelShape(hidden, form, config.bias, experts)
        self.levels = nn.ModuleList(
            Level(dim, shape._replace(salt=i), config.first_rate(period, dim), scale, write)
            for i, period in enumerate(config.periods)
        )
        levels: list[Any] = list(self.levels)
        self.rebuilds = [
            config.rebuilds and worth_rebuilding(level.up.weight, level.down.weight, period)
            for level, period in zip(levels, config.periods, strict=True)
        ]
        self.gains: nn.Parameter | None = None
        if config.arrangement == "independent":
            self.gains = nn.Parameter(torch.ones(len(config.periods)))
        self.linked = config.links and not experts.sparse
        if config.arrangement == "nested":
            for level in self.levels[1:]:
                level.load_state_dict(self.levels[0].state_dict())

    def init_state(self) -> tuple[LevelState, ...]:
        """Nothing written yet (the same for any batch size)."""
        return tuple(LevelState() for _ in self.config.periods)

    def keep_writes(self) -> None:
        """Make no weights again: whoever calls holds them for its own backward pass."""
        self.rebuilds = [False] * len(self.rebuilds)

    def forward(
        self, x_BTD: Tensor, state: tuple[LevelState, ...], route: RouteContext | None = None
    ) -> tuple[Tensor, tuple[LevelTrace, ...], tuple[Routing, ...]]:
        """Read the levels (residual inside) with the weights in force.

        Returns:
            (B, T, D), one trace per level for ``absorb``, and what each router chose.
        """
        if self.linked:
            return self._read_chain(x_BTD, state)
        traces, routed, out = [], [], x_BTD
        for i, (level, memory) in enumerate(zip(self.levels, state, strict=True)):
            x_BTD = out if self.gains is None else x_BTD
            y, trace, found = level.read(x_BTD, memory, route)  # type: ignore[operator]
            traces.append(trace if self.through else detach(trace))
            routed += [] if found is None else [found]
            out = out + (y if self.gains is None else self.gains[i] * y)
        return out, tuple(traces), tuple(routed)

    def _read_chain(
        self, x_BTD: Tensor, state: tuple[LevelState, ...]
    ) -> tuple[Tensor, tuple[LevelTrace, ...], tuple[Routing, ...]]:
        levels: list[Any] = list(self.levels)
        links = [level.link(memory) for level, memory in zip(levels, state, strict=True)]
        again = [rebuilding(memory.fast_up, memory.fast_down) for memory in state]
        out, tokens = level_chain(x_BTD, links, levels[0].chain, again)
        return out, tuple(LevelTrace(x, z) for x, z in tokens), ()

    def absorb(
        self,
        state: tuple[LevelState, ...],
        trace: tuple[LevelTrace, ...],
        signal_BTD: Tensor,
        *,
        start: int,
        needed: int | None = None,
        only: Sequence[int] | None = None,
    ) -> tuple[LevelState, ...]:
        """Account for read tokens ``start .. start + T - 1`` whose signal is now known.

        Args:
            signal_BTD: (B, T, D) dL/d(output of the chain) per token, zero where unscored. For
                levels with a loss of their own (B, T, 1): the weight of each token.
            start: position of the first of them; the T tokens must not cross a multiple of the
                smallest period except at their end.
            needed: leave out levels whose next write falls after this position (their State is
                dropped by the caller); None: all are needed.
            only: the levels that take part; the others stay as they are. None: all.

        Returns:
            The new state: levels whose period ends here are written.
        """
        end = start + signal_BTD.shape[1]
        wanted = [
            (needed is None or -(-end // period) * period <= needed) and (only is None or i in only)
            for i, period in enumerate(self.config.periods)
        ]
        learning = torch.is_grad_enabled()
        differentiate = self.through and learning
        with (
            torch.set_grad_enabled(differentiate),
            torch.autocast(signal_BTD.device.type, enabled=False),
        ):
            told = _Told(state, trace, signal_BTD, end, wanted, learning)
            if self.linked:
                return self._absorb_chain(told)
            if not self.shared:
                return self._absorb(told)
            # Rows hold views of one memory: work on the first, hand out views again.
            rows = len(signal_BTD)
            one = map_tensors(lambda t: t[:1], state)
            new = self._absorb(told._replace(state=one))
            return tuple(map_tensors(lambda t: t.expand(rows, *t.shape[1:]), new))

    def _absorb(self, told: _Told) -> tuple[LevelState, ...]:
        state, trace, signal_BTD, end, wanted, learning = told
        first: Any = self.levels[0]
        signal = signal_BTD.to(torch.promote_types(first.up.weight.dtype, torch.float32))
        new = list(state)
        wrote: Tensor | None = None
        chained = self.gains is None and not self.own
        for i in reversed(range(len(new))):
            if not any(wanted[: i + 1]):
                break
            level: Any = self.levels[i]
            weights = level.weights(state[i]).to(signal.dtype)
            seen, own = trace[i], signal if self.gains is None else signal * self.gains[i]
            if self.own:
                seen, error = level.recall(seen.x.to(signal.dtype), weights)
                own = error * signal
            tokens = LevelTokens.of(seen, own, weights)
            slower = i + 1 if self.config.arrangement == "nested" and i + 1 < len(new) else None
            if not wanted[i]:
                wrote = None
            else:
                closes = end % self.config.periods[i] == 0
                base = None if slower is None else new[slower]
                reduce = self.reduce if self.shared and self.training else None
                read = seen if learning and self.rebuilds[i] else None
                given = (state[i], tokens, weights, closes, base, reduce, read)
                new[i], rows = level.absorb(*given)
                if slower is not None and wrote is not None:
                    new[i] = restart(new[i], new[slower], wrote)
                wrote = rows
                if closes and self._cuts(end // self.config.periods[i]):
                    new[i] = detach(new[i])
            if i > 0 and chained:
                signal = level_pull_back(tokens.x, own, tokens.hidden_signal, weights)
        return tuple(new)

    def _absorb_chain(self, told: _Told) -> tuple[LevelState, ...]:
        state, trace, signal_BTD, end, wanted, learning = told
        if not any(wanted):
            return state
        levels: list[Any] = list(self.levels)
        dtype = torch.promote_types(levels[0].up.weight.dtype, torch.float32)
        order = range(len(levels))[wanted.index(True) :][::-1]
        parts = []
        for i in order:
            memory, (x, z, _) = state[i], trace[i]
            sums: Any = None if memory.sum_up is None else (memory.sum_up, memory.sum_down)
            link = levels[i].link(memory)
            parts.append(LinkTokens(link, x.to(dtype), z.to(dtype), wanted[i], sums))
        new = list(state)
        found = level_chain_signals(signal_BTD.to(dtype), parts, levels[0].chain)
        for i, (signal, hidden, made) in zip(order, found, strict=True):
            if made is None:
                continue
            tokens = LevelTokens(*trace[i][:2], signal, hidden)
            read = trace[i] if learning and self.rebuilds[i] else None
            known = known_tokens(state[i], tokens, read)
            if end % self.config.periods[i] == 0:
                new[i] = levels[i].descend(state[i], made, known)
            else:
                new[i] = gather(state[i], made, known)
        return tuple(new)

    def _cuts(self, write: int) -> bool:
        """Whether what is read after the ``write``-th write takes it as a constant."""
        chunks = self.config.bptt_chunks
        return chunks > 0 and write % chunks == 0
