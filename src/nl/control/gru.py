"""The learned controller: a GRU policy that is trained while the model is. Floor 6.

Advantage actor-critic over turns (Mnih et al. 2016, arXiv:1602.01783), every turn credited with the
return that follows it. Between turn t and t + 1 the reward is

    r_t = -(current_{t+1} - current_t) - memory (old_{t+1} - old_t) - cost spent_t,

losses in nats per token on held-out rows of the current task and of earlier ones. Differences of
losses telescope: over a stretch of turns the policy is paid for where the losses end, and retention
is part of it. A difference across the end of a task counts as 0: it compares different text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nl.config import ConfigError, register, require
from nl.config.groups import ControllerConfig
from nl.control.packed import pack, unpack
from nl.control.policy import SIGNALS, Action, Normalizer, Policy, features
from nl.control.ranges import KnobRanges, require_turned
from nl.core.output import Knobs

CURRENT, MEMORY, TASK = "signal/loss", "signal/memory_loss", "signal/task"


@dataclass
class Turn:
    """What a turn was decided on, what it did and what came of it."""

    inputs: Tensor
    action: Action
    reward: float = 0.0


class GruController:
    """Acts every ``every`` steps and learns every ``rollout`` turns.

    Everything follows from the seed, the observations and the turn, so ranks that observe the same
    decide the same, and a continued run decides as the uninterrupted one.
    """

    def __init__(self, config: GruControllerConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(config.ranges, config.hidden)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.lr)
        self.normalizer = Normalizer(self.policy.inputs)
        self.hidden = self.begin = torch.zeros(1, config.hidden)
        self.turns: list[Turn] = []
        self.seen: dict[str, float] = {}
        self.last: Action | None = None
        self.updates, self.step = 0, -1
        self.reward: float | None = None

    def act(self, observations: Mapping[str, float], step: int) -> Knobs:
        """Knobs for 0-based ``step``; learns where a rollout is full.

        Raises:
            ConfigError: something was observed, but no losses on held-out rows.
        """
        if step % self.config.every or not observations or step == self.step:
            return self._knobs()  # a step that is tried again is no new turn
        if CURRENT not in observations:
            raise ConfigError(
                "controller: gru learns from losses on held-out rows, which are not measured; set "
                "signals.every."
            )
        self.step = step
        if self.turns:
            self.reward = self.turns[-1].reward = self._reward(observations)
        told = {k: v for k, v in observations.items() if k not in self.config.unseen}
        inputs = self.normalizer(features(told, self._shares()))
        if len(self.turns) == self.config.rollout:
            self._learn(inputs)
        if not self.turns:
            self.begin = self.hidden
        with torch.no_grad():
            self.hidden, heads = self.policy(inputs, self.hidden)
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=step << 64))
            self.last = self.policy.draw(heads, rng)
        self.turns.append(Turn(inputs, self.last))
        self.seen = dict(observations)
        return self._knobs()

    def frozen(self) -> Knobs:
        """The most likely knobs where the policy stands now; nothing is drawn or learned."""
        if self.last is None:
            return Knobs()
        with torch.no_grad():
            heads = self.policy.heads(self.hidden)
            return self.config.ranges.knobs(self.policy.greedy(heads).shares)

    def told(self) -> dict[str, float]:
        """``reward``: of the turn before this one."""
        return {} if self.reward is None else {"reward": self.reward}

    def _shares(self) -> dict[str, float]:
        return {} if self.last is None else self.last.shares

    def _knobs(self) -> Knobs:
        return Knobs() if self.last is None else self.config.ranges.knobs(self.last.shares)

    def _reward(self, now: Mapping[str, float]) -> float:
        before, shares = self.seen, self.turns[-1].action.shares
        spent = sum(shares.get(name, 0.0) for name in ("experts_k", "replay"))
        reward = -self.config.cost * spent
        if now.get(TASK) != before.get(TASK):
            return reward
        reward -= now[CURRENT] - before[CURRENT]
        if MEMORY in now and MEMORY in before:
            reward -= self.config.memory * (now[MEMORY] - before[MEMORY])
        return reward

    def _learn(self, following: Tensor) -> None:
        """One update over the rollout; the hidden state is read again with the new weights."""
        config = self.config
        rewards = [turn.reward for turn in self.turns]
        hidden, heads = self.begin, []
        for turn in self.turns:
            hidden, found = self.policy(turn.inputs, hidden)
            heads.append(found)
        with torch.no_grad():
            value = float(self.policy(following, hidden)[1].value)
        returns = torch.tensor(discounted(rewards, value, config.gamma))
        values = torch.stack([found.value for found in heads])
        actions = [turn.action for turn in self.turns]
        pairs = list(zip(heads, actions, strict=True))
        chosen = torch.stack([self.policy.log_prob(found, action) for found, action in pairs])
        entropy = torch.stack([self.policy.entropy(found) for found in heads]).mean()
        loss = actor_critic_loss(chosen, values, returns, config.value)
        loss = loss - config.entropy * entropy
        weights = list(self.policy.parameters())
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            hidden = self.begin
            for turn in self.turns:
                hidden, _ = self.policy(turn.inputs, hidden)
        self.hidden, self.updates = hidden, self.updates + 1
        self.turns.clear()

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments, the rollout so far and what was seen, as JSON."""
        moments = self.optimizer.state_dict()["state"]
        return {
            "policy": pack(self.policy.state_dict()),
            "moments": {str(i): pack(found) for i, found in moments.items()},
            "normalizer": self.normalizer.state_dict(),
            "hidden": pack({"now": self.hidden, "begin": self.begin}),
            "turns": [
                {"inputs": turn.inputs.tolist(), "shares": turn.action.shares,
                 "reward": turn.reward} for turn in self.turns
            ],
            "seen": self.seen,
            "last": None if self.last is None else self.last.shares,
            "updates": self.updates,
            "step": self.step,
            "reward": self.reward,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.policy.load_state_dict(unpack(state["policy"]))
        whole = self.optimizer.state_dict()
        whole["state"] = {int(i): unpack(found) for i, found in state["moments"].items()}
        self.optimizer.load_state_dict(whole)
        self.normalizer.load_state_dict(state["normalizer"])
        hidden = unpack(state["hidden"])
        self.hidden, self.begin = hidden["now"], hidden["begin"]
        self.turns = [
            Turn(torch.tensor(turn["inputs"]), Action(turn["shares"]), float(turn["reward"]))
            for turn in state["turns"]
        ]
        self.seen = dict(state["seen"])
        self.updates, self.step = int(state["updates"]), int(state["step"])
        self.last = None if state["last"] is None else Action(state["last"])
        self.reward = state.get("reward")


def discounted(rewards: Sequence[float], following: float, gamma: float) -> list[float]:
    """Return of every turn: its reward and what follows, ``following`` after the last."""
    found, after = [], following
    for reward in reversed(rewards):
        after = reward + gamma * after
        found.append(after)
    return found[::-1]


def actor_critic_loss(
    chosen: Tensor, values: Tensor, returns: Tensor, value_weight: float
) -> Tensor:
    """-mean(log pi(a_t) A_t) + value_weight mean((V_t - R_t)^2), A_t = R_t - V_t without gradient.

    Args:
        chosen: (T,) log-probabilities of the actions that were taken.
        values: (T,) V of the states they were taken in.
        returns: (T,).
        value_weight: of the critic.

    Raises:
        ValueError: shapes differ, which would mix the turns' credit.
    """
    if not chosen.shape == values.shape == returns.shape or chosen.dim() != 1:
        raise ValueError(
            f"shapes {chosen.shape}, {values.shape}, {returns.shape}; all must be (T,)"
        )
    advantages = (returns - values).detach()
    return -(chosen * advantages).mean() + value_weight * (values - returns).square().mean()


@register("controller", "gru")
@dataclass(frozen=True, kw_only=True)
class GruControllerConfig(ControllerConfig):
    """Learns online which knobs keep the losses on current and earlier tasks falling."""

    ranges: KnobRanges = field(default_factory=KnobRanges)
    """What is turned."""
    every: int = 10
    """Steps between turns; a multiple of signals.every."""
    unseen: tuple[str, ...] = ()
    """Signals that the policy is not told (ablations)."""
    rollout: int = 16
    """Turns between updates."""
    hidden: int = 64
    """Width of the GRU."""
    lr: float = 1e-3
    """Of the policy's Adam."""
    gamma: float = 0.9
    """Discount per turn."""
    memory: float = 1.0
    """What a rise of the loss on earlier tasks costs, against one of the current task."""
    cost: float = 0.01
    """Nats per turn that the largest experts_k costs, and again the largest replay."""
    entropy: float = 0.01
    """Weight of the policy's entropy."""
    value: float = 0.5
    """Weight of the critic's squared error."""

    def __post_init__(self) -> None:
        for name in ("every", "rollout", "hidden"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        for name in ("memory", "cost", "entropy", "value"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        known = all(name in SIGNALS for name in self.unseen)
        require(known, f"unseen: {list(self.unseen)}; must be from {', '.join(SIGNALS)}.")
        require(self.lr > 0, f"lr: {self.lr}; must be > 0.")
        require(0 <= self.gamma <= 1, f"gamma: {self.gamma}; must be in [0, 1].")

    def turned(self) -> tuple[str, ...]:
        """Names of the knobs that are set."""
        return self.ranges.turned()

    def reads_signals(self) -> bool:
        """Whether ``signals`` have to be measured."""
        return True

    def build(self, *, seed: int) -> GruController:
        """The controller.

        Raises:
            ConfigError: no knob has a range.
        """
        require_turned(self.ranges)
        return GruController(self, seed)
