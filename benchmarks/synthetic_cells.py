"""What the runs of the core suite left, by task, mixer and seed; statistics over seeds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study
import yaml

from nl.run import RunDir
from nl.run.files import read_json

FAMILIES = {
    "recall": (
        "mqar",
        "mqar_update",
        "mad_recall",
        "mad_noisy_recall",
        "mad_fuzzy_recall",
        "induction",
        "selective_copy",
    ),
    "weights and compression": ("mad_memorization", "mad_compression"),
    "state": ("parity", "s5", "flipflop", "formal"),
    "change": ("nonstat_online", "cl_mqar_stream", "cl_remap"),
}
"""Families of tasks, in the order of the page."""
MEMORIES = ("titan_lmm", "hope_attention", "hope_selfmod", "hope_hybrid")
"""Mixers that the page asks about; the others are what they are compared with."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        state: ``done``, ``failed``, ``stopped`` or ``missing``.
        found: by evaluator its result file.
        parameters, seconds: of the run.
        commit: that it was made with.
    """

    state: str
    found: dict[str, Any]
    parameters: int = 0
    seconds: float = 0.0
    commit: str = ""


@dataclass(frozen=True)
class Suite:
    """All runs of some sweeps.

    Attributes:
        cells: (task, mixer, seed) -> run; every one that a sweep's file asks for.
        tasks, mixers: in the order of the files.
        cpu: CPU seconds of whole sweeps, where ``time.txt`` beside them says so.
    """

    cells: dict[tuple[str, str, int], Cell]
    tasks: tuple[str, ...]
    mixers: tuple[str, ...]
    cpu: dict[str, float]

    def pages(self, task: str, mixer: str, evaluator: str = "probe") -> list[dict[str, Any]]:
        """Details of an evaluator, one per finished seed."""
        return [
            cell.found[evaluator]["details"]
            for (t, m, _), cell in self.cells.items()
            if (t, m) == (task, mixer) and cell.state == "done" and evaluator in cell.found
        ]

    def values(
        self, task: str, mixer: str, case: str = "test", mode: str = "on", key: str = "accuracy"
    ) -> list[float]:
        """One number per finished seed that has it."""
        pages = self.pages(task, mixer)
        return [page[case][mode][key] for page in pages if mode in page.get(case, {})]

    def mean(self, task: str, mixer: str, *where: str) -> float | None:
        """Mean over seeds; see ``values``."""
        found = self.values(task, mixer, *where)
        return sum(found) / len(found) if found else None

    def fact(self, task: str, get: Callable[[dict[str, Any]], Any]) -> Any:
        """Something that all runs of a task share; None where none is finished."""
        pages = (page for mixer in self.mixers for page in self.pages(task, mixer))
        return next((get(page) for page in pages), None)

    def length(self, task: str, case: str) -> int | None:
        """Tokens of a row of a case."""
        found: int | None = self.fact(task, lambda page: page.get(case, {}).get("length"))
        return found

    def family(self, mixer: str, tasks: Iterable[str], key: str = "score") -> list[float]:
        """Per seed the mean over tasks, of the seeds that have all of them."""
        lists = [self.values(task, mixer, "test", "on", key) for task in tasks]
        if not lists or len({len(found) for found in lists}) != 1:
            return []
        return [sum(one) / len(one) for one in zip(*lists, strict=True)]


def read_cell(home: Path) -> Cell:
    """One run directory."""
    if not RunDir.holds_run(home):
        record = home.with_name(f"{home.name}.job.json")
        failed = record.is_file() and read_json(record).get("failures")
        return Cell("failed" if failed else "missing", {})
    run = RunDir.open(home)
    status = run.read_status().get("state")
    if not run.finished():
        return Cell("failed" if status == "failed" else "stopped", {})
    found = {
        path.stem: read_json(path) for path in sorted((home / "artifacts/evals").glob("*.json"))
    }
    summary, meta = read_json(run.summary), read_json(run.meta)
    commit = str((meta.get("git") or {}).get("sha") or "")[:7]
    return Cell("done", found, summary["parameters"], summary["seconds"], commit)


@functools.cache
def read(roots: tuple[Path, ...]) -> Suite:
    """The runs of sweeps with axes task and model; a task is the first sweep's that has it."""
    cells: dict[tuple[str, str, int], Cell] = {}
    tasks: dict[str, None] = {}
    mixers: dict[str, None] = {}
    cpu = {}
    for root in roots:
        spec = yaml.safe_load((root / "sweep.yaml").read_text())
        seeds = spec.get("seeds") or range(spec.get("n_seeds", 1))
        for task in (one["name"] for one in spec["axes"]["task"]):
            for mixer in (one["name"] for one in spec["axes"]["model"]):
                for seed in seeds:
                    home = root / f"{task}_{mixer}" / f"seed_{seed}"
                    cells.setdefault((task, mixer, seed), read_cell(home))
                mixers[mixer] = None
            tasks[task] = None
        if (root / "time.txt").is_file():
            cpu[root.name] = cpu_of((root / "time.txt").read_text())
    order = [task for family in FAMILIES.values() for task in family if task in tasks]
    return Suite(cells, (*order, *(t for t in tasks if t not in order)), tuple(mixers), cpu)


def cpu_of(text: str) -> float:
    """User and system seconds of bash's ``time``."""
    total = 0.0
    for line in text.splitlines():
        name, _, rest = line.partition("\t")
        if name in ("user", "sys"):
            minutes, _, seconds = rest.strip().removesuffix("s").partition("m")
            total += 60 * float(minutes) + float(seconds)
    return total


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the 95 % intervals of two means do not meet; False where one is not known."""
    if min(len(one), len(other)) < 2:
        return False
    (a, half), (b, wide) = study.student(one), study.student(other)
    return abs(a - b) > half + wide


def as_csv_rows(suite: Suite) -> list[list[str]]:
    """Every reading of every run: task, mixer, seed, case, mode, length and its numbers."""
    keys = ("accuracy", "exact", "nll", "score", "state_bytes")
    rows = [["task", "mixer", "seed", "case", "writes", "length", *keys, "chance"]]
    for (task, mixer, seed), cell in suite.cells.items():
        for name, case in cell.found.get("probe", {}).get("details", {}).items():
            for mode in ("on", "frozen", "reset"):
                if mode in case:
                    numbers = [f"{case[mode][key]:.6g}" for key in keys]
                    place = [task, mixer, str(seed), name, mode, str(case["length"])]
                    rows.append([*place, *numbers, f"{case['chance']:.6g}"])
    return rows
