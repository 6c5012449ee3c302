"""Forgetting: losses of every segment after every phase, as a matrix with its metrics. Floor 6.

Training is not done here: the phases are steps of one run (stream ``phases``), and its checkpoints,
one at the end of each phase, are what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from nl.config import ConfigError, require
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext, Memorize
from nl.eval.continual_metrics import BETTER, LossMatrix, all_metrics
from nl.eval.memorize import MemoryConfig, memory_rows
from nl.eval.perplexity import EncodedText, check_steps, document_losses
from nl.eval.rows import make_row


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """One segment of a segments file."""

    name: str
    """Name of the column."""
    shards_dir: str | None = None
    """Data directory; null: the one the run was trained on."""
    domain: str | None = None
    """Domain of the data directory; null: the same as name."""
    split: str = "test"
    """Split of the domain."""
    max_batches: int | None = None
    """Batches of documents for this segment; null: as --max-batches says."""

    def __post_init__(self) -> None:
        batches = self.max_batches
        require(batches is None or batches >= 1, f"max_batches: {batches}; must be >= 1.")


@dataclass(frozen=True, kw_only=True)
class SegmentsFile:
    """``configs/data/continual_segments_sample.yaml`` and its like."""

    segments: tuple[SegmentSpec, ...]
    """The columns of R."""
    phases: tuple[str, ...] | None = None
    """Segment trained in each phase; null: the run's own phases, else each segment once."""

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        require(bool(names), "segments: empty; name at least one.")
        require(len(set(names)) == len(names), f"segments: {names}; each name once.")


@dataclass(frozen=True)
class Segment:
    """Held-out documents of one kind: a column of R.

    Attributes:
        name: of the column.
        documents: what the column is measured on.
    """

    name: str
    documents: tuple[EncodedText, ...]


def evaluate_segments(
    model: nn.Module,
    segments: Sequence[Segment],
    context: EvalContext,
    *,
    memorize: Memorize,
    memory: MemoryConfig | None = None,
) -> list[float]:
    """One row of R: nats per token on each segment, State fresh per document."""
    found = [
        document_losses(
            model,
            segment.documents,
            context,
            memorize=memorize,
            memory=memory,
            title=f"segment {segment.name}",
        )
        for segment in segments
    ]
    return [losses.loss()[0] for losses in found]


@dataclass(frozen=True)
class ForgettingResult:
    """R per memorisation mode.

    Attributes:
        matrices: by mode.
        sources: what each row was measured on (checkpoints), the initial row first.
        documents: per segment.
        written: what reading wrote into the memories of the last model.
        memory: which memories were written, how often, for how long.
    """

    matrices: dict[Memorize, LossMatrix]
    sources: tuple[str, ...]
    documents: tuple[int, ...]
    written: tuple[EvalRow, ...] = ()
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def rows(self, seconds: float | None = None) -> list[EvalRow]:
        """Every cell and every metric as evaluation rows."""
        found: list[EvalRow] = list(self.written)
        for mode, matrix in self.matrices.items():
            for i, (label, losses) in enumerate(zip(labels(matrix), matrix.values, strict=True)):
                for j, segment in enumerate(matrix.segments):
                    loss = float(losses[j])
                    if i == 0 and math.isnan(loss):
                        continue
                    found.append(
                        make_row(
                            "forgetting",
                            f"{label}/{segment}",
                            "nats_per_token",
                            loss,
                            self.documents[j],
                            memorize=mode,
                            note=self.memory.policy("document", mode),
                        )
                    )
            for metric, value in all_metrics(matrix).items():
                note = f"nats, {BETTER[metric]} is better"
                found.append(
                    make_row(
                        "forgetting",
                        "->".join(matrix.phases),
                        metric,
                        value,
                        len(matrix.segments),
                        memorize=mode,
                        seconds=seconds,
                        note=note if value is not None else f"{note}; not defined here",
                    )
                )
        return found

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON: R with names, and the metrics."""
        return {
            "sources": list(self.sources),
            "memorize": {
                mode: {
                    "segments": list(matrix.segments),
                    "phases": list(matrix.phases),
                    "rows": labels(matrix),
                    "nats_per_token": matrix.values.tolist(),
                    "metrics": all_metrics(matrix),
                }
                for mode, matrix in self.matrices.items()
            },
            "better": dict(BETTER),
        }

    def table(self) -> str:
        """The matrices and metrics as text."""
        lines = []
        for mode, matrix in self.matrices.items():
            width = max(12, *(len(name) + 2 for name in (*matrix.segments, *labels(matrix))))
            head = "".join(name.rjust(width) for name in matrix.segments)
            lines += [f"memorize {mode}: nats per token", " " * width + head]
            for label, losses in zip(labels(matrix), matrix.values, strict=True):
                cells = "".join(
                    ("-" if math.isnan(loss) else f"{loss:.4f}").rjust(width) for loss in losses
                )
                lines.append(label.ljust(width) + cells)
            for metric, value in all_metrics(matrix).items():
                number = "not defined" if value is None else f"{value:+.4f}"
                lines.append(f"  {metric} = {number} ({BETTER[metric]} is better)")
            lines.append("")
        return "\n".join(lines)


def labels(matrix: LossMatrix) -> list[str]:
    """Names of the rows of R."""
    return ["init", *(f"{i + 1}:{name}" for i, name in enumerate(matrix.phases))]


def forgetting_matrix(
    models: Iterable[tuple[str, Callable[[], nn.Module]]],
    segments: Sequence[Segment],
    phases: Sequence[str],
    context: EvalContext,
    memorize: Sequence[Memorize] = ("off", "context"),
    memory: MemoryConfig | None = None,
) -> ForgettingResult:
    """R over the checkpoints of one sequential run.

    Args:
        models: (label, loader) in order of training: one per phase, or one more in front for
            the model before training. Loaded one at a time.
        segments: the columns.
        phases: name of the segment trained in each phase.
        context: batch size, device, tokenizer.
        memorize: modes to measure.
        memory: which memories are written, how often, for how long; what the last model wrote is
            in the rows.

    Raises:
        ConfigError: the number of models fits neither ``phases`` nor ``phases`` + 1.
    """
    pairs = list(models)
    memory = memory or MemoryConfig()
    check_steps(memory, memorize)
    extra = len(pairs) - len(phases)
    if extra not in (0, 1):
        raise ConfigError(
            f"checkpoints: {len(pairs)} for {len(phases)} phases ({', '.join(phases)}); give one "
            "per phase, or one more in front for the model before training."
        )
    unknown = [] if extra else [[math.nan] * len(segments)]
    tables: dict[Memorize, list[list[float]]] = {mode: list(unknown) for mode in memorize}
    for _, load in pairs:
        model = load()
        for mode in memorize:
            losses = evaluate_segments(model, segments, context, memorize=mode, memory=memory)
            tables[mode].append(losses)
    written = [
        row
        for mode in memorize
        for segment in segments
        for row in _written(segment, model, context, mode, memory)
    ]
    names = tuple(segment.name for segment in segments)
    return ForgettingResult(
        matrices={
            mode: LossMatrix(names, tuple(phases), np.array(values))
            for mode, values in tables.items()
        },
        sources=tuple(label for label, _ in pairs),
        documents=tuple(len(segment.documents) for segment in segments),
        written=tuple(written),
        memory=memory,
    )


def _written(
    segment: Segment, model: nn.Module, context: EvalContext, mode: Memorize, memory: MemoryConfig
) -> list[EvalRow]:
    mark = context.tokenizer.eos_id
    texts = [(mark, *document.tokens) for document in segment.documents]
    return memory_rows("forgetting", segment.name, model, context, mode, memory, texts)
