"""What a sweep costs beyond its jobs: cores kept busy, seconds between the jobs of a slot.

Runs one sweep of short jobs on every backend of this machine and reads what the runs recorded. A
job's own time is from its run directory (made after imports and the composition of its
configuration) to its last status; the rest of its slot's time is overhead.

Example: python benchmarks/slots.py --jobs 20 --slots 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import study

BACKENDS = ("warm", "local")
STEPS = 60
IMPORTS = "import torch._dynamo, nl.assembly; nl.assembly.publish()"


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


def import_seconds() -> float:
    """Median of three: a process that imports what every launcher imports, and no more."""
    taken = []
    for _ in range(3):
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        taken.append(time.monotonic() - begun)
    return statistics.median(taken)


def measure(backend: str, jobs: int, slots: int, imports: float) -> Measured:
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
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own = statistics.fmean(end - start for start, end in spans)
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    between = (slots * (last - first) - own * jobs) / (jobs - slots)
    part = imports if backend == "local" else 0.0
    return Measured(backend, jobs, slots, own, between, part, used / wall)


def page(rows: list[Measured]) -> list[str]:
    """The report."""
    head = ["backend", "jobs", "slots", "own time of a job", "imports", "other overhead", "cores"]
    lines = [
        [
            row.backend,
            str(row.jobs),
            str(row.slots),
            f"{row.own:.2f} s",
            f"{row.imports:.2f} s",
            f"{row.between - row.imports:.2f} s",
            f"{row.cores:.2f}",
        ]
        for row in rows
    ]
    return [
        "# What a sweep costs beyond its jobs",
        "",
        f"Made by `{study.call('slots')}` on {os.cpu_count()} cores.",
        "",
        "Own time: from the run directory to the last status. Overhead: what is left of a slot's",
        "time per job, between jobs (start of a process, composing the configuration, building",
        "data and model, noticing the end). Imports: measured alone. Cores: CPU seconds of the",
        "sweep and all its jobs per second of the whole call, its own imports included. Wanted:",
        "1.8 of 2 cores with 20 jobs on 2 slots, overhead of at most 0.3 s after imports.",
        "",
        *study.table(head, lines),
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
    imports = import_seconds()
    rows = [measure(name, args.jobs, args.slots, imports) for name in BACKENDS]
    study.save_page(args.output, page(rows))
    for row in rows:
        print(json.dumps(row.__dict__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
