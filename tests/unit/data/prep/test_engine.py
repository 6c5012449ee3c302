"""Ranks on datatrove's executors: what is killed is redone, nothing stale is used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.files import write_atomic
from nl.data.prep.engine import Executor, Job, Recorded, run_tasks, slurm_executor
from tests.unit.data.prep.corpora import contents, numbered, write_parts

LOCAL = Executor()


@dataclass(frozen=True)
class Squares:
    """Writes rank squared; leaves a trace of every call; may fail."""

    folder: Path
    fails: int = -1

    def __call__(self, rank: int) -> dict[str, Any]:
        with (self.folder / "calls").open("a") as file:
            file.write(f"{rank}\n")
        if rank == self.fails:
            raise ConfigError(f"rank.{rank}: no good.")
        write_atomic(self.folder / f"{rank}.txt", str(rank**2).encode())
        return {"square": rank**2, "pid": os.getpid()}


def calls(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "calls").read_text().split()]


def test_records_of_every_rank_also_after_a_failure(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(ConfigError, match=r"rank\.2: no good"):
        run_tasks("t", Squares(tmp_path, fails=2), tasks=4, work=work, executor=LOCAL)
    assert calls(tmp_path) == [0, 1, 2]
    records = run_tasks("t", Squares(tmp_path), tasks=4, work=work, executor=LOCAL)
    assert [r["square"] for r in records] == [0, 1, 4, 9]
    assert calls(tmp_path) == [0, 1, 2, 2, 3], "finished ranks are kept"
    again = run_tasks("t", Squares(tmp_path), tasks=4, work=work, executor=LOCAL)
    assert again == records
    assert len(calls(tmp_path)) == 5


def test_a_finished_rank_without_a_whole_record_runs_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = run_tasks("t", Squares(tmp_path), tasks=3, work=work, executor=LOCAL)
    (work / "records/00000.json").write_text('{"square":')
    (work / "records/00002.json").unlink()
    second = run_tasks("t", Squares(tmp_path), tasks=3, work=work, executor=LOCAL)
    assert [r["square"] for r in second] == [r["square"] for r in first]
    assert calls(tmp_path) == [0, 1, 2, 0, 2]


def test_nothing_of_the_engine_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_tasks("t", Squares(tmp_path), tasks=2, work=tmp_path / "work", executor=LOCAL)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
    assert "rank=1" in (tmp_path / "work/engine/logs/task_00001.log").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dask"}, "--executor: dask; allowed: local, slurm, ray"),
        ({"workers": 0}, "--workers: 0; allowed: >= 1"),
        ({"kind": "slurm"}, "--partition: ''; allowed: the name of one"),
        ({"sbatch_args": ("=1",)}, "--sbatch-args"),
    ],
)
def test_bad_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Executor(**fields)


SLURM = Executor(
    kind="slurm",
    workers=3,
    partition="cpu",
    time="01:00:00",
    cpus_per_task=2,
    mem_per_cpu_gb=4,
    sbatch_args=("account=lab", "exclusive"),
)


def fake_slurm(folder: Path) -> None:
    """An sbatch that runs the array at once, and the commands around it."""
    programs = {
        "sbatch": (
            'for last; do :; done\ncp "$last" "$FAKE/script.$(ls "$FAKE" | grep -c script)"\n'
            'n=$(grep -oP "array=0-\\K[0-9]+" "$last" || echo -1)\n'
            "export SLURM_NODELIST=here RUN_OFFSET=0\n"
            'if ! grep -q merge_stats "$last"; then for i in $(seq 0 "$n"); do\n'
            '  SLURM_ARRAY_TASK_ID=$i bash "$last" >>"$FAKE/log" 2>&1\ndone; fi\n'
            'echo "Submitted batch job 7"\n'
        ),
        "srun": 'while [[ "$1" == -* || "$1" == 1 ]]; do shift; done\nexec "$@"\n',
        "scontrol": "echo here\n",
        "squeue": "exit 1\n",
    }
    for name, body in programs.items():
        (folder / name).write_text("#!/bin/bash\n" + body)
        (folder / name).chmod(0o755)


def test_slurm_script_and_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_path = tmp_path / "bin"
    bin_path.mkdir()
    fake_slurm(bin_path)
    monkeypatch.setenv("FAKE", str(bin_path))
    monkeypatch.setenv("PATH", f"{bin_path}:{os.environ['PATH']}")
    root = str(Path(__file__).resolve().parents[4])
    monkeypatch.setenv("PYTHONPATH", f"{root}/src:{root}")
    work = tmp_path / "work"
    records = run_tasks("filter", Squares(tmp_path), tasks=2, work=work, executor=SLURM)
    assert [r["square"] for r in records] == [0, 1]
    assert all(r["pid"] != os.getpid() for r in records)
    script = (work / "engine/launch_script.slurm").read_text()
    for line in (
        "--partition=cpu",
        "--time=01:00:00",
        "--cpus-per-task=2",
        "--mem-per-cpu=4G",
        "--job-name=nl-filter",
        "--account=lab",
        "--exclusive",
        "--array=0-1%3",
    ):
        assert f"#SBATCH {line}\n" in script
    assert f"export PATH={Path(sys.executable).parent}" in script
    assert "qos" not in script


def test_slurm_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--executor slurm: sbatch did not take the job"):
        run_tasks("t", Squares(tmp_path), tasks=1, work=tmp_path / "w", executor=SLURM)
    job = Job("t", Recorded(Squares(tmp_path), tmp_path), 1, tmp_path / "e")
    made = slurm_executor(job, SLURM)
    assert made.get_sbatch_args(1)["array"] == "0-0%3"


CHAIN = """
import sys
from pathlib import Path
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import FilterOptions
if __name__ == "__main__":
    source, output, kind, workers = sys.argv[1:]
    log, done = filter_corpus(
        Path(source), Path(output), FilterOptions(min_chars=100, target_lang="any"),
        Executor(kind=kind, workers=int(workers), mem_per_cpu_gb=1),
    )
    print(log["counts"], done)
"""


def chain(
    tmp_path: Path, output: str, kind: str = "local", workers: int = 1
) -> subprocess.Popen[str]:
    script = tmp_path / "chain.py"
    script.write_text(CHAIN)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(tmp_path / output)]
    return subprocess.Popen(
        [*command, kind, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_workers_write_what_one_writes(tmp_path: Path) -> None:
    write_parts(tmp_path / "in", {"a": numbered("a", 40), "b": numbered("b", 25)})
    for name, workers in (("one", 1), ("two", 2)):
        made = chain(tmp_path, name, workers=workers)
        out, errors = made.communicate(timeout=300)
        assert made.returncode == 0, errors
        assert "'documents_in': 65" in out
        assert errors == ""
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    log = json.loads((tmp_path / "two/stage.json").read_text())
    assert (log["workers"], log["executor"], log["parts"]) == (2, "local", 7)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("local", 1), ("local", 2), ("ray", 2)])
def test_killed_and_resumed(tmp_path: Path, kind: str, workers: int) -> None:
    per_part = 200 if kind == "ray" else 20  # Ray starts a process for every rank
    write_parts(tmp_path / "in", {"a": numbered("a", 4000)}, per_part=per_part)
    whole = chain(tmp_path, "whole")
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    cut = 0
    for _ in range(4):
        made = chain(tmp_path, "cut", kind, workers)
        for _ in range(6000):
            time.sleep(0.01)
            found = {p.name for p in (tmp_path / "cut").glob(".filter-*/records/*.json")}
            if made.poll() is not None or len(found) * per_part > 700 * (cut + 1):
                break
        if made.poll() is None:
            os.killpg(made.pid, signal.SIGKILL)
            cut += 1
        made.communicate(timeout=300)
    made = chain(tmp_path, "cut", kind, workers)
    out, errors = made.communicate(timeout=240)
    assert made.returncode == 0, errors
    assert cut >= 2
    assert "'documents_in': 4000" in out
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
