"""The loop: weighted losses, one step per group, non-finite policies, validation, ends."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import nl
from nl.assembly import build_objective
from nl.config import ConfigError
from nl.core.output import StepOut
from nl.core.seeds import SeedBook
from nl.dist.serial import load_tensors
from nl.dist.single import Single
from nl.run import RunDir, read_records
from nl.train.guard import NonFiniteError
from nl.train.hooks.metrics import Clock, Totals, count_bad, perplexity
from nl.train.hooks.validate import Validator


def rows(run: Path, split: str = "train") -> list[dict[str, Any]]:
    return [row for row in read_records(run / "metrics.jsonl") if row["split"] == split]


def tensors_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:06d}"
    found: dict[str, torch.Tensor] = {}
    for name in ("model", "optim", "state"):
        found |= load_tensors(folder / f"{name}.safetensors")[0]
    return {k: v for k, v in found.items() if not k.startswith("rng.")}


def test_three_steps_equal_a_loop_written_out(tiny: ModuleType, tmp_path: Path) -> None:
    run = tiny.tiny_run(
        run__dir=str(tmp_path / "r"), model__dropout=0.0, train__steps=3, train__grad_accum=2
    )
    nl.launch(run)
    model = build_objective(run).model
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    matrices = [model.cell.weight_ih, model.cell.weight_hh]
    optimizer.param_groups[0]["params"] = matrices
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizer.add_param_group({"params": rest, "weight_decay": 0.0})
    stream = iter(run.stream.build("train", seed=SeedBook(0).seed("data"), rank=0, world=1))
    state, want = None, []
    for step in range(3):
        group = [next(stream), next(stream)]
        weight, total = sum(b.weight for b in group), torch.zeros(())
        for batch in group:
            out = model(batch.inputs, state)
            state = tiny.detach(out.state)
            flat = out.pred.flatten(0, 1)
            total = total + F.cross_entropy(flat, batch.targets.flatten(), reduction="sum")
        (total / weight).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = 0.01 * (step + 1) / 3
        for group_ in optimizer.param_groups:
            group_["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        want.append((float(total.detach()) / weight, rate, float(norm)))
    found = [(row["loss"], row["lr"], row["grad_norm"]) for row in rows(tmp_path / "r")]
    assert found == [pytest.approx(numbers, rel=2e-5) for numbers in want]
    saved = tensors_at(tmp_path / "r", 3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
    assert rows(tmp_path / "r")[-1]["tokens"] == sum((20, 19, 18, 20, 19, 18))


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("bad", [0, 5, 9])
def test_skip_leaves_everything_as_if_the_batch_never_came(
    tiny: ModuleType, tmp_path: Path, scale: str, bad: int
) -> None:
    base = {"model__dropout": 0.0, "train__steps": 10, "checkpoint__every": 0}
    skipping = base | {
        "train__nonfinite__policy": "skip",
        "stream__bad_rows": [bad],
        "stream__bad_scale": scale,
    }
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "skip"), **skipping))
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "gap"), stream__left_out=bad, **base))
    ours, theirs = rows(tmp_path / "skip"), rows(tmp_path / "gap")
    assert [r["lr"] for r in ours] == [r["lr"] for r in theirs]
    assert [r["loss"] for r in ours] == [r["loss"] for r in theirs]
    assert ours[-1]["train/skipped"] == 1
    a, b = tensors_at(tmp_path / "skip", 10), tensors_at(tmp_path / "gap", 10)
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_abort_stops_with_the_last_checkpoint_finite(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    run = tiny.tiny_run(run__dir=str(folder), stream__bad_rows=[6], checkpoint__every=2)
    with pytest.raises(NonFiniteError, match=r"at step 7 \(train\.nonfinite\.policy=abort"):
        nl.launch(run)
    status = RunDir(folder).read_status()
    assert (status["state"], status["step"]) == ("failed", 6)
    assert status["error"]["type"] == "NonFiniteError"
    assert "NonFiniteError" in (folder / "logs" / "rank_00.log").read_text()
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6]
    assert all(torch.isfinite(t).all() for t in tensors_at(folder, 6).values())
    assert not (folder / "summary.json").exists()


def test_rollback_returns_to_the_checkpoint_and_passes_the_batches(
    tiny: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    changes = {
        "train__nonfinite__policy": "rollback",
        "stream__bad_rows": [6],
        "checkpoint__every": 4,
        "train__validate_every": 0,
        "logging__enabled": True,
        "logging__backend": "json",
        "logging__path": str(tmp_path / "copy.jsonl"),
    }
    nl.launch(tiny.tiny_run(run__dir=str(folder), **changes))
    steps = [row["step"] for row in rows(folder)]
    assert steps == list(range(1, 21))
    assert rows(folder)[4]["train/rollbacks"] == 1
    trainer = json.loads((folder / "checkpoints" / "step_000020" / "trainer.json").read_text())
    assert trainer["stream"]["index"] == 23  # 20 steps, batch 6, and 4 and 5 trained in vain
    assert read_records(tmp_path / "copy.jsonl") == read_records(folder / "metrics.jsonl")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_persistent_trouble_ends_the_run(tiny: ModuleType, tmp_path: Path, policy: str) -> None:
    changes = {
        "train__nonfinite": {"policy": policy, "max_consecutive": 2},
        "stream__bad_rows": list(range(5, 40)),
    }
    with pytest.raises(NonFiniteError, match="3 times in a row"):
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), **changes))


def test_rolling_back_for_ever_ends_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {
        "train__nonfinite": {"policy": "rollback", "max_consecutive": 2},
        "stream__bad_rows": list(range(5, 40, 2)),
    }
    with pytest.raises(NonFiniteError, match="3 times in a row"):
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), **changes))


def test_numbers_that_overflow_do_not_stop_saving(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {"stream__bad_rows": [3], "stream__bad_scale": "1e4", "train__validate_every": 0}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), **changes, checkpoint__keep=0))
    row = rows(tmp_path / "r")[3]
    assert row["loss"] > 1e3
    assert row["ppl"] is None
    folder = tmp_path / "r" / "checkpoints" / "step_000004"
    observations = json.loads((folder / "trainer.json").read_text())["observations"]
    assert observations["loss"] == row["loss"]
    assert "ppl" not in observations


def test_a_validation_that_is_not_finite_is_never_the_best(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Validator.run

    def first_is_nan(self: Validator, strategy: Single, knobs: Any) -> list[dict[str, Any]]:
        found = real(self, strategy, knobs)
        bad = not list((tmp_path / "r" / "checkpoints").glob("step_*"))
        return [row | {"loss": float("nan")} for row in found] if bad else found

    monkeypatch.setattr(Validator, "run", first_is_nan)
    changes = {"train__validate_every": 2, "checkpoint__every": 3, "train__steps": 6}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), **changes))
    losses = {row["step"]: row["loss"] for row in rows(tmp_path / "r", "val")}
    assert losses[2] is None
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["best"]["step"] in (4, 6)
    assert summary["best"]["value"] == min(losses[4], losses[6])


def test_rollback_without_a_checkpoint_ends_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {"train__nonfinite__policy": "rollback", "stream__bad_rows": [1]}
    with pytest.raises(NonFiniteError, match="no checkpoint to roll back to"):
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), **changes))


def test_a_state_that_is_not_finite_counts() -> None:
    good, bad = torch.tensor([1.0]), torch.tensor([1.0, float("inf")])
    one = torch.ones(())
    assert int(count_bad(one, one, (good, 3, None))) == 0
    assert int(count_bad(one, one, (good, (bad,)))) == 1
    assert int(count_bad(one * float("nan"), one * float("inf"), None)) == 2


def test_validation_pools_targets_and_changes_nothing(tiny: ModuleType, tmp_path: Path) -> None:
    with_, without = tmp_path / "with", tmp_path / "without"
    nl.launch(tiny.tiny_run(run__dir=str(with_), train__validate_every=2))
    nl.launch(tiny.tiny_run(run__dir=str(without), train__validate_every=0))
    pick = ("step", "loss", "grad_norm", "lr")
    ours, theirs = ([{k: r[k] for k in pick} for r in rows(p)] for p in (with_, without))
    assert ours == theirs
    run = tiny.tiny_run()
    model = nl.load_model(with_)
    loss: dict[str, float] = {}
    weight: dict[str, int] = {}
    for split in ("val/a", "val/b"):
        state, loss[split], weight[split] = None, 0.0, 0
        for batch in run.stream.build(split, seed=SeedBook(0).seed("data"), rank=0, world=1):
            out = model(batch.inputs, state)
            state = out.state
            flat = out.pred.detach().flatten(0, 1)
            loss[split] += float(F.cross_entropy(flat, batch.targets.flatten(), reduction="sum"))
            weight[split] += batch.weight
        assert rows(with_, split)[-1]["loss"] == pytest.approx(loss[split] / weight[split])
    pooled = sum(loss.values()) / sum(weight.values())
    assert rows(with_, "val")[-1]["loss"] == pytest.approx(pooled)
    assert [r["step"] for r in rows(with_, "val")] == list(range(2, 21, 2))


def test_best_is_marked_and_kept(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    changes = {"optim__lr": 0.3, "checkpoint__keep": 1, "train__validate_every": 1}
    nl.launch(tiny.tiny_run(run__dir=str(folder), **changes))
    losses = {r["step"]: r["loss"] for r in rows(folder, "val")}
    best = min(losses, key=lambda step: losses[step])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == {"metric": "val/loss", "value": losses[best], "step": best}
    assert (folder / "checkpoints" / "best").read_text().strip() == f"step_{best:06d}"
    assert (folder / "checkpoints" / f"step_{best:06d}").is_dir()
    assert summary["final"]["val/loss"] == losses[20]


def test_same_seed_same_numbers_other_seed_other_numbers(tiny: ModuleType, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed + len(name))  # the ambient generator must not matter
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / name), seed=seed, train__steps=4))
        found.append([row["loss"] for row in rows(tmp_path / name)])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_stream_that_ends_is_an_error(tiny: ModuleType, tmp_path: Path) -> None:
    run = tiny.tiny_run(run__dir=str(tmp_path / "r"), stream__length=5)
    with pytest.raises(RuntimeError, match="ended at step 5 of 20"):
        nl.launch(run)
    assert RunDir(tmp_path / "r").read_status()["state"] == "failed"


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The checkpoint of this name cannot be written."""
    real = Single.save

    def full(self: Single, folder: Path) -> None:
        if name in folder.name:
            raise OSError(28, "No space left on device")
        real(self, folder)

    monkeypatch.setattr(Single, "save", full)


def test_a_failed_periodic_save_does_not_stop_training(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, "step_000008")
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), checkpoint__keep=0))
    names = sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir() if p.is_dir())
    assert "step_000008" not in names
    assert not any(name.startswith(".tmp") for name in names)
    assert "No space left" in (tmp_path / "r" / "logs" / "rank_00.log").read_text()


def test_a_failed_last_save_says_from_where_to_go_on(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__steps": 6, "checkpoint__every": 4, "run__dir": str(tmp_path / "r")}
    with monkeypatch.context() as patch:
        fill_disk(patch, "step_000006")
        with pytest.raises(ConfigError, match=r"after step 5 is not saved; make room in .*/r, "):
            nl.launch(tiny.tiny_run(**changes))
    assert RunDir(tmp_path / "r").read_status()["state"] == "failed"
    nl.launch(tiny.tiny_run(**changes, resume=str(tmp_path / "r")))
    assert RunDir(tmp_path / "r").read_status()["state"] == "done"


def test_totals_divide_sums_by_weight_and_average_the_rest() -> None:
    totals = Totals()
    for value in (1.0, 3.0):
        metrics = {"hits_sum": torch.tensor(value), "write/norm": torch.tensor(value)}
        totals.add(StepOut(torch.tensor(4 * value), None, metrics))
    found = totals.read(Single(torch.device("cpu")), 8)
    assert found == {"loss": 2.0, "hits": 0.5, "write/norm": 2.0}


def test_clock_and_perplexity() -> None:
    clock = Clock(10.0)
    clock.stepped(100)
    numbers = clock.read()
    assert numbers["perf/tokens_per_s"] > 0
    assert 0 <= numbers["perf/data_share"] <= 1
    assert clock.seconds >= 10.0
    assert clock.read()["perf/tokens_per_s"] == 0
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == float("inf")
