"""Where jobs run: launchers are found, flags are checked, submitit and Ray run a job."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from nl.config import ConfigError
from nl.sweep.backends import program, visible_gpus
from nl.sweep.clusters import Ray, Slurm
from nl.sweep.job import Job
from nl.sweep.slots import Handle, Place, threads


def job_in(folder: Path, seed: int, code: str) -> Job:
    home = folder / f"seed_{seed}"
    return Job("a", seed, home, (sys.executable, "-c", code), "", {}, ())


def wait(handle: Handle, seconds: float = 300) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code = handle.poll()
        if code is not None:
            return code
        time.sleep(0.05)
    raise AssertionError("did not end")


def test_launchers_are_named_by_their_full_path(repo: Path) -> None:
    train, ddp = repo / "train.py", repo / "train_dist.py"
    assert program(["train.py"], repo) == (sys.executable, str(train))
    many = program(["torchrun", "--nproc_per_node=2", "train_dist.py"], repo)
    assert many == (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        str(ddp),
    )
    with pytest.raises(ConfigError, match=r"launcher: tarin\.py; no such file"):
        program(["tarin.py"], repo)
    with pytest.raises(ConfigError, match=r"launcher: train\.py --flag; allowed"):
        program(["train.py", "--flag"], repo)


def test_flags_are_checked() -> None:
    for wrong, text in (
        ({"kind": "cloud"}, "--backend: cloud; allowed: local, warm, slurm, ray"),
        ({"slots": 0}, "--slots: 0; allowed: >= 1"),
        ({"minutes": 5}, "--minutes: 5; --backend local has no use for it, only slurm"),
        ({"kind": "warm", "cpus": 2}, "--cpus: 2; --backend warm has no use for it"),
        ({"kind": "slurm", "address": "x"}, "--address: x; --backend slurm has no use for it"),
        ({"slots": 3, "gpus": ("0", "1")}, "--slots: 3; --gpus gives one slot each"),
    ):
        with pytest.raises(ConfigError, match=text):
            Place(**wrong)
    assert visible_gpus("none") == ()
    assert visible_gpus("0, 2") == ("0", "2")
    with pytest.raises(ConfigError, match="--gpus: first; allowed"):
        visible_gpus("first")


def test_gpus_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: one'\necho '  MIG 1g: a part'\necho 'GPU 1: two'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_gpus("auto") == visible_gpus("0,1", here=True) == ("0", "1")
    assert visible_gpus("9") == ("9",)  # a count for a cluster
    with pytest.raises(ConfigError, match=r"--gpus: 1,9; .* lists no 9 .* only 0, 1\."):
        visible_gpus("1,9", here=True)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="only none at all"):
        visible_gpus("0", here=True)


def test_jobs_share_the_cores_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert threads(2) == {"OMP_NUM_THREADS": "4"}
    assert threads(100) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(2) == {}


def test_submitit_runs_a_job_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    backend = Slurm(Place(kind="slurm", minutes=1, memory_gb=1), tmp_path, cluster="local")
    good = backend.start(job_in(tmp_path, 0, "import os; print(os.environ['OMP_NUM_THREADS'])"), 0)
    bad = backend.start(job_in(tmp_path, 1, "raise SystemExit(3)"), 0)
    assert (wait(good), wait(bad)) == (0, 3)
    assert (good.cpu() or 0.0) > 0
    assert (tmp_path / "seed_0.log").read_text().strip() == "1"


def test_slurm_without_slurm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--backend: slurm; no sbatch"):
        Slurm(Place(kind="slurm"), tmp_path)


@pytest.mark.slow
def test_two_ray_nodes_share_jobs_without_doing_one_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        backend = Ray(Place(kind="ray", slots=2))
        code = (
            "import os, time, pathlib; time.sleep(1); "
            f"f = open({str(tmp_path / 'starts')!r}, 'a'); "
            "f.write(os.environ['RAY_NODE'] + chr(10)) if 'RAY_NODE' in os.environ else "
            "f.write(str(os.getppid()) + chr(10)); f.close()"
        )
        handles = [backend.start(job_in(tmp_path, n, code), n % 2) for n in range(4)]
        assert [wait(handle) for handle in handles] == [0, 0, 0, 0]
        lines = (tmp_path / "starts").read_text().splitlines()
        assert len(lines) == 4
        assert len(set(lines)) >= 2
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
