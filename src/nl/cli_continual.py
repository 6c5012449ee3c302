"""Forgetting of a sequential run: its checkpoints over segments, as a matrix. Floor 8."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nl.cli_measure import Loaded, load, memorize_modes, memory_settings
from nl.config import ConfigError, structure
from nl.config.hydra import load_config
from nl.config.run import RunConfig
from nl.run.directory import RunDir
from nl.run.discover import checkpoints

if TYPE_CHECKING:
    from nl.eval.context import EvalContext
    from nl.eval.forgetting import Segment, SegmentsFile
    from nl.eval.sequential import ContinualPlan

Rows = list[tuple[str, Callable[[], Any]]]


def continual(options: argparse.Namespace) -> None:
    """Measure R over --checkpoints, or run --plan; print it, write it to --output.

    Raises:
        ConfigError: what is asked for is not said, or said twice.
    """
    given = bool(options.plan), bool(options.checkpoints)
    if given[0] == given[1]:
        raise ConfigError("--plan, --checkpoints: give one of the two.")
    if options.plan:
        from nl.cli_sequential import sequential

        print(sequential(options).table())
        print(f"written: {options.output}")
        return
    if not options.segments_yaml:
        raise ConfigError("--segments-yaml: missing; it names the columns of --checkpoints.")
    from nl.eval.forgetting import SegmentsFile, forgetting_matrix
    from nl.eval.memorize import MemoryConfig
    from nl.eval.rows import save_json
    from nl.eval.suite import as_record, facts

    plan = structure(SegmentsFile, load_config(Path(options.segments_yaml)), "")
    paths = phase_ends(options.checkpoints)
    first = load(options, paths[0])
    phases = phases_of(plan, first.run)
    segments = read_segments(plan, first.context, options)
    rows = models(options, paths, first, len(phases))
    memory = structure(MemoryConfig, memory_settings(options), "memory")
    context, modes = first.context, memorize_modes(options)
    result = forgetting_matrix(rows, segments, phases, context, modes, memory)
    record = {
        "checkpoints": paths,
        **facts(context),
        **result.as_data(),
        "rows": [as_record(row, None) for row in result.rows()],
    }
    save_json(options.output, record)
    print(result.table())
    print(f"written: {options.output}")


def phase_ends(given: list[str]) -> list[str]:
    """The checkpoints as given; a single run directory means the ends of its phases.

    Raises:
        ConfigError: a checkpoint at the end of a phase is missing.
    """
    run_path = Path(given[0])
    if len(given) > 1 or not RunDir.holds_run(run_path):
        return given
    import nl.assembly  # noqa: F401 - registers every part
    from nl.config.hydra import run_config

    run = run_config(load_config(run_path / "config.yaml"))
    known = {path.name: str(path) for path in checkpoints(run_path)}
    steps: Any = [phase.steps for phase in getattr(run.stream, "phases", ())]
    if not steps:
        return given
    ends = [total // run.train.grad_accum for total in accumulate(steps)]
    missing = [step for step in ends if f"step_{step:06d}" not in known]
    if missing:
        raise ConfigError(
            f"{run_path}: no checkpoint at step {missing[0]}, the end of a phase; train with "
            f"checkpoint.keep=0 and checkpoint.at={ends}."
        )
    return [known[f"step_{step:06d}"] for step in ends]


def phases_of(plan: SegmentsFile, run: RunConfig) -> tuple[str, ...]:
    """Segments in the order they were trained: the file's, else the run's, else each once."""
    if plan.phases is not None:
        return plan.phases
    names = {segment.domain or segment.name: segment.name for segment in plan.segments}
    domains = [phase.domain for phase in getattr(run.stream, "phases", ())]
    if domains and all(domain in names for domain in domains):
        return tuple(names[domain] for domain in domains)
    return tuple(segment.name for segment in plan.segments)


def read_segments(
    plan: SegmentsFile | ContinualPlan, context: EvalContext, options: argparse.Namespace
) -> list[Segment]:
    """The held-out documents of every segment.

    Raises:
        ConfigError: missing data, or data of another tokenizer.
    """
    from nl.assembly import evaluation_context
    from nl.eval.forgetting import Segment, SegmentsFile
    from nl.eval.perplexity import sample_documents

    found = []
    specs = plan.segments if isinstance(plan, SegmentsFile) else plan.columns()
    for spec in specs:
        own = context
        if spec.shards_dir is not None:
            corpus = evaluation_context(spec.shards_dir, context.output).corpus
            own = replace(context, corpus=corpus)
        documents = sample_documents(
            own,
            spec.split,
            spec.domain or spec.name,
            max_documents=(spec.max_batches or options.max_batches) * options.batch_size,
            max_tokens=options.max_tokens,
        )
        found.append(Segment(spec.name, tuple(documents)))
    return found


def models(options: argparse.Namespace, paths: list[str], first: Loaded, num_phases: int) -> Rows:
    """Loaders in order of training; the untrained model first, unless it is among the paths."""
    from nl.assembly import build_objective, load_model

    def initial() -> Any:
        built: Any = build_objective(first.run)
        return built.model.to(options.device).eval()

    def loader(path: str) -> Callable[[], Any]:
        return lambda: load_model(path).to(options.device)

    rows: Rows = [(path, loader(path)) for path in paths]
    if len(paths) == num_phases and not options.no_initial:
        rows.insert(0, (f"initial weights (seed {first.run.seed})", initial))
    return rows
