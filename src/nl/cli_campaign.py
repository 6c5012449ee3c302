"""``nl sweep``: many runs from one file, on slots, Slurm or Ray. Floor 8."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.config.hydra import config_dir
from nl.config.run import RunConfig
from nl.run import write_atomic
from nl.run.files import writable_folder
from nl.run.provenance import provenance
from nl.sweep.backends import backend_of, program, visible_gpus
from nl.sweep.display import Display, clock
from nl.sweep.job import Job
from nl.sweep.make import JobMaker
from nl.sweep.results import Row, scan, write_results, write_summaries, write_yaml
from nl.sweep.runner import Lock, Runner
from nl.sweep.search import Trials, first_values
from nl.sweep.slots import Place
from nl.sweep.spec import Experiment, Goal, SweepSpec, expand, read_spec, seeds_of

FAILED = 1
METADATA = "sweep_metadata.yaml"
LAUNCHERS = {
    "train.py": "single",
    "train_dist.py": "ddp",
    "train_fsdp.py": "fsdp2",
    "train_deepspeed.py": "deepspeed",
}
"""Strategies by the name of their launcher."""
PLACE = ("backend", "slots", "gpus", "cpus", "minutes", "memory_gb", "partition", "address")
"""Options that say where jobs run."""


def sweep(options: argparse.Namespace) -> int:
    """Run a sweep file, or go on with one.

    Returns:
        0 when every job is done, 1 when some failed, 130 or 143 after a signal.
    """
    import nl.assembly  # noqa: F401 - registers the parts that configurations name
    from nl.train.hooks.stop import StopSignals, exit_code

    path = Path(options.file)
    place = "--output" if options.output else "--root"
    writable_folder(Path(options.output or options.root), place)
    spec = read_spec(path)
    slots = _place(options)
    command = program(shlex.split(spec.launcher), config_dir().parent)
    maker = JobMaker(spec, command)
    experiments = _experiments(spec, maker)
    maker.check(experiments, fitting(Path(command[-1])))
    if options.dry_run:
        return _dry_run(maker, experiments, Path(options.output or "<sweep>"))
    root = _root(options, path)
    lock, display = Lock(root), Display(options.eta)
    try:
        backend = backend_of(slots, root)
        _describe(root, path, maker, experiments)
        with StopSignals("the jobs are asked to save and stop") as stop:
            runner = Runner(
                root,
                backend,
                retries=spec.retries,
                retry_failed=options.retry_failed,
                tell=display.tell,
                show=display.show,
                stopping=lambda: stop.received != 0,
            )
            if spec.search is None:
                jobs = [job for one in experiments for job in maker.jobs(one, root)]
                write_results(root, scan(jobs))
                runner.run(jobs)
            else:
                jobs = _search(root, maker, runner, lambda: stop.received != 0)
        backend.close()
        display.close()
        rows = scan(jobs)
        write_results(root, rows)
        write_summaries(root, rows)
    finally:
        lock.release()
    _print_end(root, rows, spec.goal)
    if stop.received:
        print(f"stopped; go on: {again(options, root)}", file=sys.stderr)
        return exit_code(stop.received)
    return 0 if all(row["status"] == "done" for row in rows) else FAILED


def fitting(launcher: Path) -> Callable[[RunConfig], None]:
    """What a launcher asks of a configuration before it trains, but devices and other ranks.

    A run whose data directory is not on this machine is left to its launcher, which is said once.
    """
    import torch

    from nl.assembly import check, strategy_class
    from nl.dist.origin import resolve_model

    name = LAUNCHERS.get(launcher.name)
    absent: set[Path] = set()

    def fits(run: RunConfig) -> None:
        stream: Any = run.stream
        path = getattr(stream, "path", None)
        if name is None:
            return
        if path is not None and not (manifest := Path(path) / "manifest.json").is_file():
            if manifest not in absent:
                print(f"{manifest}: not here, so whether runs fit it is not known", file=sys.stderr)
            absent.add(manifest)
            return
        check(resolve_model(run), strategy_class(name)(torch.device("cpu")))

    return fits


def _place(options: argparse.Namespace) -> Place:
    return Place(
        kind=options.backend,
        slots=options.slots,
        gpus=visible_gpus(options.gpus, here=options.backend in ("local", "warm")),
        cpus=options.cpus,
        minutes=options.minutes,
        memory_gb=options.memory_gb,
        partition=options.partition,
        address=options.address,
    )


def _experiments(spec: SweepSpec, maker: JobMaker) -> list[Experiment]:
    """What is known before the start: all of it, or for a search one combination to check."""
    if spec.search is None:
        return expand(spec)
    values = first_values(spec.search)
    return [Experiment("trial_0000", maker.shared | values, values)]


def _search(root: Path, maker: JobMaker, runner: Runner, stopping: Callable[[], bool]) -> list[Job]:
    """Ask, run, tell, until the trials are used up; returns the jobs of all of them."""
    spec = maker.spec
    assert spec.search is not None
    trials = Trials(root, spec.search, spec.goal, maker.shared)
    at_once = max(1, runner.backend.slots // len(seeds_of(spec)))
    while not stopping() and (asked := trials.ask(at_once)):
        by_trial = [(one, maker.jobs(one, root)) for one in asked]
        runner.run([job for _, jobs in by_trial for job in jobs])
        for one, jobs in by_trial:
            rows = scan(jobs)
            if all(row["status"] in ("done", "failed", "broken") for row in rows):
                value = trials.tell(one, rows)
                told = "failed" if value is None else f"{spec.goal.name} {value:.4f}"
                runner.tell(f"{one.name}: {told}, {one.columns}")
    if best := trials.best():
        write_yaml(root / "best.yaml", best)
        runner.tell(f"best: {best}")
    return [job for one in trials.asked() for job in maker.jobs(one, root)]


def _root(options: argparse.Namespace, path: Path) -> Path:
    """The sweep's directory: named, the newest of this file with --resume, or a new one.

    Raises:
        ConfigError: nothing to resume, or a directory that is no sweep's.
    """
    if options.output and options.resume:
        raise ConfigError("--resume: names the newest directory, --output another; give one.")
    if options.output:
        root = Path(options.output)
        if root.is_dir() and any(root.iterdir()) and not (root / METADATA).is_file():
            raise ConfigError(f"--output: {root} holds other files; choose an empty or new place.")
        return root
    base = Path(options.root)
    if options.resume:
        found = sorted(p.parent for p in base.glob(f"{path.stem}_*/{METADATA}"))
        if not found:
            raise ConfigError(f"--resume: no sweep of {path.name} below {base}; leave it out.")
        return found[-1]
    stem = f"{path.stem}_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}"
    root, n = base / stem, 1
    while root.exists():
        n += 1
        root = base / f"{stem}-{n}"
    return root


def _describe(root: Path, path: Path, maker: JobMaker, experiments: list[Experiment]) -> None:
    """The file as given, what it means, and one resolved configuration per experiment."""
    spec, search = maker.spec, maker.spec.search
    (root / "configs").mkdir(parents=True, exist_ok=True)
    write_atomic(root / "sweep.yaml", path.read_text())
    count = len(experiments) if search is None else search.trials
    write_yaml(
        root / METADATA,
        {
            "sweep_name": root.name,
            "sweep_file": path.name,
            "base_config_file": spec.base_config,
            "launcher": spec.launcher,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "experiments": [] if search else [one.name for one in experiments],
            "n_experiments": count,
            "seeds": list(seeds_of(spec)),
            "n_seeds": len(seeds_of(spec)),
            "total_runs": count * len(seeds_of(spec)),
            "goal": {"name": spec.goal.name, "direction": spec.goal.direction},
            "code": provenance(),
        },
    )
    if search is None:
        for one in experiments:
            write_yaml(root / "configs" / f"{one.name}_config.yaml", maker.resolved(one))


def _dry_run(maker: JobMaker, experiments: list[Experiment], root: Path) -> int:
    """Print every command of a sweep in ``root``."""
    for one in experiments:
        for job in maker.jobs(one, root):
            print(shlex.join(job.command))
    count = sum(1 for _ in experiments) * len(seeds_of(maker.spec))
    print(f"{count} jobs; nothing was run", file=sys.stderr)
    return 0


def _print_end(root: Path, rows: list[Row], goal: Goal) -> None:
    """Counts, and the experiments in order of the goal."""
    from nl.bench.show import aligned
    from nl.sweep.results import summary

    whole = summary(rows)
    lines = [["experiment", "done", goal.name, "95 %"]]
    ranked = []
    for name, found in whole["experiment_statistics"].items():
        spread = found["statistics"].get(goal.name)
        done = f"{found['successful_runs']} of {found['total_runs']}"
        if spread is None:
            ranked.append((float("inf"), [name, done, "-", "-"]))
            continue
        half = "-" if spread["ci95"] is None else f"+- {spread['ci95']:.4f}"
        sign = 1 if goal.direction == "minimize" else -1
        ranked.append((sign * spread["mean"], [name, done, f"{spread['mean']:.4f}", half]))
    print(aligned([*lines, *(line for _, line in sorted(ranked))]))
    print(
        f"{whole['total_successful_runs']} of {whole['total_runs']} runs done, "
        f"{whole['total_failed_runs']} failed{_cpu(whole)}; results: {root / 'results.csv'}"
    )


def _cpu(whole: dict[str, Any]) -> str:
    """What all runs took together, where it was counted."""
    seconds = whole["total_cpu_seconds"]
    return "" if seconds is None else f", {clock(seconds)} of CPU time"


def again(options: argparse.Namespace, root: Path) -> str:
    """The command that goes on where and as this one ran."""
    words = ["nl", "sweep", options.file, "--output", str(root)]
    for name in PLACE:
        if (value := getattr(options, name)) != options.defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
