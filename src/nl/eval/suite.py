"""Run evaluators on a loaded model and keep their rows. Floor 6."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from nl.config import ConfigError
from nl.core.logs import get_logger
from nl.core.protocols import EvalRow, Evaluator
from nl.eval.context import EvalContext, Record, names_field
from nl.eval.rows import save_json, save_lines
from nl.run.provenance import provenance


class EvaluationError(RuntimeError):
    """What was measured cannot be true; it is in the result file, the text says why."""


SAMPLES = "samples.jsonl"
"""What every sample scored, below the details of an evaluator."""


def run_suite(
    model: nn.Module, evaluators: Mapping[str, Evaluator], context: EvalContext
) -> list[EvalRow]:
    """Run evaluators one after the other.

    Args:
        model: a language model, already on ``context.device``; it is not changed.
        evaluators: by name; the name is the suite of its rows where a name differs from the kind.
        context: what they may use; details of evaluator ``name`` go below ``output/<name>``.

    Returns:
        All rows. The rows of each evaluator are in ``output/<name>.json`` as soon as it ends, and
        what it found per sample in ``output/<name>/samples.jsonl``.

    Raises:
        EvaluationError: an evaluator found what cannot be true, for example losses below those of
            the exact predictor; its results are saved.
    """
    rows: list[EvalRow] = []
    for name, evaluator in evaluators.items():
        get_logger(__name__).info("evaluate %s", name)
        start = time.monotonic()
        inner = replace(context, output=context.output / name, record=Record())
        with naming(name, evaluator):
            found = [replace(row, suite=name) for row in evaluator(model, inner)]
        record = {
            "suite": name,
            "step": context.step,
            "seconds": time.monotonic() - start,
            **facts(context),
            "details": inner.record.details,
            "samples": f"{name}/{SAMPLES}" if inner.record.samples else None,
            "failures": inner.record.failures,
            "rows": [as_record(row, context.step) for row in found],
        }
        if inner.record.samples:
            save_lines(inner.output / SAMPLES, inner.record.samples)
        save_json(context.output / f"{name}.json", record)
        if inner.record.failures:
            where = context.output / f"{name}.json"
            raise EvaluationError(f"evals.{name}: {'; '.join(inner.record.failures)} ({where})")
        rows += found
    return rows


@contextmanager
def naming(name: str, evaluator: Evaluator) -> Iterator[None]:
    """A complaint about a field of the evaluator says whose field: ``needle.lengths: ...``."""
    try:
        yield
    except ConfigError as error:
        if names_field(getattr(evaluator, "config", None), str(error)):
            raise ConfigError(f"{name}.{error}") from error
        raise


def facts(context: EvalContext) -> dict[str, Any]:
    """What the numbers depend on besides the model: seed, tokenizer, code, versions."""
    tokenizer = context.tokenizer
    return {
        "seed": context.seed,
        "limit": context.limit,
        "device": str(context.device),
        "tokenizer": {
            "sha256": getattr(tokenizer, "sha256", None),
            "vocab_size": tokenizer.vocab_size,
        },
        "provenance": provenance(),
        **context.facts,
    }


def as_record(row: EvalRow, step: int | None) -> dict[str, Any]:
    """A row of evals.jsonl: the fields of ``EvalRow`` and the step."""
    return {"step": step, **asdict(row)}
