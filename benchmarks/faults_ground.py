"""What the rows of the fault campaign share: runs of the tests' tiny model, killed and compared."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "resume"))

import compare  # noqa: E402
import group  # noqa: E402
import tiny  # noqa: E402

import nl.assembly  # noqa: E402
from nl.config.run import RunConfig  # noqa: E402
from nl.run.discover import newest_valid, step_of  # noqa: E402

BASE: dict[str, Any] = {
    "train__steps": 12,
    "train__grad_accum": 2,
    "train__validate_every": 6,
    "checkpoint__every": 2,
    "checkpoint__keep": 3,
    "resume": "auto",
}
PLAIN = {"model__dropout": 0.0, "checkpoint__keep": 0}

Places = Mapping[int, Mapping[str, str]]


@dataclass
class Ground:
    """Where trials happen.

    Attributes:
        root: an empty folder.
        draw: random numbers of the campaign.
        share: of the full number of trials.
    """

    root: Path
    draw: random.Random
    share: float = 1.0
    _references: dict[str, tuple[dict[str, Any], float]] = field(default_factory=dict)
    _count: int = 0

    def folder(self) -> Path:
        """A name that no trial has used."""
        self._count += 1
        return self.root / f"t{self._count}"

    def run(
        self,
        folder: Path,
        changes: Mapping[str, Any],
        *,
        world: int = 1,
        places: Places | None = None,
        strategy: str = "",
    ) -> list[int | None]:
        """Start or resume a run to its end; exit codes of its ranks."""
        full = {**BASE, **changes, "run__dir": str(folder)}
        kind = strategy or ("single" if world == 1 else "ddp")
        return list(group.group(full, world, places or {}, strategy=kind, seconds=90))

    def begin(self, folder: Path, changes: Mapping[str, Any], patch: Callable[[], None]) -> int:
        """Start a run of one process, changed by ``patch``; its process id."""
        run = config(folder, changes)

        def train() -> None:
            patch()
            nl.assembly.launch(run)

        return int(group.fork(train, Path(f"{folder}-rank0.txt")))

    def reference(
        self, changes: Mapping[str, Any], *, world: int = 1, strategy: str = ""
    ) -> tuple[dict[str, Any], float]:
        """Fingerprint of the run that nothing happens to, and the seconds it takes."""
        key = json.dumps([dict(changes), world, strategy], sort_keys=True)
        if key not in self._references:
            folder, begin = self.folder(), time.monotonic()
            codes = self.run(folder, changes, world=world, strategy=strategy)
            seconds = time.monotonic() - begin
            assert codes == [0] * world, self.words(folder)
            steps = {**BASE, **changes}["train__steps"]
            self._references[key] = compare.fingerprint(folder, steps), seconds
            self.clear(folder)
        return self._references[key]

    def words(self, folder: Path) -> str:
        """The last words of the ranks of a run."""
        files = sorted(folder.parent.glob(f"{folder.name}-rank*.txt"))
        return " | ".join(file.read_text()[-300:] for file in files)

    def clear(self, folder: Path) -> None:
        """Remove a trial."""
        shutil.rmtree(folder, ignore_errors=True)
        for path in folder.parent.glob(f"{folder.name}-*"):
            path.unlink()

    def resumed(
        self, folder: Path, changes: Mapping[str, Any], *, world: int = 1, strategy: str = ""
    ) -> str:
        """Resume to the end and compare with the undisturbed run, bit by bit; '' where equal."""
        want, _ = self.reference(changes, world=world, strategy=strategy)
        codes = self.run(folder, changes, world=world, strategy=strategy)
        if codes != [0] * world:
            return f"resuming ended with {codes}: {self.words(folder)}"
        return difference(folder, {**BASE, **changes}["train__steps"], want)


def config(folder: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration of a trial in one process."""
    run: RunConfig = tiny.tiny_run(**{**BASE, **changes, "run__dir": str(folder)})
    return run


def difference(
    folder: Path, steps: int, want: Mapping[str, Any], leave: tuple[str, ...] = ()
) -> str:
    """What differs between a finished run and a fingerprint; '' where nothing does."""
    got = compare.fingerprint(folder, steps)
    return ", ".join(k for k in want if k not in leave and got[k] != want[k])


def newest_step(folder: Path) -> int:
    """Step of the newest valid checkpoint, 0 without one."""
    found, _ = newest_valid(folder)
    return step_of(found) or 0 if found else 0


def promised_step(folder: Path) -> int:
    """Step that ``latest`` names: a checkpoint that was complete, so it may never be lost."""
    pointer = folder / "checkpoints" / "latest"
    return step_of(pointer.with_name(pointer.read_text().strip())) or 0 if pointer.is_file() else 0


def intact(folder: Path) -> str:
    """'' if what was promised is still there and no part of a save is left after a clean end."""
    if newest_step(folder) < promised_step(folder):
        return f"step {promised_step(folder)} was promised, newest is {newest_step(folder)}"
    return ""
