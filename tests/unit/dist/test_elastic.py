"""Other numbers of ranks go on where the last ones stopped; the same number goes on bit by bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import nl
from nl.assembly import build
from nl.config import ConfigError
from nl.dist.checkpoint import Snapshot, load, save
from nl.dist.rows import read_rows
from nl.dist.saved import read_saved
from nl.dist.single import Single
from nl.run import RunDir, read_records

GROUP = Path(__file__).parents[2] / "resume" / "group.py"
MODEL: dict[str, Any] = {
    "kind": "language",
    "vocab_size": 11,
    "dim": 8,
    "layers": 1,
    "block": "hope_attention",
    "attention": {"heads": 1},
    "cms": {"periods": [4, 8], "hidden": 6, "allow_short_periods": True},
}
CHANGES: dict[str, Any] = {
    "model": MODEL,
    "objective": {"kind": "next_token"},
    "optim": {"kind": "muon", "rest": {"eps": 1e-4}},
    "schedule": {"kind": "constant"},
    "stream__seq_len": 6,
    "checkpoint__keep": 0,
    "checkpoint__export": False,
    "train__validate_every": 0,
}


def groups(cases: list[dict[str, Any]]) -> None:
    """Run cases of ``group.py`` one after the other, each to a good end."""
    command = [sys.executable, str(GROUP), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, found in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        said = Path(f"{case['changes']['run__dir']}-rank0.txt").read_text()[-2000:]
        assert set(found["codes"]) == {0}, (case, found, said)


def case(folder: Path, strategy: str, world: int, steps: int, every: int = 2) -> dict[str, Any]:
    """Train to ``steps`` on ``world`` ranks, from the newest checkpoint if there is one."""
    place = {"run__dir": str(folder), "train__steps": steps, "resume": "auto"}
    place["checkpoint__every"] = every
    return {"changes": CHANGES | place, "world": world, "strategy": strategy}


def numbers(run: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    rows = [r for r in read_records(run / "metrics.jsonl") if r["split"] == "train"]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
    return [(r["loss"], r["grad_norm"]) for r in rows]


def flat(folder: Path) -> dict[str, Any]:
    """Parameters and optimizer state of a checkpoint, whole."""
    saved = read_saved(folder)
    slots = {f"{n} {slot}": v for n, held in saved.slots.items() for slot, v in held.items()}
    return saved.model | slots


def train_everything(root: Path, tiny: ModuleType) -> None:
    """Runs of 8 steps: ``one`` at a stretch on one process; ``<strategy>`` on 1, 2, 4, 1 ranks;
    ``<strategy>-2`` at a stretch on two and ``<strategy>-2-again`` saved beside training, stopped
    and resumed."""
    nl.launch(tiny.tiny_run(**case(root / "one", "single", 1, 8)["changes"]))
    cases = []
    for name in ("ddp", "fsdp2"):
        worlds = [(1, 2), (2, 4), (4, 6), (1, 8)]
        cases += [case(root / name, name, world, steps) for world, steps in worlds]
        cases.append(case(root / f"{name}-2", name, 2, 8, every=1))
        again = [case(root / f"{name}-2-again", name, 2, steps) for steps in (4, 8)]
        for one in again:
            one["changes"]["checkpoint__asynchronous"] = True
        cases += again
    groups(cases)


def one_two_four_and_one_rank_go_on_with_one_another(trained: Path, strategy: str) -> None:
    ours, theirs = numbers(trained / "one"), numbers(trained / strategy)
    assert len(ours) == len(theirs) == 8
    for (loss, norm), (other_loss, other_norm) in zip(ours, theirs, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_norm == pytest.approx(norm, rel=1e-5)
    one, other = (flat(trained / n / "checkpoints" / "step_000008") for n in ("one", strategy))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


def two_ranks_resume_bit_by_bit(trained: Path, strategy: str) -> None:
    runs = trained / f"{strategy}-2", trained / f"{strategy}-2-again"
    straight, again = (numbers(run) for run in runs)
    assert len(straight) == 8
    assert straight == again
    ours, theirs = (flat(run / "checkpoints" / "step_000008") for run in runs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, Tensor) else None
        assert same if same is not None else value == theirs[name], name
    for rank in ("", "_00001"):
        file = f"checkpoints/step_000008/state{rank}.safetensors"
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()


def two_ranks_make_whole_matrices_orthogonal(trained: Path) -> None:
    """What one step of Muon adds has singular values near one; halves made so apart have not."""
    before, after = (
        read_saved(trained / "fsdp2-2" / "checkpoints" / f"step_00000{step}") for step in (4, 5)
    )
    rate, decay, found = 1e-3, 0.1, 0
    for name in after.optimizer.parameters[0]:
        old, new = (saved.model[name.removeprefix("model.")] for saved in (before, after))
        added = ((1 - rate * decay) * old - new) / (rate * 0.2 * max(old.shape) ** 0.5)
        sizes = torch.linalg.svdvals(added)
        assert 0.5 < sizes.min() < sizes.max() < 1.3, name
        halves = torch.cat([torch.linalg.qr(half.mT)[0].mT for half in added.chunk(2)])
        apart = torch.linalg.svdvals(halves)
        found += not 0.5 < apart.min() < apart.max() < 1.3
    assert found > 0


def a_sharded_checkpoint_goes_on_on_one_device_and_back(
    trained: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    for source, strategy in (("fsdp2", "single"), ("one", "fsdp2")):
        folder = tmp_path / source
        shutil.copytree(trained / source, folder)
        shutil.rmtree(folder / "checkpoints" / "step_000008")
        (folder / "summary.json").unlink()
        nl.launch(tiny.tiny_run(**case(folder, strategy, 1, 8)["changes"]), strategy=strategy)
        for ours, theirs in zip(numbers(trained / "one"), numbers(folder), strict=True):
            assert theirs == pytest.approx(ours, rel=1e-5)
        sharded = (folder / "checkpoints" / "step_000008" / ".metadata").is_file()
        assert sharded == (strategy == "fsdp2")
        assert nl.load_model(folder).config.dim == 8


def test_runs_go_on_on_other_numbers_of_ranks(tiny: ModuleType, tmp_path: Path) -> None:
    """One test, because its runs are shared: fourteen launches and one on a single device."""
    trained = tmp_path / "runs"
    trained.mkdir()
    train_everything(trained, tiny)
    for strategy in ("ddp", "fsdp2"):
        one_two_four_and_one_rank_go_on_with_one_another(trained, strategy)
        two_ranks_resume_bit_by_bit(trained, strategy)
    two_ranks_make_whole_matrices_orthogonal(trained)
    a_sharded_checkpoint_goes_on_on_one_device_and_back(trained, tiny, tmp_path)


def test_rows_of_a_state_are_cut_anew(tiny: ModuleType, tmp_path: Path) -> None:
    place = RunDir.create(tmp_path / "run")
    place.release()
    run = tiny.tiny_run()
    strategy = Single.start("cpu")
    build(run, strategy)
    whole = torch.arange(6.0)[:, None].repeat(1, 8)
    folder = save(strategy, place, run, Snapshot(1, {}, tiny.TinyState(whole[:3], 5)))
    other = save(strategy, place, run, Snapshot(2, {}, tiny.TinyState(whole[3:], 5)))
    shutil.copy(other / "state.safetensors", folder / "state_00001.safetensors")

    def name(rank: int) -> str:
        return f"state_{rank:05d}.safetensors" if rank else "state.safetensors"

    for world in (1, 2, 3, 6):
        got = [read_rows(folder, name, old=2, rank=r, world=world) for r in range(world)]
        assert {state.position for state in got} == {5}
        assert torch.equal(torch.cat([state.hidden for state in got]), whole)
    with pytest.raises(ConfigError, match=r"State of 6 rows, which 4 processes cannot share"):
        read_rows(folder, name, old=2, rank=0, world=4)
    odd = save(strategy, place, run, Snapshot(3, {}, tiny.TinyState(whole[3:], 7)))
    shutil.copy(odd / "state.safetensors", folder / "state_00001.safetensors")
    with pytest.raises(ConfigError, match=r"not of one State with state\.safetensors"):
        read_rows(folder, name, old=2, rank=0, world=1)
    assert load(strategy, other).state.position == 5
