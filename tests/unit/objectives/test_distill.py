"""Self-distillation and dark experience replay against loops over tokens; ranks; reloading."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nl.config import ConfigError
from nl.core.batch import IGNORE, Batch
from nl.core.output import Output
from nl.nn.router import Router
from nl.objectives.der import Der, DerConfig
from nl.objectives.distill import DistillConfig
from nl.objectives.next_token import NextTokenConfig
from tests.laws.conftest import small, tokens

VOCAB = 6


class Bigram(nn.Module):
    """Logits of the next token by the last one."""

    def __init__(self) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=made))
        self.seen: list[Any] = []
        self.states: list[Any] = []

    def forward(
        self, inputs: Tensor, state: Any = None, knobs: Any = None, *, targets: Tensor,
        write: bool = True, starts: Any = None,
    ) -> Output:  # fmt: skip
        self.seen.append((inputs.shape[0], write, starts))
        self.states.append(state)
        return Output(self.table[inputs])

    def nll(
        self, inputs: Tensor, targets: Tensor, state: Any = None, knobs: Any = None, **_: Any
    ) -> tuple[Tensor, Output]:
        logits = self.table[inputs].flatten(0, 1)
        loss = nn.functional.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return loss.view(targets.shape), Output(torch.zeros_like(targets, dtype=torch.bool))


def batch(seed: int, phase: int = 0, rows: int = 4, **tags: Any) -> Batch:
    drawn = torch.randint(0, VOCAB, (rows, 6), generator=torch.Generator().manual_seed(seed))
    targets = drawn[:, 1:].clone()
    targets[0, 2] = IGNORE
    more = {"phase": phase, "row": 4 * seed, **tags}
    return Batch(drawn[:, :-1], targets, int((targets != IGNORE).sum()), more)


def thinned(data: Batch, rows: slice) -> Batch:
    """Some rows; those of one rank have fewer targets than those of the other."""
    targets = data.targets.clone()
    targets[1, :3] = IGNORE
    count = int((targets[rows] != IGNORE).sum())
    return Batch(data.inputs[rows], targets[rows], count, data.tags)


def moved(objective: Any) -> None:
    with torch.no_grad():
        objective.model.table.add_(torch.linspace(-1, 1, VOCAB)[:, None] * torch.arange(VOCAB))


def by_hand(old: Tensor, new: Tensor, data: Batch, rows: list[int], heat: float) -> float:
    total = 0.0
    for row in rows:
        for token, target in zip(data.inputs[row], data.targets[row], strict=True):
            if target != IGNORE:
                p, q = ((t[token].double() / heat).softmax(0) for t in (old, new))
                total += heat**2 * float((p * (p / q).log()).sum())
    return total


@pytest.mark.parametrize("on", ["all", "replayed"])
def test_the_teacher_is_the_model_at_the_end_of_the_phase_before(on: Any) -> None:
    objective = DistillConfig(strength=0.3, temperature=1.5, on=on).build(Bigram()).train()
    plain = NextTokenConfig().build(objective.model)
    first = objective(batch(0))
    assert first.loss.item() == plain(batch(0)).loss.item()
    moved(objective)
    teacher = objective.model.table.detach().clone()
    data = batch(1, phase=1, replayed=1)
    out = objective(data)
    assert out.loss.item() == pytest.approx(plain(data).loss.item()), "nothing has moved yet"
    moved(objective)
    out = objective(data)
    rows = [0, 1, 2, 3] if on == "all" else [3]
    wanted = by_hand(teacher, objective.model.table.detach(), data, rows, 1.5)
    assert wanted > 0.5
    assert out.metrics["distill/kl_sum"].item() == pytest.approx(wanted, rel=1e-5)
    assert out.loss.item() == pytest.approx(plain(data).loss.item() + 0.3 * wanted, rel=1e-5)
    assert torch.equal(out.rows, plain(data).rows)
    out.loss.backward()
    assert objective.model.table.grad.abs().sum() > 0
    objective.eval()
    assert objective(data).loss.item() == pytest.approx(plain(data).loss.item())
    assert torch.equal(objective.teacher.get_buffer("table"), teacher)


def test_what_is_asked_besides_is_read_from_a_fresh_state() -> None:
    """As documented: a State that is carried is kept for the loss of the batch alone."""
    carried = torch.ones(4, 1)
    for config in (DistillConfig(), DerConfig(capacity=8, rows=2)):
        objective = config.build(Bigram()).train()
        objective.carry = True
        for step in range(2):
            objective(batch(step, phase=step), carried)
        assert len(objective.model.states) >= 2
        assert all(state is None for state in objective.model.states)


def test_a_phase_without_replayed_rows_asks_no_teacher() -> None:
    objective = DistillConfig(on="replayed").build(Bigram()).train()
    objective(batch(0))
    objective.model.seen.clear()
    out = objective(batch(1, phase=1, replayed=0))
    assert objective.model.seen == []
    assert "distill/kl_sum" not in out.metrics


def test_a_rank_asks_about_its_own_replayed_rows() -> None:
    objective = DistillConfig(on="replayed").build(Bigram()).train()
    data = batch(0, replayed=3)
    held = []
    for rank in range(2):
        objective.spread(lambda values: values, rank, 2)
        held.append(objective._held(data).tolist())
    assert held == [[False] * 4, [False, True, True, True]]


def test_ranks_tell_the_same_numbers_whoever_has_replayed_rows() -> None:
    objective = DistillConfig(on="replayed").build(Bigram()).train()
    objective(batch(0))
    told = []
    for rank in range(2):
        objective.spread(lambda values: values, rank, 2)
        told.append(objective(batch(1, phase=1, replayed=3)).metrics.keys())
    assert told[0] == told[1] >= {"distill/kl_sum"}


def test_a_copy_has_the_same_teacher() -> None:
    objective = DistillConfig().build(Bigram()).train()
    objective(batch(0))
    moved(objective)
    objective(batch(1, phase=1))
    other = DistillConfig().build(Bigram()).train()
    other.load_state_dict(objective.state_dict())
    moved(objective)
    moved(other)
    for one in (objective, other):
        one.found = one(batch(2, phase=1)).loss.item()
    assert objective.found == other.found


def der(**options: Any) -> Der:
    return DerConfig(**{"capacity": 6, "rows": 2, "top": 3, **options}).build(Bigram()).train()


def test_dark_replay_by_hand() -> None:
    objective = der(alpha=0.5, beta=0.25)
    plain = NextTokenConfig().build(objective.model)
    assert objective(batch(0)).loss.item() == plain(batch(0)).loss.item()
    old = objective.model.table.detach().clone()
    moved(objective)
    now = objective.model.table.detach().clone()
    data = batch(1)
    stored, numbers = objective.tokens.clone(), objective.numbers.tolist()
    assert numbers == sorted(numbers, key=numbers.index)
    assert set(numbers) == {0, 1, 2, 3}
    drawn = [objective._drawn(4, term).tolist() for term in (0, 1)]
    out = objective(data)
    squares, nats = [], []
    for place in drawn[0]:
        for token, target in zip(stored[place, 0], stored[place, 1], strict=True):
            if target != IGNORE:
                best = old[token].topk(3)
                squares += (now[token][best.indices] - best.values).square().tolist()
    for place in drawn[1]:
        for token, target in zip(stored[place, 0], stored[place, 1], strict=True):
            if target != IGNORE:
                nats.append(float(-now[token].log_softmax(0)[target]))
    dark, again = sum(squares) / len(squares), sum(nats) / len(nats)
    assert out.metrics["der/mse"].item() == pytest.approx(dark, rel=1e-5)
    assert out.metrics["der/stored_nats"].item() == pytest.approx(again, rel=1e-5)
    wanted = plain(data).loss.item() + data.weight * (0.5 * dark + 0.25 * again)
    assert out.loss.item() == pytest.approx(wanted, rel=1e-5)
    out.loss.backward()
    assert objective.model.table.grad.abs().sum() > 0


def test_the_store_is_a_uniform_sample_with_the_answers_of_then() -> None:
    objective = der(capacity=40, top=0)
    for step in range(200):
        if step == 100:
            moved(objective)
        with torch.no_grad():
            objective(batch(step))
    assert objective.numbers.shape == (40,)
    share = (objective.numbers < 400).double().mean()
    assert 0.3 < share < 0.7
    assert objective.logits.shape == (40, 5, VOCAB)
    tables = [Bigram().table.detach(), objective.model.table.detach()]
    for number, row, ids, logits in zip(
        objective.numbers.tolist(), objective.tokens, objective.ids, objective.logits, strict=True
    ):
        wanted = batch(number // 4)
        assert torch.equal(row[0].long(), wanted.inputs[number % 4])
        assert torch.equal(row[1].long(), wanted.targets[number % 4])
        answers = tables[number >= 400][row[0].long()]
        assert torch.allclose(answers.gather(1, ids.long()), logits)


def test_a_copy_of_the_store_continues_as_the_original() -> None:
    objective = der()
    for step in range(3):
        objective(batch(step))
    other = der()
    other(batch(9))
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    for step in range(3, 6):
        first, second = (one(batch(step)).loss.item() for one in (objective, other))
        assert first == second


def test_ranks_store_what_one_process_stores() -> None:
    from tests.unit.objectives.test_ewc import Meeting

    alone = der(rows=2)
    data = [thinned(batch(step), slice(0, 4)) for step in range(4)]
    for objective in (alone, *(ranks := [der(rows=2) for _ in range(2)])):
        objective(data[0])
        moved(objective)
    wanted = [alone(one) for one in data]
    meeting, found = Meeting(2), [[], []]  # type: ignore[var-annotated]

    def work(rank: int) -> None:
        ranks[rank].spread(meeting.reducer(rank), rank, 2)
        for one in data:
            found[rank].append(ranks[rank](thinned(one, slice(2 * rank, 2 * rank + 2))))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in ranks:
        state = one.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in alone.state_dict().items())
    for whole, *parts in zip(wanted, *found, strict=True):
        assert sum(out.loss.item() for out in parts) == pytest.approx(whole.loss.item(), rel=1e-5)
        for key in ("der/mse", "der/stored_nats"):
            mean = sum(out.metrics[key].item() for out in parts) / 2
            assert mean == pytest.approx(whole.metrics[key].item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DistillConfig, {"strength": -1}, "strength"),
        (DistillConfig, {"temperature": 0}, "temperature"),
        (DerConfig, {"rows": 0}, "rows: 0"),
        (DerConfig, {"capacity": 0}, "capacity: 0"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**changes)
    objective = der(rows=3)
    objective.spread(lambda values: values, 0, 2)
    objective(batch(0))
    with pytest.raises(ConfigError, match=r"objective\.rows: 3; must be a multiple of the 2"):
        objective(batch(1))


def test_the_teacher_keeps_its_routers_biases() -> None:
    """They move without a gradient: the teacher answers as before, whatever the model's do."""
    experts = {"form": "low_rank", "count": 4, "rank": 3, "balance": 0.2}
    model = small("transformer", experts=experts)
    objective = DistillConfig().build(model).train()
    x = tokens(2, 16)
    data = [Batch(x[:, :-1], x[:, 1:], 30, {"phase": phase, "row": 0}) for phase in (0, 1)]
    for one in data:
        objective(one)
    every = torch.ones(2, dtype=torch.bool)
    assert objective.divergence(data[1], every, None).item() == pytest.approx(0, abs=1e-5)
    biases = [part.bias for part in model.modules() if isinstance(part, Router)]
    assert biases
    for bias in biases:
        bias += torch.tensor([3.0, -3.0, 2.0, 0.0])
    assert objective.divergence(data[1], every, None).item() > 1e-3
