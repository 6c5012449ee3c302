"""Launches that cannot work end on every rank, soon, with one message and exit code 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore

from nl.config import ConfigError
from nl.dist import env
from nl.dist.env import adopt_slurm, first_host, spread
from nl.dist.meeting import PATIENCE, LaunchError, Meeting, agreeing, together

SOON = PATIENCE / 3
"""Seconds: less than ranks wait for one another, more than a busy machine takes for a launch."""
SERVER = """
import json, os, runpy, sys, time
import torch, nl.assembly  # load once; every rank is a fork
import torch.distributed, torch.nn.parallel
from nl.config.hydra import compose
from nl.dist.deepspeed import import_deepspeed
compose("pilot_smoke")  # Hydra, its plugins and the published defaults too
import_deepspeed(torch.device("cpu"))
for line in sys.stdin:
    case = json.loads(line)
    begin, ranks = time.monotonic(), []
    for number, argv in enumerate(case["argv"]):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(writer, 2); os.dup2(writer, 1); os.close(reader)
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": len(case["argv"])}
            place |= {"MASTER_ADDR": "127.0.0.1"} | case["env"]
            os.environ.update({key: str(value) for key, value in place.items()})
            sys.argv = [case["script"], *argv]
            exec(case["before"])
            code = 0
            try:
                runpy.run_path(case["script"], run_name="__main__")
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                import traceback; traceback.print_exc(); code = 1
            sys.stdout.flush(); sys.stderr.flush(); os._exit(code)
        os.close(writer)
        ranks.append((pid, reader))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in ranks]
    took = time.monotonic() - begin
    texts = [os.fdopen(reader, errors="replace").read() for _, reader in ranks]
    print(json.dumps({"codes": codes, "texts": texts, "took": took}), flush=True)
"""
SIGN = (
    "--config-name=pilot_smoke",  # first, so that Hydra composes once
    "experiment=ladder/sign_of_winner",
    "train.device=cpu",
    "train.steps=2",
)
Launch = Callable[..., tuple[list[int], list[str], float]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def launch(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Runs a launcher on two ranks; returns (exit codes, what each wrote, seconds)."""
    root = f"run.root={tmp_path_factory.mktemp('runs')}"
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repo
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(
            *both: str,
            one: tuple[str, ...] = (),
            script: str = "train_dist.py",
            before: str = "",
            **place: object,
        ) -> tuple[list[int], list[str], float]:
            argv = [[*SIGN, root, *both], [*SIGN, root, *both, *one]]
            case = {"script": str(repo / script), "argv": argv, "before": before}
            case["env"] = {"MASTER_PORT": free_port()} | place
            print(json.dumps(case), file=server.stdin, flush=True)
            found = json.loads(server.stdout.readline())
            return found["codes"], found["texts"], found["took"]

        yield run
        server.stdin.close()


def refused(found: tuple[list[int], list[str], float], message: str) -> None:
    """Both ranks ended soon with code 2; one of them said why, without a traceback."""
    codes, texts, took = found
    assert codes == [2, 2], texts
    assert took < SOON
    assert message in texts[0]
    assert texts[1] == ""
    assert "Traceback" not in texts[0]


def test_two_ranks_train(launch: Launch) -> None:
    codes, texts, _ = launch()
    assert codes == [0, 0], texts
    assert "step 2/2" in texts[0]


def test_ranks_that_cannot_share_a_batch(launch: Launch) -> None:
    refused(launch("stream.batch_size=5"), "stream.batch_size: 5 rows cannot be shared by 2 ranks")


def test_ranks_with_different_configurations(launch: Launch) -> None:
    message = "rank 1 started with another configuration than rank 0"
    found = launch(one=("seed=3",))
    refused(found, message)
    assert "They differ in seed (0, 3)." in found[1][0]
    refused(launch(one=("run.root=/elsewhere",)), message)


@pytest.mark.parametrize("wrong", ["train.stps=1", "train.steps=0", "stream=["])
def test_one_rank_with_a_wrong_command_line(launch: Launch, wrong: str) -> None:
    refused(launch(one=(wrong,)), "rank 1: ")


def test_more_ranks_than_devices(launch: Launch) -> None:
    before = """
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.set_device = lambda device: None
"""
    message = "rank 1: train.device: local rank 1, but only 1 CUDA devices"
    refused(launch("train.device=cuda", before=before), message)


def test_a_part_that_one_rank_cannot_build(launch: Launch) -> None:
    before = """
if number == 1:
    def build(run):
        raise OSError("no space for the data")
    nl.assembly.build_objective = build
"""
    codes, texts, took = launch(before=before)
    assert codes == [2, 1]
    assert took < SOON
    assert texts[0].endswith("rank 1: OSError: no space for the data\n")
    assert "This was rank 1 of 2." in texts[1]


def test_a_rank_that_fails_later_is_named_on_the_others(launch: Launch) -> None:
    before = """
if number == 1:
    import nl.train.trainer
    def broken(self, step):
        raise ValueError("the disk is gone")
    nl.train.trainer.Trainer._commit = broken
"""
    codes, texts, took = launch(before=before)
    assert codes == [1, 1]
    assert took < SOON
    assert "This was rank 1 of 2." in texts[1]
    assert "The first to fail was rank 1: ValueError: the disk is gone" in texts[0]


def test_a_port_in_use(launch: Launch) -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        codes, texts, took = launch(MASTER_PORT=port)
    assert codes == [2, 2]
    assert took < SOON
    assert f"MASTER_PORT={port}: in use on this machine; choose another one" in texts[0]
    assert "something else than rank 0 of this launch answers" in texts[1]


def test_an_address_that_cannot_be(launch: Launch) -> None:
    codes, texts, _ = launch(MASTER_PORT=0)
    assert codes == [2, 2]
    assert all("WORLD_SIZE=2 needs the address and port" in text for text in texts)


def test_the_launcher_for_one_device(launch: Launch) -> None:
    found = launch(script="train.py")
    refused(found, "train.py: started as one of WORLD_SIZE=2 processes")


ZERO = "deepspeed.config=configs/deepspeed/zero3.json"


def test_zero_trains_and_the_flag_of_its_launcher_is_taken_off(launch: Launch) -> None:
    codes, texts, _ = launch(
        ZERO, "--local_rank=0", one=("--local_rank=1",), script="train_deepspeed.py"
    )
    assert codes == [0, 0], texts
    assert "step 2/2" in texts[0]


def test_zero_without_its_package(launch: Launch) -> None:
    before = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "deepspeed" else find(name)
"""
    message = "deepspeed: not installed; uv sync --extra deepspeed"
    refused(launch(ZERO, script="train_deepspeed.py", before=before), message)


def test_ranks_with_different_json(launch: Launch, tmp_path: Path) -> None:
    """The same file name holds something else on another machine."""
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 1}}')
    before = """
if number == 1:
    import nl.dist.deepspeed_config as config
    config.read = lambda path: {"zero_optimization": {"stage": 2}}
"""
    found = launch(f"deepspeed.config={path}", script="train_deepspeed.py", before=before)
    refused(found, "They differ in here.engine.zero_optimization.stage (1, 2).")


def test_zero_that_contradicts_the_run(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"train_batch_size": 7, "zero_optimization": {"stage": 1}}')
    found = launch(f"deepspeed.config={path}", script="train_deepspeed.py")
    refused(found, "train_batch_size: 7, but stream.batch_size=")


def test_slurm_names_become_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    given = {"PROCID": "5", "NTASKS": "8", "LOCALID": "1", "JOB_NODELIST": "gpu[003-005],b1"}
    for name, value in (given | {"JOB_ID": "31234"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert spread() == (5, 8)
    assert env.local_rank() == 1
    assert os.environ["MASTER_ADDR"] == "gpu003"
    assert os.environ["MASTER_PORT"] == str(15000 + 31234 % 15000)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "here")
    adopt_slurm()
    assert spread() == (0, 2)
    assert os.environ["MASTER_ADDR"] == "here"
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="RANK=2, WORLD_SIZE=2; ranks go from 0"):
        spread()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[003-005,9],login", "gpu003"),
        ("b1,gpu[1-2]", "b1"),
        ("rack[2-4]n[08,10]", "rack2n08"),
        ("a-b[1,5].site,c", "a-b1.site"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_rank_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nl.dist.meeting.PATIENCE", 0.2)
    monkeypatch.setattr("nl.dist.meeting.GRACE", 0.1)
    with pytest.raises(LaunchError, match=r"ranks 1, 2 of 3 did not come .* srun"):
        Meeting(HashStore(), 0, 3).agree()


def test_a_complaint_does_not_wait_for_those_who_never_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nl.dist.meeting.GRACE", 0.1)
    begin = time.monotonic()
    with pytest.raises(LaunchError, match="rank 0: key: no"):
        Meeting(HashStore(), 0, 2).agree(complaint="key: no")
    assert time.monotonic() - begin < SOON


def test_a_round_is_agreed_by_all_and_rounds_are_apart() -> None:
    store, heard = HashStore(), {}

    def take_part(rank: int) -> None:
        meeting = Meeting(store, rank, 2)
        with agreeing(meeting, lambda: "same"):
            pass
        try:
            with agreeing(meeting, lambda: json.dumps({"a": {"b": rank}})):
                pass
        except LaunchError as error:
            heard[rank] = (str(error), error.teller)

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard[0][0] == heard[1][0]
    assert "They differ in a.b (0, 1)." in heard[0][0]
    assert (heard[0][1], heard[1][1]) == (True, False)


def test_complaints_are_told_once() -> None:
    assert together({0: "x", 1: "x"}, 2) == "x"
    assert together({0: "x", 2: "x", 1: "y"}, 4) == "ranks 0, 2: x\nrank 1: y"
