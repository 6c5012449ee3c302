"""Sequential training by a plan: train what is missing, measure R, write JSON and CSV. Floor 8."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nl.cli_measure import check_output, load, memorize_modes, memory_settings
from nl.config import ConfigError, structure, unstructure
from nl.config.hydra import compose, file_hash, load_config, run_config
from nl.core.logs import get_logger
from nl.run.directory import RunDir
from nl.run.files import write_json

if TYPE_CHECKING:
    from nl.eval.sequential import ContinualPlan, Measured, Results, Trained

log = get_logger(__name__)


def sequential(options: argparse.Namespace) -> Results:
    """Run the plan of --plan: finished runs and measured matrices are kept.

    Raises:
        ConfigError: naming the plan's key, or what a run lacks.
        SystemExit: stopped by a signal; the run in progress was saved and the next call continues.
    """
    from nl.eval.rows import save_json
    from nl.eval.sequential import Results, write_csv

    plan = read_plan(options)
    check_output(options.output)
    options = argparse.Namespace(**{**vars(options), "memorize": memorize_modes(options)})
    found = []
    wanted = rows(plan, options)
    for number, (model, method, seed) in enumerate(wanted, 1):
        log.info("%d of %d: %s, %s, seed %d", number, len(wanted), model, method, seed)
        one = measured(plan, model, method, seed, options)
        if one is not None:
            found.append(one)
            result = Results(plan, tuple(found))
            record = {"plan": unstructure(plan), **provenance_of(options), **result.as_data()}
            save_json(options.output, record)
    result = Results(plan, tuple(found))
    write_csv(options.output.with_suffix(".matrix.csv"), result.cells())
    write_csv(options.output.with_suffix(".metrics.csv"), result.summary())
    return result


def provenance_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on beside the plan."""
    from nl.run.provenance import provenance

    memory = {"modes": options.memorize, **memory_settings(options)}
    return {"memory": memory, "seed": options.seed, "provenance": provenance()}


def read_plan(options: argparse.Namespace) -> ContinualPlan:
    """The plan, --data put in, all of its runs composed once.

    Raises:
        ConfigError: naming the key, or the run that does not compose.
    """
    from nl.eval.sequential import ContinualPlan

    data = load_config(Path(options.plan))
    if options.data:
        data = {**data, "path": str(options.data)}
    plan = structure(ContinualPlan, data, "")
    plan.trained()
    known = {f"{model}/{method}" for model, method in plan.pairs()}
    wrong = sorted(set(options.only or ()) - known)
    if wrong:
        raise ConfigError(f"--only: {', '.join(wrong)}; this plan has {', '.join(sorted(known))}.")
    for model, method, seed in rows(plan, options):
        if seed == plan.seeds[0]:
            trainings(plan, model, method, seed)
    return plan


def rows(plan: ContinualPlan, options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(model, method, seed), all rows of one seed before the next."""
    pairs = [p for p in plan.pairs() if not options.only or "/".join(p) in options.only]
    seeds = plan.seeds[: options.seeds] if options.seeds else plan.seeds
    return [(model, method, seed) for seed in seeds for model, method in pairs]


def trainings(plan: ContinualPlan, model: str, method: str, seed: int) -> list[Trained]:
    """The training runs of one row, each composed and checked.

    Raises:
        ConfigError: naming the row.
    """
    import nl.assembly  # noqa: F401 - registers every part
    from nl.eval.sequential import planned_runs

    try:
        # What a step reads is decided by the overrides, whatever the stream is.
        told = (*plan.overrides, *plan.models[model], *plan.methods[method].overrides)
        kind = "shards" if plan.methods[method].order == "joint" else plan.methods[method].stream
        base = compose(plan.config, [f"stream={kind}", *told])
        stream, accum = base["stream"], int(base["train"]["grad_accum"])
        tokens = int(stream["batch_size"]) * int(stream["seq_len"]) * accum
        found = planned_runs(plan, model, method, seed, tokens_per_step=tokens, accum=accum)
        for one in found:
            run_config(compose(plan.config, [*one.overrides]))
    except ConfigError as error:
        raise ConfigError(f"{model}/{method}: {error}") from error
    return found


def measured(
    plan: ContinualPlan, model: str, method: str, seed: int, options: argparse.Namespace
) -> Measured | None:
    """Train and measure one row; None where --report-only finds it unfinished."""
    from nl.eval.sequential import Measured

    places: list[Path] = []
    values: dict[Any, list[list[float]]] = {}
    written: list[dict[str, Any]] = []
    seconds: list[float | None] = []
    for one in trainings(plan, model, method, seed):
        home = train(plan, one, options)
        if home is None:
            return None
        record = measure(plan, home, one.ends, options)
        seconds.append(spent(home))
        for mode, losses in record["nats_per_token"].items():
            values[mode] = [*values.get(mode, losses[:1]), *losses[1:]]
        written = record["written"]
        places.append(home)
    return Measured(
        model=model,
        method=method,
        seed=seed,
        order=plan.methods[method].order,
        runs=tuple(map(str, places)),
        parameters=json.loads(RunDir(places[-1]).meta.read_text())["parameters"],
        cpu_seconds=None if None in seconds else sum(s for s in seconds if s is not None),
        values=values,
        written=tuple(written),
    )


def usage(home: Path) -> Path:
    """Where the CPU time of a run's training is kept."""
    return RunDir(home).artifacts / "continual_usage.json"


def spent(home: Path) -> float | None:
    """CPU seconds of a run's training so far; None where they were not kept."""
    kept = usage(home)
    return float(json.loads(kept.read_text())["cpu_seconds"]) if kept.is_file() else None


def train(plan: ContinualPlan, one: Trained, options: argparse.Namespace) -> Path | None:
    """The run directory of a finished run, trained or continued where it is not finished yet."""
    from nl.assembly import launch
    from nl.config.run import config_hash
    from nl.run.discover import newest_run

    place = (f"run.root={options.root}", f"name={one.name}", "resume=auto")
    told = [*one.overrides, *place]
    run = run_config(compose(plan.config, told))
    known = newest_run(Path(options.root) / one.name, config_hash(run), file_hash)
    if known is not None and known.finished():
        return known.path
    if options.report_only:
        return None
    start = time.process_time()
    try:
        with arguments(told):
            return launch(run)
    finally:
        known = newest_run(Path(options.root) / one.name, config_hash(run), file_hash)
        if known is not None:
            seconds = (spent(known.path) or 0.0) + time.process_time() - start
            write_json(usage(known.path), {"cpu_seconds": seconds})


@contextmanager
def arguments(told: list[str]) -> Iterator[None]:
    """The run directory keeps these as what was typed."""
    before = sys.argv
    sys.argv = [before[0], *told]
    try:
        yield
    finally:
        sys.argv = before


def measure(
    plan: ContinualPlan, home: Path, ends: tuple[int, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """R of one run, row init first, from the checkpoints at ``ends``; kept beside the run.

    Raises:
        ConfigError: a checkpoint is missing or damaged.
    """
    from nl.eval.memorize import MemoryConfig

    memory = structure(MemoryConfig, memory_settings(options), "memory")
    facts = {
        "segments": [unstructure(spec) for spec in plan.columns()],
        "documents": plan.documents,
        "max_tokens": plan.max_tokens,
        "modes": list(options.memorize),
        "memory": unstructure(memory),
        "seed": options.seed,
        "ends": list(ends),
        "data": hashlib.sha256((Path(plan.path) / "manifest.json").read_bytes()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    kept = RunDir(home).artifacts / f"continual_{key}.json"
    if kept.is_file():
        record: dict[str, Any] = json.loads(kept.read_text())
        return record
    found = _matrix(plan, home, ends, options, memory)
    write_json(kept, {"measured": facts, **found})
    return found


def _matrix(
    plan: ContinualPlan,
    home: Path,
    ends: tuple[int, ...],
    options: argparse.Namespace,
    memory: Any,
) -> dict[str, Any]:
    """The rows of R per memorisation mode, and what the last model's memories were written."""
    from nl.cli_continual import models, read_segments
    from nl.eval.forgetting import evaluate_segments
    from nl.eval.memorize import memory_rows
    from nl.eval.suite import as_record

    paths = [str(RunDir(home).checkpoints / f"step_{step:06d}") for step in ends]
    options = argparse.Namespace(**{**vars(options), "data": plan.path, "no_initial": False})
    first = load(options, paths[0])
    limits = {"max_batches": plan.documents, "batch_size": 1, "max_tokens": plan.max_tokens}
    segments = read_segments(plan, first.context, argparse.Namespace(**limits))
    table: dict[str, list[list[float]]] = {mode: [] for mode in options.memorize}
    for _, build in models(options, paths, first, len(paths)):
        model = build()
        idle = not getattr(model, "memory_paths", lambda: ["unknown"])()
        known: list[float] | None = None
        for mode in options.memorize:
            # Without memories there is nothing to write: all modes but oracle are one.
            row = known if idle and mode != "oracle" else None
            if row is None:
                context = first.context
                row = evaluate_segments(model, segments, context, memorize=mode, memory=memory)
            known = row if mode != "oracle" else known
            table[mode].append(row)
    mark = first.context.tokenizer.eos_id
    written = []
    for mode in options.memorize:
        for segment in segments:
            texts = [(mark, *document.tokens) for document in segment.documents]
            place = (model, first.context, mode, memory, texts)
            found = memory_rows("continual", segment.name, *place)
            written += [as_record(row, ends[-1]) for row in found]
    return {"nats_per_token": table, "written": written}
