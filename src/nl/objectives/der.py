"""Dark experience replay: stored rows are learned again with what was answered then. Floor 3.

DER++ (Buzzega et al. 2020, arXiv:2004.07211, Eq. 6): beside the loss of a batch, two rows from the
store, one for each term,

    loss = CE(batch) + alpha MSE(z_then, z_now) + beta CE(stored),

z the logits when the row was read. The store is a uniform sample of all rows read so far (those
with the smallest keyed hash of their number, a reservoir). Of the logits the ``top`` largest are
kept, with their tokens: the others are left free. It needs no phases. Rows are stored without the
State that they were read with: answers, then and now, are those of a fresh one, also where
``train.carry`` keeps a State for the loss of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nl.config import register, require
from nl.core.batch import IGNORE, Batch
from nl.core.output import Knobs, StepOut
from nl.core.seeds import SeedBook
from nl.objectives.next_token import NextTokenConfig
from nl.objectives.ranked import Ranked
from nl.ops.routing import mix_bits

LARGEST = 1 << 62


@register("objective", "der")
@dataclass(frozen=True, kw_only=True)
class DerConfig(NextTokenConfig):
    """Predict the next token, and answer on stored rows as when they were read (DER++)."""

    alpha: float = 0.1
    """Weight of the squared difference of logits, mean over stored logits."""
    beta: float = 0.5
    """Weight of the loss on stored rows, mean over tokens."""
    capacity: int = 256
    """Rows that are stored."""
    rows: int = 4
    """Stored rows per micro-batch and term, over all ranks."""
    top: int = 32
    """Logits that are kept of every token; 0: all."""
    key: int = 0
    """Seed of which rows are stored and drawn."""

    requires = {  # noqa: RUF012 - not a field
        "late_changes": "launch train.py or train_dist.py, or set objective=next_token"
    }

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "top", "key"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        for name in ("capacity", "rows"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")

    def build(self, model: nn.Module) -> Der:
        """Wrap ``model``, a language model."""
        return Der(self, model)


class Der(Ranked):
    """Batch -> StepOut. The store is a set of buffers, equal on all ranks, in every checkpoint."""

    numbers: Tensor
    tokens: Tensor
    ids: Tensor
    logits: Tensor

    def __init__(self, config: DerConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.options = config
        self.register_buffer("numbers", torch.empty(0, dtype=torch.int64))
        self.register_buffer("tokens", torch.empty(0, 3, 0, dtype=torch.int32))
        self.register_buffer("ids", torch.empty(0, 0, 0, dtype=torch.int32))
        self.register_buffer("logits", torch.empty(0, 0, 0))

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """See the module; outside training it is the loss of ``next_token`` alone."""
        out = super().forward(batch, state, knobs)
        if not self.training:
            return out
        metrics = {**out.metrics, "der/nats_sum": out.loss.detach()}
        loss, number = out.loss, int(batch.tags["row"])
        if len(self.numbers):
            dark = self._dark(self._drawn(number, 0))
            again = self._again(self._drawn(number, 1))
            # Parts of means over what all ranks draw; what is logged is a mean over ranks.
            metrics["der/mse"] = dark.detach() * self.world
            metrics["der/stored_nats"] = again.detach() * self.world
            stored = self.options.alpha * dark + self.options.beta * again
            loss = loss + self.summed(batch.weight, stored.detach()) * stored
        self._store(batch, number, knobs)
        return StepOut(loss, out.state, metrics, out.rows)

    def _read(self, rows: Tensor, knobs: Knobs | None = None) -> Tensor:
        """Logits (n, T, V) of rows (n, 3, T): inputs, targets, where documents begin."""
        inputs, targets, begins = rows.long().unbind(1)
        read: dict[str, Any] = {"targets": targets, "write": self.config.write}
        if begins.any():
            read["starts"] = tuple(tuple(row.nonzero()[:, 0].tolist()) for row in begins)
        found: Tensor = self.model(inputs, None, knobs, **read).pred
        return found

    def _dark(self, drawn: Tensor) -> Tensor:
        """Squared difference of stored logits of scored tokens: this rank's part of the mean."""
        mine = self._share(drawn)
        rows, found = self.tokens[mine], self.logits[mine]
        now = self._read(rows).gather(-1, self.ids[mine].long())
        part = (now - found).square()[rows[:, 1] != IGNORE].sum()
        return part / (self._scored(drawn) * found.shape[-1])

    def _again(self, drawn: Tensor) -> Tensor:
        """Nats of scored tokens: this rank's part of the mean."""
        rows = self.tokens[self._share(drawn)]
        targets = rows[:, 1].long()
        logits = self._read(rows).float().flatten(0, 1)
        part = nn.functional.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return part / self._scored(drawn)

    def _scored(self, drawn: Tensor) -> Tensor:
        """Scored tokens of the rows that all ranks drew."""
        return (self.tokens[drawn, 1] != IGNORE).sum().clamp(min=1)

    def _share(self, drawn: Tensor) -> Tensor:
        """This rank's share of the drawn rows."""
        require(
            self.options.rows % self.world == 0,
            f"objective.rows: {self.options.rows}; must be a multiple of the {self.world} ranks.",
        )
        share = self.options.rows // self.world
        return drawn[self.rank * share : (self.rank + 1) * share]

    def _drawn(self, number: int, term: int) -> Tensor:
        """Places in the store of the rows that all ranks draw, with replacement."""
        key = SeedBook(self.options.key).seed("der", term)
        rng = np.random.Generator(np.random.Philox(key=key, counter=number << 64))
        drawn = rng.integers(len(self.numbers), size=self.options.rows)
        return torch.from_numpy(drawn).to(self.numbers.device)

    @torch.no_grad()
    def _store(self, batch: Batch, number: int, knobs: Knobs | None) -> None:
        """Offer the rows of all ranks; answers are those before this step."""
        size = len(batch.inputs) * self.world
        new = torch.arange(number, number + size, device=batch.inputs.device)
        every = torch.cat([self.numbers, new])
        key = SeedBook(self.options.key).seed("der", "store")
        kept = mix_bits(mix_bits(every) + key).argsort(stable=True)[: self.options.capacity]
        wanted = kept >= len(self.numbers)
        if not wanted.any():
            return  # all ranks alike
        begins = torch.zeros_like(batch.inputs)
        for row, starts in enumerate(batch.starts or ()):
            begins[row, list(starts)] = 1
        rows = torch.stack([batch.inputs, batch.targets, begins], 1).int()
        answers = self._read(rows, knobs).float()
        best = answers.topk(min(self.options.top or LARGEST, answers.shape[-1]), dim=-1)
        pairs = (
            ("tokens", rows),
            ("ids", best.indices.int()),
            ("logits", best.values),
        )
        for name, mine in pairs:
            held, found = self.get_buffer(name), self.everyones(mine)
            held = held if len(held) else found[:0]
            setattr(self, name, torch.cat([held, found])[kept])
        self.numbers = every[kept]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """The store comes in any size."""
        for name in ("numbers", "tokens", "ids", "logits"):
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                held = self.get_buffer(name)
                setattr(self, name, torch.empty_like(saved, device=held.device))
        super()._load_from_state_dict(state_dict, prefix, *more)
