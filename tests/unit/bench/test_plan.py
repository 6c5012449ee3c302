"""Plans: live bytes counted by hand, fake steps as large as real ones, formulas and refusals."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from nl import cli_plan
from nl.bench.footprint import FP32, Footprint, footprint
from nl.bench.live import LiveBytes
from nl.bench.plan import GIB, STRATEGIES, Devices, held, plan, sent
from nl.bench.show import aligned
from nl.cli import main
from nl.cli_plan import build, cells, configured, numbers
from nl.config import ConfigError

SMALL = ("model.dim=64", "model.attention.heads=2", "stream.batch_size=2", "stream.seq_len=128")
FOUND = Footprint(
    parameters=1000,
    between=300,
    taught=True,
    tiles=3,
    unit=200,
    optimizer=8000.0,
    samples=((1, 150.0), (4, 300.0), (16, 1500.0)),
    flops=6000.0,
)


def test_live_bytes_follow_what_is_made_and_freed() -> None:
    outside = torch.ones(100)
    with LiveBytes() as live:
        a = outside + 1
        assert live.live == a.nbytes
        b = a[:10].view(2, 5)
        c = torch.cat([a, a])
        assert live.live == a.nbytes + c.nbytes
        outside.mul_(2)
        del c
        assert live.live == a.nbytes
        del a
        assert b.shape == (2, 5)
        assert live.live == 4 * 100
        del b
    assert (live.live, live.peak) == (0, 3 * 4 * 100)


@pytest.mark.parametrize("block", ["transformer", "hope_attention", "hope_selfmod"])
def test_a_fake_step_is_as_large_as_a_real_one(block: str) -> None:
    run = configured("pilot_smoke", [*SMALL, f"model.block={block}", "model.layers=3"])
    said: list[str] = []
    found = footprint(run, build, said.append)
    assert said[-1] == "counting step 6 of 6: layers 2 of 3, rows 16, 128 tokens each"
    model: Any = run.model
    objective, _ = build(run)
    assert found.parameters == sum(p.numel() for p in objective.model.parameters())
    assert found.optimizer == pytest.approx(8 * found.parameters, rel=0.01)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for rows in (1, 2, 8, 20):
        tokens = torch.randint(0, model.vocab_size, (rows, 129))
        with LiveBytes() as live:
            nll, out = objective.model.nll(tokens[:, :-1], tokens[:, 1:], keep=False)
            nll.sum().backward()
            del nll, out
        assert found.activations(rows) == pytest.approx(live.peak, rel=0.1)


def test_what_a_device_holds_by_hand() -> None:
    P, moments, B, U = 4 * 1000, 8000, 4 * 300, 4 * 200
    wanted = {
        "ddp": 2 * P + moments,
        "zero1": 2 * P + moments / 4,
        "zero2": P + (P + moments) / 4,
        "zero3": (2 * P + moments) / 4 + B + 2 * U,
        "fsdp2": (2 * P + moments) / 4 + B + 2 * U + P,
    }
    assert {name: held(name, FOUND, 4) for name in STRATEGIES} == wanted
    untaught = replace(FOUND, taught=False)
    assert held("fsdp2", untaught, 4) == wanted["fsdp2"] - P + B + U
    assert held("ddp", FOUND, 1) + FOUND.activations(3) == FOUND.whole(3)


def test_activations_between_and_beyond_the_samples() -> None:
    assert [FOUND.activations(n) for n in (1, 2, 4, 10, 18)] == [150, 200, 300, 900, 1700]


def test_what_a_device_sends_by_hand() -> None:
    P, B = FP32 * 1000, FP32 * 300
    assert {name: sent(name, FOUND, 4, 2) for name in STRATEGIES} == {
        "ddp": 0.75 * 2 * P,
        "zero1": 0.75 * 2 * P,
        "zero2": 0.75 * 2 * P,
        "zero3": 0.75 * (2 * 6 + 1) * P,
        "fsdp2": 0.75 * (2 * (6 * (P - B) + B) + P),
    }
    kept = replace(FOUND, given_back=False)
    assert sent("fsdp2", kept, 4, 2) == 0.75 * (2 * P + P)
    assert held("fsdp2", kept, 4) == (2 * P + FOUND.optimizer) / 4 + P + P
    assert all(sent(name, FOUND, 1, 2) == 0 for name in STRATEGIES)


def test_rows_per_device_are_the_most_that_fit_and_divide(tiny: ModuleType) -> None:
    run = configured("pilot_smoke", ["stream.batch_size=24", "train.grad_accum=2"])
    big = replace(FOUND, samples=((1, 1.0 * GIB), (4, 4.0 * GIB), (16, 16.0 * GIB)))
    rows = {row["strategy"]: row for row in plan(run, big, Devices(gpus=4, memory=10.0))}
    assert rows["ddp"]["rows"] == 6
    assert rows["ddp"]["grad_accum"] == 2
    assert rows["ddp"]["memory"] == pytest.approx(6, abs=0.01)
    none = plan(run, big, Devices(gpus=4, memory=0.5))
    assert {row["rows"] for row in none} == {0}
    assert {row["tokens_per_s"] for row in none} == {0.0}
    assert len(aligned(cells(none)).splitlines()) == 1 + len(STRATEGIES)


def test_strategies_that_refuse_the_run_are_left_out() -> None:
    def names(*overrides: str) -> list[str]:
        run = configured("pilot_smoke", overrides)
        return [row["strategy"] for row in plan(run, FOUND, Devices(gpus=2))]

    assert names() == list(STRATEGIES)
    assert names("train.recompute_every=64") == ["ddp"]
    assert names("optim=muon") == ["ddp", "fsdp2"]


def test_options_of_a_strategy_are_planned_with() -> None:
    run = configured("pilot_smoke", ["fsdp.reshard_after_forward=false"])
    rows = {row["strategy"]: row for row in plan(run, FOUND, Devices(gpus=2))}
    kept = replace(FOUND, given_back=False)
    assert rows["fsdp2"]["fixed"] == held("fsdp2", kept, 2) / GIB


def test_what_cannot_be_planned_is_refused(tiny: ModuleType) -> None:
    run = configured("pilot_smoke", ["stream.batch_size=16"])
    with pytest.raises(ConfigError, match=r"--gpus: 3; must divide the 16 rows"):
        plan(run, FOUND, Devices(gpus=3))
    with pytest.raises(ConfigError, match=r"--share: 1\.5"):
        Devices(gpus=1, share=1.5)
    with pytest.raises(ConfigError, match=r"--gpus: 'many'"):
        numbers("many")
    with pytest.raises(ConfigError, match="--gpus: '8,0'; give whole numbers >= 1"):
        numbers("8,0")
    with pytest.raises(ConfigError, match="a plan is made for language models"):
        footprint(tiny.tiny_run(), build)


def test_devices_are_refused_before_anything_is_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_plan, "footprint", lambda *_: pytest.fail("counted"))
    for flags, said in (
        (["--gpus", "2,3"], "--gpus: 3; must divide the 16 rows"),
        (["--share", "0"], "--share: 0.0; must be in (0, 1]"),
        (["--memory", "-3"], "--memory: -3.0; must be > 0"),
    ):
        assert main(["plan", "--config-name", "pilot_smoke", *flags]) == 2
        assert said in capsys.readouterr().err
