"""One run from first check to summary: directory, lock, resume, loop, last words. Floor 5."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nl.config.hydra import save_config
from nl.config.run import RunConfig, config_hash
from nl.core.logs import get_logger, setup_logging
from nl.dist.base import Strategy
from nl.dist.checkpoint import repoint
from nl.run.directory import RunDir, failure
from nl.run.files import RunError, writable_folder, write_atomic, write_json
from nl.run.provenance import provenance
from nl.run.records import cut_records
from nl.train.finish import finish
from nl.train.hooks.stop import StopSignals, exit_code
from nl.train.resume import Resume, abandon, find_resume
from nl.train.sinks import close_sinks, open_sinks
from nl.train.state import TrainState
from nl.train.trainer import Parts, Trainer

log = get_logger(__name__)

Build = Callable[..., Parts]
"""(run, strategy, begun=) -> what the loop drives; ``begun``: a checkpoint has the weights."""


def train(run: RunConfig, strategy: Strategy, build: Build) -> Path:
    """Train one run to its end, or until a signal.

    Args:
        run: the configuration.
        strategy: started, not yet set up.
        build: ``nl.assembly.build``.

    Returns:
        The run directory.

    Raises:
        ConfigError: before anything is written.
        SystemExit: stopped by a signal after saving.
    """
    setup_logging(strategy.rank)
    with StopSignals() as stop:
        resume: Resume | None = strategy.first(lambda: find_resume(run))
        if resume is not None and resume.done:
            log.info("%s is done already; resume=none starts a new run", resume.run)
            return resume.run
        if resume is None:
            strategy.first(lambda: _check_place(run))
        begun = resume is not None and resume.checkpoint is not None
        parts = build(run, strategy, begun=begun)
        run_dir = _enter(parts, resume)
        with _recording(run_dir, run.train.steps) as progress:
            trainer = Trainer(parts, run_dir)
            _continue(trainer, resume)
            progress.append(trainer)
            trainer.heartbeat(None)
            received = _fit(trainer, stop)
        if received:
            code = exit_code(received)
            log.info("saved; continue with resume=%s (exit code %d)", run_dir.path, code)
            raise SystemExit(code)
        return run_dir.path


def _check_place(run: RunConfig) -> None:
    if run.run.dir is None:
        writable_folder(Path(run.run.root), "run.root")
    else:
        writable_folder(Path(run.run.dir), "run.dir")
        RunDir.check_new(Path(run.run.dir))


def _enter(parts: Parts, resume: Resume | None) -> RunDir:
    """Create or lock the run directory on rank 0; the same one on every rank."""
    box: list[RunDir] = []
    strategy = parts.strategy

    def enter() -> str:
        box.append(_create(parts) if resume is None else _reopen(resume))
        return str(box[0].path)

    path = Path(strategy.first(enter))
    run_dir = box[0] if box else RunDir(path)
    setup_logging(strategy.rank, run_dir.logs / f"rank_{strategy.rank:02d}.log")
    log.info("run directory %s", path)
    return run_dir


def _overrides() -> str:
    return "".join(f"{a}\n" for a in sys.argv[1:] if "=" in a and not a.startswith("-"))


def _create(parts: Parts) -> RunDir:
    run = parts.run
    named, name, seed = run.run.dir, run.name, run.seed
    path = Path(named) if named else RunDir.place(run.run.root, name, config_hash(run), seed)
    run_dir = RunDir.create(path)
    with contextlib.ExitStack() as undo:
        undo.callback(run_dir.release)
        _describe(parts, run_dir)
        undo.pop_all()
    return run_dir


def _describe(parts: Parts, run_dir: RunDir) -> None:
    """Write config, overrides and, last, the meta.json that makes the directory a run."""
    run, strategy = parts.run, parts.strategy
    save_config(run, run_dir.config)
    write_atomic(run_dir.overrides, _overrides())
    parameters = sum(strategy.sizes.values())
    write_json(
        run_dir.meta,
        {
            "schema": 1,
            **provenance(),
            "devices": [str(strategy.device)],
            "world_size": strategy.world,
            "strategy": strategy.name,
            "config_hash": config_hash(run),
            "seed": run.seed,
            "started": time.time(),
            "parameters": parameters,
            "tokenizers": list(parts.tokenizers),
            "init_from": parts.origin,
            "data": getattr(run.stream, "facts", dict)(),
            "optimizer": [
                {
                    "group": group.get("name", ""),
                    "tensors": len(names),
                    "numbers": sum(strategy.sizes[name] for name in names),
                }
                for group, names in zip(
                    strategy.optimizer.param_groups, strategy.optimizer_names, strict=True
                )
            ],
            "resumes": [],
        },
    )


def _reopen(resume: Resume) -> RunDir:
    run_dir = RunDir.open(resume.run)
    run_dir.lock()
    for name in run_dir.sweep():
        log.warning("removed what a crash left behind: %s", name)
    return run_dir


def _rewind(run: RunConfig, run_dir: RunDir, state: TrainState) -> None:
    """Make the directory that of a run in ``state``: no later rows, checkpoints or summary."""
    step = state.step
    for name in abandon(run_dir, step):
        log.warning("a newer checkpoint was set aside as %s", name)
    repoint(run_dir.path, step, state.best.step if state.best else None)
    for records in (run_dir.metrics, run_dir.evals):
        cut_records(records, step)
    run_dir.summary.unlink(missing_ok=True)
    run_dir.note_resume(
        {"step": step, "time": time.time(), "argv": shlex.join(sys.argv[1:])}, config_hash(run)
    )
    scratch = run_dir.config.with_name(".tmp-config.yaml")
    save_config(run, scratch)
    scratch.replace(run_dir.config)


def _continue(trainer: Trainer, resume: Resume | None) -> None:
    """Bring back the state of the checkpoint and open the sinks behind it."""
    if resume is not None and resume.checkpoint is not None:
        trainer.state = trainer.saver.restore(resume.checkpoint)
        log.info("continuing at step %d", trainer.state.step)
    if resume is not None:
        trainer.strategy.first(lambda: _rewind(trainer.run, trainer.run_dir, trainer.state))
    if trainer.strategy.rank == 0:
        trainer.sinks, trainer.state.wandb_id = open_sinks(
            trainer.run,
            trainer.run_dir,
            start=trainer.state.step,
            wandb_id=trainer.state.wandb_id,
            model=getattr(trainer.strategy.objective, "model", None),
        )


def _fit(trainer: Trainer, stop: StopSignals) -> int:
    try:
        received = trainer.fit(stop)
        if not received:
            received = finish(trainer, stop)
    finally:
        trainer.saver.close()
        close_sinks(trainer.sinks)
    return received


@contextlib.contextmanager
def _recording(run_dir: RunDir, total: int) -> Iterator[list[Trainer]]:
    """Keep ``status.json`` true whatever happens, and let go of the lock."""
    progress: list[Trainer] = []
    ended = False
    try:
        yield progress
        ended = True
    finally:
        if progress:
            _last_words(progress[0], total, ended)
        run_dir.release()


def _last_words(trainer: Trainer, total: int, ended: bool) -> None:
    """The last status (rank 0) and, after a failure, what happened in every rank's log."""
    kind, error, trace = sys.exc_info()
    strategy, run_dir, step = trainer.strategy, trainer.run_dir, trainer.state.step
    failed = not ended and kind is not None and error is not None
    if failed and strategy.world > 1:
        assert error is not None
        error.add_note(f"rank {strategy.rank} at step {step}.{trainer.watch.others()}")
    if failed and isinstance(error, RunError):  # says all there is to know
        log.error("rank %d failed at step %d: %s", strategy.rank, step, error)
    elif failed:
        log.error("rank %d failed at step %d", strategy.rank, step, exc_info=True)
    if strategy.rank != 0:
        return
    if not failed:
        run_dir.write_status("done" if run_dir.summary.is_file() else "stopped", step, total)
        return
    assert kind is not None
    assert error is not None
    run_dir.write_status("failed", step, total, error=failure(kind, error, trace))
