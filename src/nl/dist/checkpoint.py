"""Checkpoints: whole or absent, verified on load, kept by rule, written by all ranks. Floor 4."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nl.config import ConfigError
from nl.config.hydra import load_config, save_config
from nl.config.run import RunConfig
from nl.core.logs import get_logger
from nl.core.state import flatten, to, unflatten
from nl.dist.base import Strategy, Write
from nl.dist.rows import read_rows
from nl.dist.saved import read_model_tensors, seal
from nl.dist.serial import host_tensors, load_tensors, restore_rng, rng_tensors, write_tensors
from nl.run.directory import RunDir
from nl.run.discover import checkpoints, step_of
from nl.run.files import RunError, fsync_dir, read_json, write_atomic, write_json
from nl.run.manifest import MANIFEST, verify, write_manifest

log = get_logger(__name__)


class CheckpointError(RunError):
    """A checkpoint could not be written; earlier ones are intact."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds besides model and optimizer.

    Attributes:
        step: optimizer steps done.
        trainer: plain data: counters, stream cursor, controller, best.
        state: the model State carried by the stream, None where nothing is carried.
    """

    step: int
    trainer: dict[str, Any]
    state: Any


def _state_file(rank: int) -> str:
    return "state.safetensors" if rank == 0 else f"state_{rank:05d}.safetensors"


def save(strategy: Strategy, run_dir: RunDir, run: RunConfig, snapshot: Snapshot) -> Path:
    """Write ``checkpoints/step_<n>`` (collective): beside, digests, rename, ``latest``.

    ``nl.dist.pending`` does the same between steps, in a thread.

    Raises:
        CheckpointError: on every rank, where any rank could not write; nothing is left behind.
    """
    final, scratch = open_scratch(strategy, run_dir, snapshot)
    problem = attempt(lambda: _write_rank(strategy, scratch, snapshot))
    agree(strategy, problem, scratch)
    if strategy.rank == 0:
        problem = attempt(lambda: commit(scratch, final, run, strategy.world, snapshot))
    agree(strategy, problem, scratch)
    return final


def open_scratch(strategy: Strategy, run_dir: RunDir, snapshot: Snapshot) -> tuple[Path, Path]:
    """Where the checkpoint will be, and the empty directory that it is written into (collective).

    Raises:
        CheckpointError: on every rank, where rank 0 could not make the directory.
    """
    final = run_dir.checkpoints / f"step_{snapshot.step:06d}"
    scratch = run_dir.checkpoints / strategy.broadcast(f".tmp-{final.name}-{uuid.uuid4().hex[:8]}")
    problem = attempt(lambda: scratch.mkdir(parents=True)) if strategy.rank == 0 else None
    agree(strategy, problem, scratch)
    return final, scratch


def attempt(action: Callable[[], Any]) -> str | None:
    """Run ``action``; its operating-system error as text, None where it succeeded."""
    try:
        action()
    except OSError as error:
        return str(error)
    return None


def agree(strategy: Strategy, problem: str | None, scratch: Path) -> None:
    """Go on if no rank has a problem, else clear up and complain on every rank (collective).

    Raises:
        CheckpointError: with this rank's problem, or naming that another rank has one.
    """
    if strategy.max(float(problem is not None)) == 0:
        return
    if strategy.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    who = f"rank {strategy.rank}: {problem}" if problem else "another rank failed, see its log"
    raise CheckpointError(f"checkpoint {scratch.name}: {who}.")


def _write_rank(strategy: Strategy, scratch: Path, snapshot: Snapshot) -> None:
    strategy.save(scratch)
    _capture_state(strategy.rank, snapshot)(scratch)


def _capture_state(rank: int, snapshot: Snapshot) -> Write:
    named, skeleton = flatten(snapshot.state)
    tensors = host_tensors(named | rng_tensors())
    facts = {"skeleton": json.dumps(skeleton)}
    return lambda folder: write_tensors(folder / _state_file(rank), *tensors, facts)


def capture(strategy: Strategy, snapshot: Snapshot) -> Write:
    """Copy everything this rank has to write to the host (collective).

    Returns:
        What writes the copies into a folder: no collective, from any thread.
    """
    writes = strategy.capture(), _capture_state(strategy.rank, snapshot)

    def write(folder: Path) -> None:
        for part in writes:
            part(folder)

    return write


def commit(scratch: Path, final: Path, run: RunConfig, world: int, snapshot: Snapshot) -> None:
    """Make ``scratch`` the checkpoint ``final``: facts, digests, rename, ``latest`` (rank 0)."""
    seal(scratch)
    facts = {"step": snapshot.step, "world": world, **snapshot.trainer}
    write_json(scratch / "trainer.json", facts)
    save_config(run, scratch / "config.yaml")
    write_manifest(scratch)
    if final.exists():
        remove(final)
    scratch.rename(final)
    fsync_dir(final.parent)
    write_atomic(final.parent / "latest", final.name + "\n")


def remove(folder: Path) -> None:
    """Delete a checkpoint so that a crash in between leaves no half of it under its name."""
    trash = folder.with_name(f".trash-{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(trash)
    shutil.rmtree(trash)


def mark_best(folder: Path) -> None:
    """Make ``checkpoints/best`` name this checkpoint."""
    write_atomic(folder.parent / "best", folder.name + "\n")


def pointed(run: Path, name: str) -> Path | None:
    """The checkpoint that ``checkpoints/latest`` or ``checkpoints/best`` names, if it exists."""
    pointer = run / "checkpoints" / name
    if not pointer.is_file():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    return folder if step_of(folder) is not None and folder.is_dir() else None


def repoint(run: Path, step: int, best: int | None) -> None:
    """Let ``latest`` and ``best`` name the checkpoints of these steps, or nothing that is gone.

    A run that goes back to an older checkpoint writes later ones anew under the same names.
    """
    for name, number in (("latest", step), ("best", best)):
        pointer = run / "checkpoints" / name
        folder = pointer.with_name(f"step_{number or 0:06d}")
        if folder.is_dir():
            write_atomic(pointer, folder.name + "\n")
        else:
            pointer.unlink(missing_ok=True)


def retain(run: Path, keep: int) -> list[Path]:
    """Delete all but the newest ``keep`` checkpoints (0: keep all).

    The best one, the newest one and any that a reader holds open are never deleted.

    Returns:
        What was deleted.
    """
    found = checkpoints(run)
    old = found[: -max(keep, 1)] if keep else []
    best = pointed(run, "best")
    gone = []
    for folder in old:
        if folder == best or _is_read(folder):
            continue
        remove(folder)
        gone.append(folder)
    return gone


def _is_read(folder: Path) -> bool:
    try:
        with (folder / MANIFEST).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Hold a checkpoint against retention and verify it.

    Raises:
        ConfigError: a file is missing, cut or changed; the message names it.
    """
    try:
        with (folder / MANIFEST).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            verify(folder)
            yield
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror or error}.") from error
    except RunError as error:
        raise ConfigError(str(error)) from error


def load(strategy: Strategy, folder: Path) -> Snapshot:
    """Read a checkpoint into the strategy and the global generators (collective).

    Raises:
        ConfigError: damaged, made by another model, or a carried State whose rows cannot be shared.
    """
    with reading(folder):
        facts = trainer_facts(folder)
        strategy.load(folder)
        state = to(_load_state(strategy, folder, facts), strategy.device)
    strategy.barrier()
    return Snapshot(step=int(facts["step"]), trainer=facts, state=state)


def trainer_facts(folder: Path) -> dict[str, Any]:
    """``trainer.json`` of a checkpoint, checked against the directory's name.

    Raises:
        RunError: not a mapping, or of another step (a renamed or swapped directory).
    """
    facts = read_json(folder / "trainer.json")
    step = step_of(folder)
    if step is None or not isinstance(facts, dict) or facts.get("step") != step:
        raise RunError(f"{folder / 'trainer.json'}: not of {folder.name}; was it renamed?")
    return facts


def _load_state(strategy: Strategy, folder: Path, facts: dict[str, Any]) -> Any:
    """The carried State of this rank; its generators go on only where the world is the same."""
    old = int(facts["world"])
    if old == strategy.world:
        named, metadata = load_tensors(folder / _state_file(strategy.rank))
        restore_rng(named)
        return unflatten(named, json.loads(metadata["skeleton"]))
    log.warning("resuming with %d processes, was %d: random numbers anew", strategy.world, old)
    place = {"rank": strategy.rank, "world": strategy.world}
    return read_rows(folder, _state_file, old=old, **place)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (plain data) and model tensors of a checkpoint, verified."""
    with reading(folder):
        return load_config(folder / "config.yaml"), read_model_tensors(folder)
