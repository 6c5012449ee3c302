"""The whole chain, killed with SIGKILL at random moments and started again, on every executor.

Usage: python benchmarks/data_kill.py --kills 10 --output artifacts/data/kill.json

A trial starts the chain (raw files to shards) in an empty directory, kills it at a moment drawn
from the time that an undisturbed run took, starts it again until it ends, and compares every file
with those of an undisturbed run on one local worker. Every other trial kills the command alone and
not its workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_chain import ROOT, command_line, digests, machine

from nl.data.prep.stdlib import stdlib_documents

CONFIGURATIONS = {
    "local-1": ("local", 1),
    "local-2": ("local", 2),
    "ray-1": ("ray", 1),
    "ray-2": ("ray", 2),
}
RAW = {"local": (1.5, 4), "ray": (0.5, 1)}
"""Megabytes of raw text and files; less under Ray, which starts a process for every rank."""
PART_MB = {"local": 0.15, "ray": 0.3}
STAGES = ("ingest", "filter", "dedup", "divide", "shard")


@dataclass(frozen=True)
class Trial:
    """One kill."""

    configuration: str
    moment: float
    """Seconds after the start."""
    group: bool
    """Whether the workers were killed with the command."""
    stage: str
    """What was unfinished then."""
    seconds: float
    """Of the call that went on to the end."""
    left: tuple[str, ...]
    """Processes of the killed call that still ran after the second one ended."""
    different: tuple[str, ...]
    """Files that are not as in the undisturbed run."""


def write_raw(folder: Path, megabytes: float, files: int) -> Path:
    """Raw files from this Python's documentation, some lines twice."""
    folder.mkdir()
    left, rows = megabytes * 1e6, []
    for number, document in enumerate(stdlib_documents("prose")):
        left -= len(document.text)
        rows += [document.text] * (2 if number % 7 == 0 else 1)
        if left < 0:
            break
    for number in range(files):
        some = rows[number::files]
        text = "".join(json.dumps({"text": t}) + "\n" for t in some)
        (folder / f"{number}.jsonl").write_text(text)
    return folder


def start(raw: Path, output: Path, configuration: str, part_mb: float) -> subprocess.Popen[bytes]:
    kind, workers = CONFIGURATIONS[configuration]
    script = [sys.executable, str(ROOT / "benchmarks/data_chain.py"), str(raw), str(output)]
    flags = ["--executor", kind, "--workers", str(workers), "--part-mb", str(part_mb)]
    return subprocess.Popen(
        [*script, *flags, "--mem-per-cpu-gb", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> float:
    """Wait for the end; the seconds it took."""
    begin = time.perf_counter()
    _, errors = process.communicate(timeout=1800)
    if process.returncode:
        raise SystemExit(f"the chain failed: {errors.decode()[-2000:]}")
    return time.perf_counter() - begin


def standing(output: Path) -> str:
    """The stage that was at work: the one whose working directory is there."""
    for path in sorted(output.rglob(".*-*")):
        name = path.name[1:].partition("-")[0]
        if path.is_dir() and name in STAGES:
            steps = [d.name for d in path.iterdir() if (d / "engine").is_dir()]
            return name + (f" ({steps[-1]})" if steps else "")
    return "between stages" if output.exists() else "start"


def trial(
    ground: tuple[Path, dict[str, str], float], output: Path, name: str, moment: float, group: bool
) -> Trial:
    raw, reference, part_mb = ground
    process = start(raw, output, name, part_mb)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    at = standing(output)
    seconds = finish(start(raw, output, name, part_mb))
    left = alive(process.pid)
    if left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    found = digests(output)
    names = sorted(n for n in {*found, *reference} if found.get(n) != reference.get(n))
    return Trial(name, round(moment, 2), group, at, round(seconds, 2), tuple(left), tuple(names))


def alive(group: int) -> list[str]:
    """Names of the processes of a group that still run."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, tail = stat.read_text().rpartition(") ")
            state, _, pgid = tail.split()[:3]
            if int(pgid) == group and state != "Z":
                names.append(head.partition("(")[2])
    return sorted(names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--kills", type=int, default=10, help="per configuration (default: %(default)s)")
    flag("--configurations", nargs="*", default=[*CONFIGURATIONS], choices=[*CONFIGURATIONS])
    flag("--seed", type=int, default=1)
    flag("--output", type=Path, default=ROOT / "artifacts/data/kill.json")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.configurations:
            kind = CONFIGURATIONS[name][0]
            raw, reference = Path(folder) / f"raw-{kind}", Path(folder) / f"reference-{kind}"
            if not raw.exists():
                write_raw(raw, *RAW[kind])
                finish(start(raw, reference, "local-1", PART_MB[kind]))
            campaign(name, (raw, digests(reference), PART_MB[kind]), draw, args)


def campaign(
    name: str,
    ground: tuple[Path, dict[str, str], float],
    draw: random.Random,
    args: argparse.Namespace,
) -> None:
    """All trials of a configuration; the output keeps what it has of the others."""
    raw, reference, part_mb = ground
    kind, workers = CONFIGURATIONS[name]
    whole = raw.with_name(f"whole-{name}")
    undisturbed = finish(start(raw, whole, name, part_mb))
    assert digests(whole) == reference, f"{name}: an undisturbed run differs"
    trials = []
    for number in range(args.kills):
        moment = draw.uniform(0.02, 0.98) * undisturbed
        output = raw.with_name(f"{name}-{number}")
        trials.append(trial(ground, output, name, moment, number % 2 == 0))
        print(trials[-1], flush=True)
    row: dict[str, Any] = {
        "configuration": name,
        "executor": kind,
        "workers": workers,
        "undisturbed_seconds": round(undisturbed, 2),
        "kills": len(trials),
        "identical": sum(not t.different for t in trials),
        "commit": machine()["commit"],
    }
    old = json.loads(args.output.read_text()) if args.output.is_file() else {}
    rows = [r for r in old.get("rows", []) if r["configuration"] != name] + [row]
    others = [t for t in old.get("trials", []) if t["configuration"] != name]
    result = {
        "command": command_line(),
        "machine": machine(),
        "files_compared": old.get("files_compared", {}) | {kind: len(reference)},
        "rows": sorted(rows, key=lambda r: [*CONFIGURATIONS].index(r["configuration"])),
        "trials": others + [asdict(t) for t in trials],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(row, flush=True)


if __name__ == "__main__":
    main()
