"""EWC: Fisher diagonal, anchor and penalty against numbers worked out by hand; ranks; reloading."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nl.assembly
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.core.batch import IGNORE, Batch
from nl.core.output import Output
from nl.core.protocols import Capabilities
from nl.dist.single import Single
from nl.fit import check
from nl.nn.router import Router
from nl.objectives.ewc import Ewc, EwcConfig
from tests.laws.conftest import small, tokens


class Squares(nn.Module):
    """nll of token k is w_k^2 / 2: its gradient by w_k is w_k."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        self.idle = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.seen: list[Any] = []

    def nll(
        self,
        inputs: Tensor,
        targets: Tensor,
        state: Any = None,
        knobs: Any = None,
        *,
        write: bool = True,
        keep: bool = True,
        starts: Any = None,
    ) -> tuple[Tensor, Output]:
        self.seen.append((inputs.shape[0], starts, write, keep))
        scored = targets != IGNORE
        loss = torch.where(scored, self.inner.w[inputs].square() / 2, 0.0)
        return loss, Output(torch.zeros_like(targets, dtype=torch.bool), None)


def batch(rows: list[list[int]], phase: int, **more: Any) -> Batch:
    tokens = torch.tensor(rows)
    return Batch(tokens, tokens.clone(), tokens.numel(), {"phase": phase}, **more)


def made(**options: Any) -> tuple[Ewc, nn.Parameter]:
    objective = EwcConfig(**options).build(Squares())
    return objective.train(), objective.model.inner.w


def test_two_phases_by_hand() -> None:
    objective, w = made(strength=10.0, rows=2)
    first = objective(batch([[2, 2], [0, 1]], 0))  # forgotten: only the last two rows are kept
    assert first.loss.item() == 9 / 2 * 2 + 1 / 2 + 2
    assert "ewc/penalty" not in first.metrics
    objective(batch([[0, 0], [0, 1]], 0))
    with torch.no_grad():
        w.copy_(torch.tensor([1.5, 1.0, 3.0]))
    out = objective(batch([[2, 2]], 1))
    # At w = (1.5, 1, 3), rows (0, 0) and (0, 1): gradients (3, 0, 0) and (1.5, 1, 0), 4 tokens.
    wanted = torch.tensor([(9 + 2.25) / 4, 1 / 4, 0.0])
    fisher = objective.fisher.get_buffer("inner/w")
    assert torch.allclose(fisher, wanted.double(), atol=1e-12)
    assert objective.anchor.get_buffer("inner/w").tolist() == [1.5, 1.0, 3.0]
    assert out.loss.item() == 9.0  # nothing has moved yet
    with torch.no_grad():
        w.copy_(torch.tensor([2.5, 3.0, 9.0]))
    out = objective(batch([[2, 0]], 1))
    penalty = 10 / 2 * (11.25 / 4 * 1 + 1 / 4 * 4)
    assert out.metrics["ewc/penalty"].item() == pytest.approx(penalty)
    assert out.metrics["ewc/nats_sum"].item() == pytest.approx(81 / 2 + 6.25 / 2)
    assert out.loss.item() == pytest.approx(81 / 2 + 6.25 / 2 + 2 * penalty)  # two targets
    out.loss.backward()
    assert w.grad is not None
    # d/dw: nll gives (2.5, 0, 9), the penalty 2 * 10 F (w - a).
    by_hand = [2.5 + 20 * 11.25 / 4, 20 / 4 * 2, 9.0]
    assert w.grad.tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", ["titan_lmm", "hope_hybrid", "gated_delta"])
def test_gradients_of_rows_are_taken_outside_autocast(kind: str) -> None:
    diagonals = []
    for half in (False, True):
        objective = EwcConfig(rows=2).build(small(kind)).train()
        for phase in range(2):
            rows = tokens(2, 13, phase).tolist()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                objective(batch(rows, phase))
        diagonals.append(torch.cat([b.flatten() for b in objective.fisher.buffers()]))
    full, half = diagonals
    assert full.any()
    assert (half - full).norm() < 0.2 * full.norm()


def test_a_third_phase_adds_to_the_decayed_diagonal() -> None:
    objective, _ = made(decay=0.5, rows=1)
    objective(batch([[0, 0]], 0))
    objective(batch([[1, 1]], 1))
    objective(batch([[2, 2]], 2))
    # Rows (0, 0) and (1, 1) at w = (1, 2, 3): (2 w)^2 / 2 tokens.
    assert objective.fisher.get_buffer("inner/w").tolist() == [0.5 * 2.0, 8.0, 0.0]


def test_outside_training_it_is_the_loss_alone() -> None:
    objective, w = made(strength=5.0)
    objective(batch([[0, 1]], 0))
    objective(batch([[0, 1]], 1))
    with torch.no_grad():
        w.add_(1.0)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    objective.eval()
    out = objective(Batch(torch.tensor([[0]]), torch.tensor([[0]]), 1, {}))
    assert out.loss.item() == 2.0
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())


def test_rows_are_measured_with_their_documents_and_unscored_targets_count_nothing() -> None:
    objective, _ = made(write=False)
    tokens = torch.tensor([[0, 1, 1], [0, 0, 0]])
    targets = torch.tensor([[0, IGNORE, 1], [0, 0, 0]])
    objective(Batch(tokens, targets, 5, {"phase": 0}, ((0, 2), ())))
    objective.model.seen.clear()
    objective(batch([[2]], 1))
    assert objective.model.seen[:2] == [(1, ((0, 2),), False, False), (1, None, False, False)]
    assert objective.fisher.get_buffer("inner/w").tolist() == pytest.approx([(1 + 9) / 5, 4 / 5, 0])


def test_a_frozen_parameter_is_not_held_back() -> None:
    objective, _ = made()
    objective.model.idle.requires_grad_(False)
    objective(batch([[0]], 0))
    objective(batch([[0]], 1))
    assert objective.anchor.get_buffer("idle").tolist() == [0.0]
    assert objective.anchor.get_buffer("inner/w").tolist() == [1.0, 2.0, 3.0]


def test_a_copy_continues_as_the_original() -> None:
    objective, _ = made(strength=3.0, rows=3)
    objective(batch([[0, 1], [1, 1]], 0))
    objective(batch([[0, 2], [1, 2]], 0))
    other, _ = made(strength=3.0, rows=3)
    other(batch([[2, 2]], 0))  # its own rows are replaced
    other.load_state_dict(objective.state_dict())
    for phase in (0, 1, 2):
        for one in (objective, other):
            one(batch([[phase, 0]], phase))
        state = other.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in objective.state_dict().items())


class Meeting:
    """A sum over threads that play ranks."""

    def __init__(self, world: int) -> None:
        self.barrier, self.values = threading.Barrier(world, timeout=300), [Tensor()] * world

    def reducer(self, rank: int) -> Any:
        def reduce(values: Tensor) -> Tensor:
            self.values[rank] = values.clone()
            self.barrier.wait()
            total = torch.stack(self.values).sum(0).to(values.dtype)
            self.barrier.wait()
            return values.copy_(total)

        return reduce


def test_ranks_find_what_one_process_finds() -> None:
    rows = [[[0, 1], [1, 2], [2, 2], [0, 0]], [[1, 1], [2, 0], [0, 2], [1, 0]]]
    alone, _ = made(rows=5)
    for one in rows:
        alone(batch(one, 0))
    alone(batch(rows[0], 1))
    meeting, ranks = Meeting(2), [made(rows=5)[0] for _ in range(2)]

    def work(rank: int) -> None:
        objective = ranks[rank]
        objective.spread(meeting.reducer(rank), rank, 2)
        for one in rows:
            objective(batch(one[2 * rank : 2 * rank + 2], 0))
        objective(batch(rows[0][2 * rank : 2 * rank + 2], 1))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for objective in ranks:
        state = objective.state_dict()
        assert all(torch.allclose(v, state[k]) for k, v in alone.state_dict().items())


def test_strategies_that_cut_parameters_refuse_it() -> None:
    place = ["stream=phases", "stream.path=x", "stream.phases=[{domain: a, steps: 1}]"]
    run = run_config(compose("pilot_smoke", [*place, "objective=ewc"]))
    strategy = Single.start("cpu")
    strategy.capabilities = Capabilities(
        inner_autograd=True, grad_through_write=True, late_changes=False
    )
    with pytest.raises(ConfigError, match="ewc needs late_changes, which single cannot do; launch"):
        nl.assembly.check(run, strategy)


@pytest.mark.parametrize("objective", ["objective=ewc", "objective=distill objective.on=replayed"])
def test_reads_of_some_ranks_alone_are_refused_where_all_must_write(objective: str) -> None:
    place = ["experiment=probes/smoke/cl_remap", "evals={}", *objective.split()]
    place += [
        "model.block=hope_attention",
        "model.cms.scope=batch",
        "model.cms.write_gradient=stop",
    ]
    run = run_config(compose("pilot_smoke", place))
    strategy = Single.start("cpu")
    check(run, strategy)
    strategy.world = 2
    with pytest.raises(ConfigError, match=r"each other .* \(here 2 ranks\): set model.cms"):
        check(run, strategy)


@pytest.mark.parametrize("field", ["strength", "decay", "rows"])
def test_refusals(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}: -1"):
        EwcConfig(**{field: -1})


def test_measuring_counts_no_choices_of_routers() -> None:
    experts = {"form": "low_rank", "count": 4, "rank": 3, "balance": 0.2}
    model = small("transformer", experts=experts)
    objective = EwcConfig(rows=4).build(model).train()
    routers = [part for part in model.modules() if isinstance(part, Router)]
    loads = []
    for phase in range(2):
        objective(batch(tokens(2, 9).tolist(), phase))
        loads.append([float(one.load.sum()) for one in routers if one.load is not None])
        for one in routers:
            one.rebalance(None)
    assert loads[0] == loads[1]
    assert loads[0][0] > 0
    assert model.training
