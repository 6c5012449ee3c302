"""What a sweep costs beyond its jobs: cores kept busy, seconds between the jobs of a slot.

Runs one sweep of short jobs on every backend of this machine and reads what the runs recorded. A
job's own time is from its run directory (made after imports and the composition of its
configuration) to its last status; from there to the next job's run directory is overhead.

Example: python benchmarks/slots.py --jobs 20 --slots 2
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import study

BACKENDS = ("warm", "local")
REPEATS = 7
BEFORE = (
    "Before launchers composed once: 0.39 s (warm) and 0.42 s (local) of other overhead, 1.81 and "
    "1.89 cores, 20 jobs on 2 slots of an otherwise quiet machine of 2 cores; those seconds hold "
    "what a slot waits at the end while the other still works, too. Before launchers ended "
    "without taking Python down: 0.37 s of other overhead (local) and 4.35 s of imports."
)
"""What this page said when every job was composed twice."""
COMMAND = (
    *("--config-name", "pilot_smoke", "experiment=recall/pairs8", "model=hope_smoke"),
    *("train.steps=120", "train.validate_every=120", "train.threads=1", "checkpoint.export=false"),
    *("seed=1", "run.dir=/nowhere/out/job/seed_1", "resume=auto"),
)
"""What a job of the sweep is told."""
STEPS = 120
IMPORTS = (
    "import torch._dynamo, nl.assembly, nl.config.hydra, nl.run.ending\n"
    "nl.assembly.publish(); nl.config.hydra.find_plugins(); nl.run.ending.leave(0)"
)
"""What every launcher does before it reads its command line; Hydra imports its plugins."""
WORK = "import torch; torch.set_num_threads(1); a = torch.ones(256, 256)\nwhile True: a @ a"


@dataclass(frozen=True)
class Measured:
    """One sweep on one backend; seconds."""

    backend: str
    jobs: int
    slots: int
    own: float
    """Mean of a job's own time."""
    between: float
    """Mean of a slot's time per job beyond the job's own time."""
    imports: float
    """Of the ``between`` seconds: what a job needs to import torch and ``nl``."""
    cores: float
    """CPU seconds per second, from the sweep's call to its end."""
    cpu: float
    """CPU seconds of a job, mean."""
    import_cpu: float
    """Of these, what it needs to import torch and ``nl``."""

    @property
    def other_cpu(self) -> float:
        """``between`` without imports, as CPU seconds: its share of the slot's time by ``cpu``."""
        return self.between / (self.own + self.between) * self.cpu - self.import_cpu


def sweep_file(folder: Path, jobs: int) -> Path:
    """A sweep of ``jobs`` short runs of one configuration."""
    path = folder / "jobs.yaml"
    path.write_text(
        f"base_config: pilot_smoke\nn_seeds: {jobs}\n"
        "global_overrides:\n"
        "  experiment: recall/pairs8\n"
        f"  train: {{steps: {STEPS}, validate_every: {STEPS}, threads: 1}}\n"
        "  checkpoint: {export: false}\n"
        "experiments: [{name: job, overrides: {model: hope_smoke}}]\n"
    )
    return path


def import_seconds(slots: int) -> tuple[float, float]:
    """Means of some: a process that imports what every launcher imports, and no more.

    Every other slot works meanwhile, as in a sweep, where one job imports beside others that
    train.

    Returns:
        Seconds of the clock, and of CPU, of the process.
    """
    taken, used = [], []
    working = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(slots - 1)]
    try:
        for _ in range(REPEATS):
            begun = time.monotonic()
            process = subprocess.Popen([sys.executable, "-c", IMPORTS])
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
            taken.append(time.monotonic() - begun)
            used.append(usage.ru_utime + usage.ru_stime)
    finally:
        for other in working:
            other.kill()
            other.wait()
    return statistics.fmean(taken), statistics.fmean(used)


def gap(spans: list[tuple[float, float]], slots: int) -> float:
    """Mean seconds from a job's end to the beginning of the next one in its slot.

    A slot begins its next job when one of its jobs has ended, so that the k-th beginning after
    the first of every slot follows the k-th end. What a slot waits at the very end, while another
    one still works, belongs to no job.
    """
    begins, ends = (sorted(column) for column in zip(*spans, strict=True))
    return statistics.fmean(
        begin - end for begin, end in zip(begins[slots:], ends[:-slots], strict=True)
    )


def measure(backend: str, jobs: int, slots: int, imports: tuple[float, float]) -> Measured:
    """Run the sweep once."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        command = [sys.executable, "-m", "nl", "sweep", str(sweep_file(root, jobs))]
        command += ["--backend", backend, "--slots", str(slots), "--output", str(root / "out")]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spans = []
        for run in sorted((root / "out" / "job").glob("seed_*/")):
            meta = json.loads((run / "meta.json").read_text())
            status = json.loads((run / "status.json").read_text())
            spans.append((meta["started"], status["updated"]))
        lines = (root / "out" / "results.jsonl").read_text().splitlines()
        cpu = statistics.fmean(json.loads(line)["cpu_seconds"] for line in lines)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own = statistics.fmean(end - start for start, end in spans)
    between = gap(spans, slots)
    part, part_cpu = imports if backend == "local" else (0.0, 0.0)
    return Measured(backend, jobs, slots, own, between, part, used / wall, cpu, part_cpu)


def cost(action: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process, and of processes it waits for: medians of some calls."""
    own, others = [], []
    for _ in range(REPEATS):
        before, waited = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        action()
        own.append(time.process_time() - before)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - waited.ru_utime - waited.ru_stime
        others.append(used)
    return statistics.median(own), statistics.median(others)


def parts() -> list[list[str]]:
    """CPU milliseconds of what a warm job does before its run directory, and of its end."""
    import hydra
    import torch._dynamo  # noqa: F401 - the server of the warm backend has it

    import nl.assembly
    from nl.config.hydra import config_dir, find_plugins, quoted, start
    from nl.run.provenance import provenance

    nl.assembly.publish()
    find_plugins()
    options = {"config_path": str(config_dir()), "config_name": "pilot"}
    nothing = hydra.main(version_base="1.3", **options)(lambda _: None)

    def called(configs: Path) -> None:
        told, sys.argv = sys.argv, ["train.py", *COMMAND]
        start(nothing, configs)
        sys.argv = told

    def forked() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def unpublished() -> None:
        nl.config.hydra._published.clear()
        nl.assembly.publish()

    actions: list[tuple[str, Callable[[], object]]] = [
        ("reading the command line", lambda: quoted(COMMAND)),
        ("handing defaults to Hydra, as before: in every job", unpublished),
        ("handing defaults to Hydra: what it has is left alone", nl.assembly.publish),
        ("composing as before, by `hydra.main`: twice", lambda: called(Path("/nowhere"))),
        ("composing", lambda: called(config_dir())),
        ("git, versions, platform for meta.json", provenance),
        ("a fork that ends at once", forked),
    ]
    gc.collect()
    gc.freeze()  # as the server of the warm backend does
    return [[name, *(f"{1000 * seconds:.0f} ms" for seconds in cost(do))] for name, do in actions]


def page(rows: list[Measured], pieces: list[list[str]]) -> list[str]:
    """The report."""
    head = ["backend", "jobs", "slots", "own time of a job", "imports", "other overhead", "cores"]
    head += ["CPU time of a job", "of it imports", "of it other overhead"]
    lines = [
        [
            row.backend,
            str(row.jobs),
            str(row.slots),
            f"{row.own:.2f} s",
            f"{row.imports:.2f} s",
            f"{row.between - row.imports:.2f} s",
            f"{row.cores:.2f}",
            f"{row.cpu:.2f} s",
            f"{row.import_cpu:.2f} s",
            f"{row.other_cpu:.2f} s",
        ]
        for row in rows
    ]
    return [
        "# What a sweep costs beyond its jobs",
        "",
        f"Made by `{study.call('slots')}` on {os.cpu_count()} cores.",
        "",
        "Own time: from the run directory to the last status. Overhead: from there to the next run",
        "directory in the same slot (end of a process, noticing it, start of the next one,",
        "composing the configuration, building the model). Imports: what they take by themselves,",
        "in a process beside as many that work as there are other slots. Cores: CPU seconds of the",
        "sweep and all its jobs per second of the whole call, its own imports included. Wanted:",
        "1.8 of 2 cores with 20 jobs on 2 slots, overhead of at most 0.3 s after imports.",
        "",
        *study.table(head, lines),
        f"When this was written {os.getloadavg()[0]:.0f} processes wanted a core. With more than "
        "the sweep's own, seconds of the clock are longer than on a quiet machine. CPU times are "
        "less disturbed: the overhead's is its share of the slot's time, of the job's CPU time.",
        "",
        BEFORE,
        "",
        f"Parts, CPU time, medians of {REPEATS}; a job does each once, and of two that say before "
        "and now one.",
        *study.table(["part", "the job's process", "processes it starts"], pieces),
    ]


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20, help="jobs of a sweep (20)")
    parser.add_argument("--slots", type=int, default=2, help="at once (2)")
    parser.add_argument("--output", type=Path, default=Path("reports/slots.md"), help="the page")
    args = parser.parse_args()
    if args.jobs <= args.slots or args.slots < 1:
        parser.error(f"--jobs: {args.jobs}; must be more than --slots {args.slots}, at least 1.")
    imports = import_seconds(args.slots)
    rows = [measure(name, args.jobs, args.slots, imports) for name in BACKENDS]
    study.save_page(args.output, page(rows, parts()))
    for row in rows:
        print(json.dumps(row.__dict__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
