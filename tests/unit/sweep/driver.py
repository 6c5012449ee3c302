"""A sweep of fake jobs: driver.py <root> <slots> <experiment>=<words, comma between> ..."""

import signal
import sys
from pathlib import Path

from nl.sweep.job import Job
from nl.sweep.results import scan, write_results, write_summaries
from nl.sweep.runner import Lock, Runner
from nl.sweep.slots import Local, Place

LAUNCHER = Path(__file__).with_name("fake_launcher.py")


def jobs_of(root: Path, experiments: dict[str, str], seeds: int = 2) -> list[Job]:
    """Jobs of the fake launcher; the words of an experiment decide its hash."""
    found = []
    for name, words in experiments.items():
        for seed in range(seeds):
            home, code = root / name / f"seed_{seed}", f"{name}-{words}-{seed}".replace("=", "-")
            told = (*words.split(","), f"seed={seed}", f"run.dir={home}", f"hash={code}")
            command = (sys.executable, str(LAUNCHER), *told)
            found.append(Job(name, seed, home, command, code, {"kind": name}, told))
    return found


def main() -> int:
    """Run to the end, or until SIGTERM."""
    root, slots = Path(sys.argv[1]), int(sys.argv[2])
    jobs = jobs_of(root, dict(word.split("=", 1) for word in sys.argv[3:]))
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    lock = Lock(root)
    runner = Runner(root, Local(Place(slots=slots)), stopping=lambda: bool(stopped))
    runner.run(jobs)
    rows = scan(jobs)
    write_results(root, rows)
    write_summaries(root, rows)
    lock.release()
    return 0 if all(row["status"] == "done" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
