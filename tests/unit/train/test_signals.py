"""Signals around a step: numbers worked out by hand, the rows they are measured on, the audit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nl.config import ConfigError
from nl.config.run import SignalsConfig
from nl.core.batch import IGNORE, Batch
from nl.core.output import Output
from nl.data.held_rows import HeldRows
from nl.data.tasks import TaskStreamConfig
from nl.train.signals import Signals, divergence
from nl.train.state import TrainState


class Table(nn.Module):
    """Logits of the next token by the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, inputs: Any, *, targets: Any, starts: Any = None) -> Output:
        assert targets.shape == inputs.shape
        return Output(self.logits[inputs])


class Alone:
    """The little of a strategy that signals use."""

    device = torch.device("cpu")

    def __init__(self, model: nn.Module) -> None:
        self.objective = SimpleNamespace(model=model)

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        with torch.no_grad():
            yield self.objective

    def broadcast(self, value: Any) -> Any:
        return value


NOW = Batch(torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([[1, 2, 3], [4, 0, IGNORE]]), 5)
OLD = Batch(torch.tensor([[2, 2]]), torch.tensor([[2, 4]]), 2)


def measure(steps: int = 1, **changes: Any) -> tuple[Table, list[dict[str, float]], TrainState]:
    model, state = Table(), TrainState()
    signals = Signals(
        SignalsConfig(every=1, **changes),
        Alone(model),
        lambda _: (NOW, OLD),  # type: ignore[arg-type]
    )
    found = []
    for step in range(1, steps + 1):
        signals.before(step, {"phase": 2})
        with torch.no_grad():
            model.logits[1, 2] += 0.3
        found.append(signals.after(state, 3.0 - step))
    return model, found, state


def test_every_number_is_that_of_a_loop_over_tokens() -> None:
    before = Table().logits.detach().double().log_softmax(1)
    model, (found,), _ = measure()
    after = model.logits.detach().double().log_softmax(1)
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
    old = torch.tensor([-before[a, b] for a, b in pairs])
    new = torch.tensor([-after[a, b] for a, b in pairs])
    kl = sum(float((after[a].exp() * (after[a] - before[a])).sum()) for a, _ in pairs) / 5
    reverse = sum(float((before[a].exp() * (before[a] - after[a])).sum()) for a, _ in pairs) / 5
    delta, sigma = float((old - new).mean()), float(old.std())
    wanted = {
        "loss": float(new.mean()), "delta": delta, "sigma": sigma, "kl": kl, "kl_reverse": reverse,
        "fisher_rao": math.sqrt(2 * kl), "task": 2.0, "memory_delta": 0.0, "ema_loss": 2.0,
        "memory_loss": float(-(after[2, 2] + after[2, 4]) / 2),
        "eta": delta / (1.001 * sigma * math.sqrt(2 * kl)),
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[f"signal/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert found["perf/signal_seconds"] > 0
    assert delta > 0


def test_averages_and_the_audit_of_the_bound_go_on_in_the_state() -> None:
    _, found, state = measure(3, ema=0.5)
    emas = [row["signal/ema_loss"] for row in found]
    assert emas == [2.0, 1.5, 0.75]
    assert state.signals["measured"] == 3
    above = [row["signal/eta"] > 1 for row in found]
    assert found[-1]["signal/eta_above_1"] == pytest.approx(sum(above) / 3)
    assert TrainState.from_dict(state.as_dict(), None).signals == state.signals


def test_only_steps_that_are_due_are_measured() -> None:
    model = Table()
    signals = Signals(
        SignalsConfig(every=3),
        Alone(model),
        lambda _: (NOW, None),  # type: ignore[arg-type]
    )
    state, found = TrainState(), []
    for step in range(1, 7):
        signals.before(step, {})
        found.append(bool(signals.after(state, 1.0)))
    assert found == [False, False, True, False, False, True]
    signals.before(9, {})
    row = signals.after(state, 1.0)
    assert "signal/memory_loss" not in row
    assert (row["signal/delta"], row["signal/eta"]) == (0.0, 0.0)


def test_divergence_of_one_distribution_from_itself_is_none() -> None:
    p = torch.randn(4, 7).log_softmax(1)
    q = torch.randn(4, 7).log_softmax(1)
    assert divergence(p, p) == 0
    assert divergence(p, q) > 0


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data directory of two domains."""
    from tests.unit.data.conftest import build_tiny

    return build_tiny(tmp_path_factory.mktemp("words"))


def test_rows_are_held_out_ones_of_the_task_and_of_those_before(words: Path) -> None:
    config = TaskStreamConfig(
        path=str(words), tasks=4, steps=2, seq_len=16, batch_size=4, vocabulary="unique"
    )
    held = HeldRows(config, rows=6, memory_rows=5, seed=0)
    now, old = held(0)
    assert (now.inputs.shape, now.weight, old) == ((6, 16), 96, None)

    def rows(number: int, count: int) -> Any:
        stream = config.build(f"val/task_{number:02d}", seed=0, rank=0, world=1)
        return torch.cat([batch.inputs for batch in stream])[:count]

    now, old = held(2)
    assert old is not None
    assert torch.equal(now.inputs, rows(2, 6))
    assert torch.equal(old.inputs, torch.cat([rows(0, 3), rows(1, 2)]))
    again, older = held(5)  # the second task once more: all others are older
    assert older is not None
    assert torch.equal(again.inputs, rows(1, 6))
    assert torch.equal(older.inputs, torch.cat([rows(0, 2), rows(2, 2), rows(3, 1)]))


def test_rows_of_documents_that_begin_anew_keep_their_starts(words: Path) -> None:
    config = TaskStreamConfig(
        path=str(words), tasks=2, steps=2, seq_len=16, batch_size=4, documents="reset"
    )
    now, old = HeldRows(config, rows=6, memory_rows=2, seed=0)(1)
    assert old is not None
    assert len(now.starts or ()) == 6
    assert len(old.starts or ()) == 2


def test_a_stream_without_held_out_rows_is_refused() -> None:
    class Bare:
        kind = "bare"

        def splits(self) -> tuple[str, ...]:
            return ("train",)

    with pytest.raises(ConfigError, match="stream=bare has no held-out split"):
        HeldRows(Bare(), rows=1, memory_rows=1, seed=0)  # type: ignore[arg-type]
