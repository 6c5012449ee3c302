"""The fault campaign: damage runs in every way we know, and count what they survive.

Usage: python benchmarks/faults.py --share 0.1 --rows 1 3 14 --output reports/faults
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path

import faults_files as files
import faults_kill as kill
import faults_loop as loop
import tiny
import torch
from faults_ground import Ground

import nl.assembly

OPS = "tests/unit/ops"
LAWS = "tests/laws"


@dataclass(frozen=True)
class Row:
    """One kind of fault."""

    fault: str
    trials: int
    criterion: str
    run: Callable[[Ground, int], list[str]] | None = None
    tests: tuple[str, ...] = ()
    note: str = ""


FOUND = """## What it found

Faults of earlier versions, each mended with a test, and the row run again:

- Row 12: after a kill inside a period one parameter was off by one unit in the last place. Tensors
  read from a safetensors file may begin at any byte, and sums over such memory round otherwise;
  they are copied to aligned memory now.
- Row 3: when rank 0 was killed between the last step and its summary, the other rank ended with
  exit code 0.
- Row 5: a manifest without its last byte was taken for whole.
- Row 23: JSON with an integer of 5000 digits, and JSON or YAML of great depth, ended in a
  traceback; YAML aliases could unfold without bound.
- Rows 8 and 29: a full disk under metrics.jsonl ended the run, or left half a row in the middle
  of the file, where readers stopped."""

RESUMES = "resumes bit by bit; nothing promised is lost"
ROWS = {
    1: Row("SIGKILL while saving", 100, RESUMES, kill.kill_saving),
    2: Row("the same, asynchronous save", 100, RESUMES, kill.kill_saving_asynchronously),
    3: Row("SIGKILL of one of two ranks", 30, "the other ends within 60 s", kill.kill_one_rank),
    4: Row("SIGKILL at a rename or deletion", 50, RESUMES, kill.kill_in_retention),
    5: Row("files cut short", 28, "named, previous checkpoint taken", files.cut_files),
    6: Row("one bit flipped", 500, "named, previous checkpoint taken", files.flip_bits),
    7: Row("files deleted, replaced, swapped", 20, "detected", files.move_files),
    8: Row(
        "disk full, EIO on fsync, no new folder",
        75,
        "training goes on, or ends and resumes bit by bit",
        kill.disk_refuses,
        note="A read-only folder is an mkdir that fails (EROFS): permissions do not bind root.",
    ),
    9: Row("slow disk", 5, "one save at a time, same numbers", kill.slow_disk),
    10: Row("resumed at steps 1 to 20, to step 40", 20, "bitwise", loop.resume_everywhere),
    11: Row("resumed again and again, and with more steps", 5, "bitwise", loop.resume_again),
    12: Row("SIGKILL inside a group and a period", 10, "bitwise", loop.killed_inside),
    13: Row(
        "world size 1, 2, 4, 1 (DDP, FSDP2)",
        6,
        "same order, loss within 1e-5",
        loop.other_worlds,
        note="Optimizer moments are compared where the files hold them whole (DDP).",
    ),
    14: Row(
        "SIGTERM at a random batch, 1 and 2 ranks", 50, "saved there, bitwise", kill.stop_by_signal
    ),
    15: Row("second signal during that save", 10, "ends within 2 s", kill.second_signal),
    16: Row(
        "SIGSTOP 30 s, then SIGCONT, one of two ranks",
        3,
        "the run goes on, same numbers",
        kill.stopped_process,
        note="8 s at a share below 1; the limits of the rank itself are 4 s.",
    ),
    17: Row(
        "NaN, inf in loss, gradient, State of one rank", 18, "skip is bitwise", loop.bad_numbers
    ),
    18: Row("NaN for ever", 3, "ends with 1, last checkpoint finite", loop.bad_for_ever),
    19: Row("loss ten times as high, 1, 5, 50 steps", 3, "fires from patience on", loop.spikes),
    20: Row("dead or hanging rank", 20, "others end, the rank is named", loop.dead_rank),
    21: Row("ranks with other configuration or clock", 6, "refused at start", loop.ranks_differ),
    22: Row(
        "damaged shards",
        14,
        "named error",
        tests=("tests/unit/data/test_shards.py::test_bad_data_is_refused",),
        note="Permissions do not bind root; a shard that changes under a running process is not "
        "noticed before the next start.",
    ),
    23: Row("broken manifest JSON", 10, "clean error, 1 s, 100 MB", files.broken_json),
    24: Row("bad configuration", 46, "refused with the key", files.bad_configurations),
    25: Row(
        "numerics at the edges",
        60,
        "finite, equal to the token loop",
        tests=(OPS, f"{LAWS}/test_block_laws.py::test_stable_over_a_long_stream"),
    ),
    26: Row(
        "document boundaries",
        20,
        "no trace of the document before",
        tests=(
            f"{LAWS}/test_document_laws.py::test_nothing_of_a_document_reaches_the_next",
            f"{LAWS}/test_document_laws.py::test_documents_are_independent_of_the_cut",
        ),
    ),
    27: Row("same seed, another seed", 5, "bitwise, different", loop.same_seed),
    28: Row(
        "malicious files",
        24,
        "refused, no code runs",
        tests=(
            "tests/unit/test_canary.py",
            "tests/unit/dist/test_dcp.py::test_a_crafted_index_runs_nothing",
            "tests/unit/dist/test_dcp.py::test_a_crafted_shard_runs_nothing",
        ),
    ),
    29: Row("metrics cannot be written, log cut", 10, "training unaffected", kill.broken_log),
    30: Row("clock, time zone, locale", 4, "no effect", loop.other_clocks),
    31: Row(
        "fork, spawn, workers",
        0,
        "identical token stream",
        note="Not applicable: streams read in the training process, there are no workers.",
    ),
    32: Row("checkpoint of another format", 3, "refused with both numbers", files.other_schema),
    33: Row(
        "checkpoint of another configuration",
        6,
        "refused with the key",
        loop.changed_configuration,
        note="There is no partial loading, so nothing can be dropped silently.",
    ),
    34: Row("no memory, forward or save", 6, "ends with 1, resumes bit by bit", kill.no_memory),
    35: Row("two jobs on one run", 5, "the second is refused, a stale lock is not", loop.two_jobs),
}


@dataclass
class Result:
    """What a row came to."""

    row: int
    fault: str
    criterion: str
    full: int
    trials: int
    passed: int
    seconds: float
    note: str
    failures: list[str] = field(default_factory=list)

    @property
    def bound(self) -> str:
        """95 % upper bound of the failure rate; where nothing failed, 3 / N."""
        if not self.trials:
            return "-"
        return f"< {3 / self.trials:.2g}" if self.passed == self.trials else "failed"


def measure(number: int, ground: Ground) -> Result:
    """Run one row at the campaign's share."""
    row = ROWS[number]
    count, begin = max(1, ceil(row.trials * ground.share)), time.monotonic()
    note = row.note
    if row.tests and ground.share < 1:
        note = f"{note} Part of the test suite: {', '.join(row.tests)}.".strip()
        outcomes = []
    elif row.tests:
        outcomes = files.suite(*row.tests)
    else:
        outcomes = row.run(ground, count) if row.run else []
    failures = [text for text in outcomes if text]
    seconds, passed = round(time.monotonic() - begin, 1), len(outcomes) - len(failures)
    common = (number, row.fault, row.criterion, row.trials, len(outcomes), passed, seconds, note)
    return Result(*common, failures[:5])


def page(results: list[Result], share: float, seed: int) -> str:
    """The campaign as Markdown."""
    lines = [
        "# Fault campaign",
        "",
        "Every trial damages a run of the tests' tiny model (a recurrent model with dropout, a "
        "carried State and tied weights) and says what came of it. Made by "
        f"`python benchmarks/faults.py --share {share:g} --seed {seed}`, in one or several calls, "
        "on two CPU cores; the bound is that of the failure rate at 95 % confidence, 3/N "
        "where none of N trials failed.",
        "",
        "| # | fault | must | full N | trials | passed | bound | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = (r.row, r.fault, r.criterion, r.full, r.trials, r.passed, r.bound, r.seconds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "## Notes", ""]
    lines += [f"- Row {r.row}: {r.note}" for r in results if r.note]
    failed = [(r.row, text) for r in results for text in r.failures]
    lines += ["", FOUND]
    lines += ["", "## Failures", "", *[f"- Row {n}: {' '.join(t.split())}" for n, t in failed]]
    lines += [] if failed else ["None."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the campaign; exit code 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="which; none: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of trials")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--output", help="write <output>.json and <output>.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    results = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        warm = tiny.tiny_run(run__dir=f"{folder}/warm", train__steps=1)
        nl.assembly.launch(warm)  # imports what every forked run would import again
        for number in options.rows:
            ground = Ground(Path(folder), random.Random(f"{options.seed} {number}"), options.share)
            (ground.root / str(number)).mkdir()
            ground.root = ground.root / str(number)
            results.append(measure(number, ground))
            r = results[-1]
            print(f"{r.row:2d} {r.fault}: {r.passed} of {r.trials} in {r.seconds} s", flush=True)
            for text in r.failures:
                print("     " + " ".join(text.split())[:400], flush=True)
            if options.output:
                write(Path(options.output), results, options.share, options.seed)
    return int(any(r.passed < r.trials for r in results))


def write(output: Path, results: list[Result], share: float, seed: int) -> None:
    """Both files, after every row; other rows of an earlier call of this share and seed stay."""
    path = output.with_suffix(".json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    if (before.get("share"), before.get("seed")) == (share, seed):
        done = {r.row for r in results}
        kept = [Result(**row) for row in before["rows"] if row["row"] not in done]
        results = sorted([*results, *kept], key=lambda r: r.row)
    facts = {
        "share": share,
        "seed": seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rows": [asdict(r) for r in results],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")
    output.with_suffix(".md").write_text(page(results, share, seed))


if __name__ == "__main__":
    raise SystemExit(main())
