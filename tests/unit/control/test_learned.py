"""controller=gru: credit per turn, a bandit that it solves, and exact resumption."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.control.gru import GruController, GruControllerConfig, actor_critic_loss, discounted
from nl.control.packed import pack, unpack
from nl.control.policy import Normalizer
from nl.control.ranges import KnobRanges
from nl.core.output import Knobs

BOTH = KnobRanges(experts_k=(1, 2), replay=(0.0, 0.5))


def config(**changes: Any) -> GruControllerConfig:
    plain: dict[str, Any] = {"ranges": BOTH, "every": 1, "cost": 0.0}
    return GruControllerConfig(**{**plain, **changes})


class Bandit:
    """The loss falls by one after every turn with the good knobs."""

    def __init__(self, good: Any) -> None:
        self.good, self.loss = good, 0.0

    def observe(self, knobs: Knobs | None) -> dict[str, float]:
        if knobs is not None:
            self.loss -= self.good(knobs)
        return {"signal/loss": self.loss, "signal/task": 0.0}


def play(controller: GruController, bandit: Bandit, turns: int, first: int = 0) -> list[Knobs]:
    knobs, found = None, []
    for step in range(first, first + turns):
        knobs = controller.act(bandit.observe(knobs), step)
        found.append(knobs)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_two_armed_bandit_is_solved(seed: int) -> None:
    controller = config(ranges=KnobRanges(experts_k=(1, 2)), gamma=0.0, lr=3e-3).build(seed=seed)
    bandit = Bandit(lambda knobs: float(knobs.experts_k == 2))
    first = play(controller, bandit, 64)
    play(controller, bandit, 1400, 64)
    last = play(controller, bandit, 400, 1464)
    good = Counter(knobs.experts_k for knobs in last)[2] / 400
    assert good >= 0.95
    assert 0.2 < Counter(knobs.experts_k for knobs in first)[2] / 64 < 0.9, "it began undecided"
    assert controller.frozen().experts_k == 2


def test_a_share_moves_to_where_it_pays() -> None:
    controller = config(ranges=KnobRanges(replay=(0.0, 0.5)), gamma=0.0, lr=3e-3).build(seed=0)
    play(controller, Bandit(lambda knobs: 4 * knobs.replay), 1500)
    assert controller.frozen().replay > 0.4


def test_every_turn_is_credited_with_its_own_advantage() -> None:
    chosen = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    values = torch.tensor([0.5, 0.0, 1.0], requires_grad=True)
    returns = torch.tensor([1.5, -1.0, 1.0])
    loss = actor_critic_loss(chosen, values, returns, 0.5)
    loss.backward()
    assert chosen.grad is not None
    assert values.grad is not None
    assert torch.allclose(chosen.grad, -torch.tensor([1.0, -1.0, 0.0]) / 3)
    assert torch.allclose(values.grad, (values - returns).detach() / 3)
    with pytest.raises(ValueError, match=r"must be \(T,\)"):
        actor_critic_loss(chosen[:, None], values, returns, 0.5)


def test_returns_are_discounted_from_the_state_that_follows() -> None:
    assert discounted([1.0, 0.0, 2.0], 8.0, 0.5) == [1 + 0.5 * (0.5 * 6), 0.5 * 6, 2 + 0.5 * 8]


def test_reward_counts_retention_and_cost_and_not_the_change_of_task() -> None:
    controller = config(memory=2.0, cost=0.1).build(seed=0)
    controller.act({"signal/loss": 3.0, "signal/memory_loss": 5.0, "signal/task": 1.0}, 0)
    shares = controller.turns[0].action.shares
    spent = shares["experts_k"] + shares["replay"]
    same = {"signal/loss": 2.5, "signal/memory_loss": 5.5, "signal/task": 1.0}
    assert controller._reward(same) == pytest.approx(0.5 - 2 * 0.5 - 0.1 * spent)
    other = {"signal/loss": 7.0, "signal/memory_loss": 1.0, "signal/task": 2.0}
    assert controller._reward(other) == pytest.approx(-0.1 * spent)


def test_a_continued_controller_acts_as_the_uninterrupted_one() -> None:
    def losses(step: int) -> dict[str, float]:
        wave = (step * 37 % 11) / 5
        return {"signal/loss": 4 - step / 50 + wave, "signal/memory_loss": 3 + wave,
                "signal/task": float(step // 30), "signal/delta": wave / 9}  # fmt: skip

    whole = config(rollout=4).build(seed=7)
    wanted = [whole.act(losses(step), step) for step in range(60)]
    first = config(rollout=4).build(seed=7)
    for step in range(22):
        first.act(losses(step), step)
    again = config(rollout=4).build(seed=7)
    again.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert [again.act(losses(step), step) for step in range(22, 60)] == wanted[22:]
    assert again.updates == whole.updates == 14
    assert again.frozen() == whole.frozen()
    assert len({knobs.replay for knobs in wanted}) == 60


def test_building_and_acting_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    play(config(rollout=4).build(seed=0), Bandit(lambda _: 1.0), 9)
    assert torch.equal(torch.rand(4), wanted)


def test_knobs_change_every_so_many_steps_and_a_repeated_step_is_no_turn() -> None:
    controller = config(every=5).build(seed=0)
    assert controller.act({}, 0) == Knobs()
    assert controller.frozen() == Knobs()
    found = [controller.act({"signal/loss": 1.0}, step) for step in range(5, 15)]
    assert len(set(found)) == 2
    assert found[0] == found[4] != found[5] == found[9]
    assert controller.act({"signal/loss": 1.0}, 10) == found[9]
    assert len(controller.turns) == 2


def test_a_policy_is_not_told_what_it_may_not_see() -> None:
    told, blind = config().build(seed=0), config(unseen=("signal/delta",)).build(seed=0)
    for step, delta in enumerate((0.0, 2.0)):
        for one in (told, blind):
            one.act({"signal/loss": 1.0, "signal/delta": delta}, step)
    assert told.turns[1].inputs[2] > 0
    assert blind.turns[1].inputs[2] == 0
    assert torch.equal(told.turns[1].inputs[[0, 1, 3, 4]], blind.turns[1].inputs[[0, 1, 3, 4]])


def test_inputs_are_fixed_when_they_are_seen() -> None:
    normal = Normalizer(2)
    first = normal([1.0, 100.0])
    second = normal([3.0, 100.0])
    assert first.tolist() == [0.0, 0.0]
    assert second[0].item() == pytest.approx(1 / 2**0.5, rel=1e-3)
    third = normal([1e9, 100.0])
    assert third.abs().max() <= 5
    assert first.tolist() == [0.0, 0.0]


def test_tensors_survive_json() -> None:
    given = {"a": torch.randn(3, 2), "b": torch.tensor(4.0), "c": torch.arange(3)}
    back = unpack(json.loads(json.dumps(pack(given))))
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())
    assert [back[name].dtype for name in given] == [t.dtype for t in given.values()]


def test_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"signals\.every"):
        config().build(seed=0).act({"loss": 3.0}, 4)
    with pytest.raises(ConfigError, match="experts_k, router_noise"):
        GruControllerConfig().build(seed=0)
    with pytest.raises(ConfigError, match=r"unseen.*must be from signal/loss"):
        config(unseen=("signal/kl",))
    with pytest.raises(ConfigError, match="gamma"):
        config(gamma=1.5)
