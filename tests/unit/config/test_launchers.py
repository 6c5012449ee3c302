"""Launchers and composed configs: what a user mistypes is told once, with code 2, on stderr."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nl
import nl.assembly
from nl.config import ConfigError, structure, unstructure
from nl.config.hydra import (
    compose,
    config_dir,
    load_config,
    plain,
    publish,
    quoted,
    run_config,
    save_config,
    start,
)
from nl.config.run import RunConfig, config_hash

PRIMARY = (
    "pilot_smoke",
    "pilot",
    "mid",
    "mid_smoke",
    "target",
    "hope/pilot",
    "hope/mid",
    "hope/target",
)
SERVER = """
import json, os, runpy, sys
import torch, nl.assembly  # load once; every case is a fork
from nl.config.hydra import compose
compose("pilot_smoke")  # Hydra, its plugins and the published defaults too
for line in sys.stdin:
    case = json.loads(line)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 2); os.dup2(writer, 1); os.close(reader)
        os.environ.update(case["env"])
        sys.argv = [case["script"], *case["argv"]]
        code = 0
        try:
            runpy.run_path(case["script"], run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback; traceback.print_exc(); code = 1
        sys.stdout.flush(); sys.stderr.flush(); os._exit(code)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"code": code, "text": text}), flush=True)
"""


@pytest.fixture(scope="module")
def launchers(repo: Path):  # type: ignore[no-untyped-def]
    """Runs ``train*.py`` with arguments; returns (exit code, what it wrote)."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repo
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(*argv: str, script: str = "train.py", **env: str) -> tuple[int, str]:
            case = {"script": str(repo / script), "argv": argv, "env": env}
            print(json.dumps(case), file=server.stdin, flush=True)
            found = json.loads(server.stdout.readline())
            return found["code"], found["text"]

        yield run
        server.stdin.close()


def bad_inputs(tmp_path: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Name -> (overrides, what the message must contain)."""
    (tmp_path / "file").write_text("")
    sign = "experiment=ladder/sign_of_winner"
    return {
        "unknown key": (("train.stps=3",), "train: unknown 'stps'. Did you mean 'steps'?"),
        "unknown key, forced": (("+train.stps=3",), "train: unknown 'stps'. Did you mean"),
        "unknown group": (("modle=hope_smoke",), "modle"),
        "unknown kind": (
            ("model=hope_smok",),
            "model: unknown 'hope_smok'. Did you mean 'hope_smoke'? Known: ergodic_micro",
        ),
        "unknown schedule": (("schedule=cosin",), "Known: constant, cosine, linear, wsd."),
        "unknown experiment": (
            ("experiment=ladder/sign_of_winer",),
            "experiment: unknown 'ladder/sign_of_winer'. Did you mean 'ladder/sign_of_winner'?",
        ),
        "mistyped value": (("train.steps=many",), "train.steps: expected int, got 'many'"),
        "out of range": (("train.steps=0",), "train.steps: 0; must be >= 1"),
        "two at once": (("train.steps=0", "optim.lr=-1"), "optim.lr: -1.0; must be > 0"),
        "not finite": (("optim.lr=inf",), "optim.lr: expected a finite number"),
        "bool for int": (("train.grad_accum=true",), "train.grad_accum: expected int"),
        "bad name": (("name='../x'",), "name: '../x'; letters, digits"),
        "missing data": (("stream.path=/nowhere/x",), "/nowhere/x/manifest.json: no such file"),
        "no such config": (("--config-name", "pilto"), "unknown 'pilto'. Did you mean 'pilot'?"),
        "cuda without cuda": ((sign, "train.device=cuda"), "train.device: cuda, but torch sees no"),
        "place below a file": ((sign, f"run.root={tmp_path}/file/x"), "run.root: "),
        "run.dir below a file": ((sign, f"run.dir={tmp_path}/file/x"), "run.dir: "),
        "log below a file": (
            (
                sign,
                "logging.enabled=true",
                "logging.backend=json",
                f"logging.path={tmp_path}/file/x/log.json",
            ),
            "logging.path: ",
        ),
        "name too long": ((sign, f"run.root={tmp_path}/{'x' * 300}/y"), "run.root: "),
        "log without ending": (
            (sign, "logging.enabled=true", "logging.backend=json", "logging.path=log.txt"),
            "logging.path: 'log.txt'; the json backend needs",
        ),
        "nothing to resume": ((sign, "resume=/nowhere/run"), "resume: /nowhere/run does not exist"),
        "best of nothing": ((sign, "checkpoint.best=val/los"), "checkpoint.best: 'val/los'"),
        "evals without text": (
            (sign, "+evals.perplexity.kind=perplexity"),
            "evals.perplexity: reads text",
        ),
        "broken override": (("train.steps=[1",), "train.steps"),
        "no value": (
            ("train.steps",),
            "'train.steps': expected key=value, such as train.steps=200",
        ),
    }


def test_bad_input_table(launchers, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    table = bad_inputs(tmp_path)
    root = tmp_path / "runs"
    wrong = {}
    for name, (argv, message) in table.items():
        base = () if "--config-name" in argv else ("--config-name", "pilot_smoke")
        place = () if any(a.startswith("run.") for a in argv) else (f"run.root={root}",)
        code, text = launchers(*base, *argv, *place, CUDA_VISIBLE_DEVICES="")
        if code != 2 or message not in text or "Traceback" in text or root.exists():
            wrong[name] = (code, text, root.exists())
    assert wrong == {}


def test_no_wandb_login_is_exit_code_2(launchers, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = launchers(
        "--config-name=pilot_smoke",
        "experiment=ladder/sign_of_winner",
        "logging.enabled=true",
        f"run.dir={tmp_path}/run",
        WANDB_MODE="online",
        WANDB_API_KEY="",
        NETRC=str(tmp_path / "none"),
    )
    assert code == 2
    assert "nobody is logged in" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["train.py", "train_dist.py", "train_fsdp.py"])
def test_a_launcher_trains_into_a_path_with_equals_signs(
    launchers,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    script: str,
) -> None:
    folder = tmp_path / "seed=0,lr=0.1 it's" / "run"
    code, text = launchers(
        "--config-name=pilot_smoke",
        "experiment=ladder/sign_of_winner",
        "train.steps=3",
        f"run.dir={folder}",
        script=script,
    )
    assert code == 0, text
    assert "step 3/3" in text
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 3
    assert f"run.dir='{tmp_path}/seed=0,lr=0.1 " in (folder / "overrides.txt").read_text()
    assert list(folder.parent.parent.iterdir()) == [folder.parent]


@pytest.mark.parametrize("script", ["train.py", "train_dist.py", "train_fsdp.py"])
def test_help(launchers, script: str) -> None:  # type: ignore[no-untyped-def]
    code, text = launchers("--help", script=script)
    assert code == 0
    assert "model: " in text
    assert "hope_smoke" in text


@pytest.mark.parametrize("name", PRIMARY)
def test_primary_configs_compose_and_read_back(name: str, tmp_path: Path) -> None:
    run = run_config(compose(name))
    assert run.name == name.removeprefix("hope/")
    assert structure(RunConfig, unstructure(run)) == run
    save_config(run, tmp_path / "config.yaml")
    assert run_config(load_config(tmp_path / "config.yaml")) == run


def test_names_and_paths_of_a_config_mean_the_same(repo: Path) -> None:
    want = compose("pilot_smoke")
    for name in ("pilot_smoke.yaml", "configs/pilot_smoke.yaml"):
        assert compose(name) == want
    assert compose(str(repo / "configs" / "pilot_smoke.yaml")) == want
    with pytest.raises(
        ConfigError, match=r"no file nonsense\.yaml in configs\. Known: .*pilot_smoke"
    ):
        compose("nonsense")


def test_compositions_share_the_published_defaults_and_leave_them_as_they_were() -> None:
    from hydra.core.config_store import ConfigStore

    other = compose("pilot_smoke")  # the first of a process adds what Hydra's plugins have
    store = ConfigStore.instance()
    assert copy.deepcopy(store) is store
    before = copy.deepcopy(store.repo)
    one = compose("pilot_smoke", ["train.steps=7", "+train.unheard=1", "~schedule", "optim=muon"])
    assert (one["train"]["unheard"], one["optim"]["kind"]) == (1, "muon")
    assert compose("pilot_smoke") == other
    assert store.repo == before


def test_an_empty_mapping_takes_all_parts_out() -> None:
    name = "experiment=ergodic/synthetic"
    assert run_config(compose("pilot_smoke", [name])).evals
    for given in (["evals={}"], ["hooks={}", "evals={ }"]):
        assert run_config(compose("pilot_smoke", [name, *given])).evals == {}
    after = ["evals={}", "+evals.nats={kind: perplexity}"]
    assert list(run_config(compose("pilot_smoke", [name, *after])).evals) == ["nats"]


def test_the_hash_covers_what_decides_the_numbers() -> None:
    def of(*overrides: str) -> str:
        return config_hash(run_config(compose("pilot_smoke", overrides)))

    base = of()
    for same in ("name=x", "run.root=/x", "logging.every=3", "checkpoint.every=7", "resume=auto"):
        assert of(same) == base
    for other in ("seed=1", "model.dim=64", "train.steps=3", "optim.lr=1"):
        assert of(other) != base


def test_only_values_that_hydra_misreads_are_quoted() -> None:
    fine = ["a=1", "a=[1,2]", "a={b:1}", "~a", "+a=x", "--help", "a='x=y'", "a=runs/x", "a="]
    assert quoted(fine) == fine
    assert quoted(["resume=runs/seed=0,lr=0.1/x"]) == ["resume='runs/seed=0,lr=0.1/x'"]
    assert quoted(["a=x,y"]) == ["a='x,y'"]
    assert quoted(["-m", "a=x,y"]) == ["-m", "a=x,y"]
    assert quoted(["a=it's"]) == [r"a='it\'s'"]
    run = run_config(compose("pilot_smoke", ["resume=runs/seed=0,lr=0.1 it's/x"]))
    assert run.resume == "runs/seed=0,lr=0.1 it's/x"


def composed(argv: list[str], configs: Path) -> tuple[dict[str, Any], int]:
    """What a function under ``hydra.main`` is given, and how often Hydra composed for it."""
    import hydra
    from hydra._internal.hydra import Hydra

    found: list[dict[str, Any]] = []
    publish()
    decorate = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="pilot")
    with pytest.MonkeyPatch.context() as patch:
        compositions: list[None] = []
        whole = Hydra.compose_config

        def counted(*args: Any, **options: Any) -> Any:
            compositions.append(None)
            return whole(*args, **options)

        patch.setattr(Hydra, "compose_config", counted)
        patch.setattr(sys, "argv", ["/anywhere/train.py", *argv])
        start(decorate(lambda cfg: found.append(plain(cfg))), configs)
    assert len(found) == 1
    return found[0], len(compositions)


def test_a_plain_command_line_is_composed_once_and_to_the_same(tmp_path: Path) -> None:
    changed = ["experiment=recall/pairs8", "+evals.classes.kind=classification", "~schedule"]
    own = "name=${hydra:job.config_name}"
    for argv in (["--config-name", "pilot_smoke"], ["--config-name=pilot_smoke", *changed, own]):
        once, count = composed(argv, config_dir())
        twice, counted = composed(argv, tmp_path)
        assert (count, counted) == (1, 2)
        assert once == twice
    assert once["name"] == "pilot_smoke"
    assert "kind" not in once["schedule"]


@pytest.mark.parametrize(
    "argv",
    [
        ["train.steps=3"],
        ["train.steps=3", "--config-name", "pilot_smoke"],
        ["--config-name", "pilot_smoke", "hydra.mode=RUN"],
        ["--config-name", "pilot_smoke", "+hydra.job.env_set.NL_TEST_ONLY=1"],
        ["--config-name", "pilot_smoke", "--run"],
    ],
)
def test_what_needs_hydra_goes_through_hydra(argv: list[str]) -> None:
    data, count = composed(argv, config_dir())
    assert count == 2
    assert "model" in data


def test_a_configuration_with_a_hydra_node_of_its_own_goes_through_hydra() -> None:
    from hydra.core.config_store import ConfigStore

    body = {"defaults": ["pilot_smoke", "_self_"], "hydra": {"job": {"env_set": {"NL_TEST": "1"}}}}
    ConfigStore.instance().store(name="own_node", node=body)
    assert composed(["--config-name", "own_node"], config_dir())[1] == 3


def test_the_public_face_imports_no_torch(repo: Path) -> None:
    code = (
        "import sys, nl; assert 'torch' not in sys.modules; print(nl.__version__, dir(nl));"
        "assert callable(nl.load_model) and 'torch' in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repo, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "build_model" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        nl.__getattr__("train")


def test_build_model_seeds_first() -> None:
    import torch

    overrides = ["model.dim=32", "model.layers=1", "model.attention.heads=2", "model.vocab_size=64"]
    torch.rand(3)
    one = nl.build_model("pilot_smoke", overrides)
    torch.rand(5)
    two = nl.build_model("pilot_smoke", overrides)
    other = nl.build_model("pilot_smoke", [*overrides, "seed=1"])
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
