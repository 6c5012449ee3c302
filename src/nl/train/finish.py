"""The end of a run: export, evaluators, summary. Floor 5."""

from __future__ import annotations

import dataclasses
from typing import Any

from nl.core.logs import get_logger
from nl.core.protocols import EvalRow
from nl.dist.export import export
from nl.run.files import write_atomic, write_json
from nl.run.records import clean, line, read_records
from nl.train.hooks.stop import StopSignals
from nl.train.trainer import Trainer

log = get_logger(__name__)


def finish(trainer: Trainer, stop: StopSignals) -> int:
    """Export the weights, run the evaluators, write ``summary.json``.

    Returns:
        0, or the number of a signal that arrived before the summary was written.
    """
    run, strategy, state = trainer.run, trainer.strategy, trainer.state
    model = strategy.full_model() if run.checkpoint.export else {}
    if strategy.rank == 0 and run.checkpoint.export:
        target = trainer.run_dir.checkpoints / f"step_{state.step:06d}.safetensors"
        export(model, run, target, trainer.tokenizers)
    rows = evaluate(trainer, stop)
    received = int(strategy.max(stop.received))
    if received:
        return received
    if strategy.rank == 0:
        write_json(trainer.run_dir.summary, summary(trainer, rows))
    strategy.broadcast(None)  # no rank ends well before the run is done
    return 0


def evaluate(trainer: Trainer, stop: StopSignals) -> list[EvalRow]:
    """Run ``config.evals`` on rank 0, one after the other, and record their rows once."""
    rows: list[EvalRow] = []
    if trainer.run.evals:
        output = trainer.run_dir.artifacts / "evals"
        with trainer.strategy.evaluating() as objective:
            model: Any = objective
            for name in trainer.run.evals if trainer.strategy.rank == 0 else ():
                if stop.received:
                    return rows
                rows += trainer.evaluate(name, model.model, output, trainer.state.step)
    if trainer.strategy.rank == 0 and trainer.run.evals:
        record(trainer, rows)
    return rows


def record(trainer: Trainer, rows: list[EvalRow]) -> None:
    """Put these rows into ``evals.jsonl`` in place of earlier ones of the same step."""
    path, step = trainer.run_dir.evals, trainer.state.step
    earlier = [row for row in read_records(path) if row.get("step") != step]
    new = [{"step": step, **dataclasses.asdict(row)} for row in rows]
    write_atomic(path, "".join(line(row) for row in [*earlier, *new]))


def summary(trainer: Trainer, rows: list[EvalRow]) -> dict[str, Any]:
    """The contents of ``summary.json``."""
    state = trainer.state
    last = {row["split"]: row for row in read_records(trainer.run_dir.metrics)}
    final = clean({f"{split}/loss": row["loss"] for split, row in sorted(last.items())})
    parameters = sum(trainer.strategy.sizes.values())
    return {
        "final": final,
        "best": vars(state.best) if state.best else {},
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "parameters": parameters,
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
        "evals": [clean(dataclasses.asdict(row)) for row in rows],
    }
