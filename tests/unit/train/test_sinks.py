"""Where rows go, and that nothing there stops training."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nl
from nl.config import ConfigError
from nl.config.run import LoggingConfig
from nl.core.env_file import read_env_file
from nl.core.logs import get_logger, setup_logging
from nl.run import RunDir, read_records
from nl.train.charts import charts, finals, named
from nl.train.sinks import ConsoleSink, check_logging


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_the_json_backend_is_a_copy_also_after_resuming(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    target = tmp_path / "deep" / f"log.{suffix}"
    changes: dict[str, Any] = {
        "run__dir": str(tmp_path / "r"),
        "logging": {"enabled": True, "backend": "json", "path": str(target), "every": 1},
        "train__steps": 9,
    }
    monkeypatch.setenv("TINY_CRASH_AT", "5")
    monkeypatch.setenv("TINY_CRASH_SIGNAL", "SIGTERM")
    with pytest.raises(SystemExit):
        nl.launch(tiny.tiny_run(**changes))
    monkeypatch.delenv("TINY_CRASH_AT")
    nl.launch(tiny.tiny_run(resume="auto", **changes))
    found = json.loads(target.read_text()) if suffix == "json" else read_records(target)
    assert found == read_records(tmp_path / "r" / "metrics.jsonl")
    assert [row["step"] for row in found if row["split"] == "train"] == list(range(1, 10))


class FakeRun:
    id = "abc123"

    def __init__(self, fail: bool) -> None:
        self.fail, self.rows, self.code = fail, [], []

    def define_metric(self, *names: str, **options: str) -> None: ...
    def finish(self) -> None: ...

    def log_code(self, root: str, include_fn: Any) -> None:
        every = (str(path) for path in Path(root).rglob("*") if path.is_file())
        self.code += [path for path in every if include_fn(path, root)]

    def log(self, row: dict[str, Any]) -> None:
        if self.fail and row.get("step", 9) > 2:
            raise FakeRun.trouble("the server is on fire")
        self.rows.append(row)

    trouble: type[Exception] = RuntimeError


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real package with a stand-in for ``init`` that records how it was called."""
    import wandb

    calls: list[dict[str, Any]] = []
    made: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        calls.append(options)
        if wandb.fail == "init":
            raise wandb.errors.CommError("no route")
        made.append(FakeRun(wandb.fail == "log"))
        return made[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "calls", calls, raising=False)
    monkeypatch.setattr(wandb, "made", made, raising=False)
    monkeypatch.setattr(wandb, "fail", "", raising=False)
    return wandb


def wandb_run(tiny: ModuleType, folder: Path, **changes: Any) -> Path:
    base = {"run__dir": str(folder), "logging__enabled": True, "train__steps": 5}
    return nl.launch(tiny.tiny_run(**(base | changes)))


def test_wandb_gets_the_rows_and_its_run_goes_on(
    tiny: ModuleType, tmp_path: Path, wandb: Any
) -> None:
    wandb_run(tiny, tmp_path / "r")
    wandb_run(tiny, tmp_path / "r", train__steps=7, resume="auto")
    assert [call["id"] for call in wandb.calls] == [None, "abc123"]
    assert wandb.calls[0]["config"]["train"]["steps"] == 5
    first, second = ([r["step"] for r in made.rows if "train/loss" in r] for made in wandb.made)
    assert (first, second) == ([1, 2, 3, 4, 5], [6, 7])
    assert any("val/a/loss" in row for row in wandb.made[0].rows)


@pytest.mark.parametrize("fail", ["init", "log"])
def test_wandb_failing_is_said_once_and_training_goes_on(
    tiny: ModuleType, tmp_path: Path, wandb: Any, fail: str
) -> None:
    wandb.fail = fail
    wandb_run(tiny, tmp_path / "r")
    text = (tmp_path / "r" / "logs" / "rank_00.log").read_text()
    assert text.count("W&B failed and is off for this run") == 1
    assert len(read_records(tmp_path / "r" / "metrics.jsonl")) == 8
    assert (tmp_path / "r" / "summary.json").is_file()


@pytest.mark.parametrize("trouble", [AttributeError, KeyError, ImportError, ZeroDivisionError])
def test_a_crashing_logger_never_stops_training(
    tiny: ModuleType,
    tmp_path: Path,
    wandb: Any,
    trouble: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb.fail = "log"
    monkeypatch.setattr(FakeRun, "trouble", trouble)
    wandb_run(tiny, tmp_path / "r")
    assert (tmp_path / "r" / "summary.json").is_file()
    text = (tmp_path / "r" / "logs" / "rank_00.log").read_text()
    assert text.count("W&B failed and is off for this run") == 1


def test_a_namespace_has_every_key_in_it_and_charts_at_the_end(
    tiny: ModuleType, tmp_path: Path, wandb: Any
) -> None:
    folder = tmp_path / "r" / "artifacts" / "evals" / "classification"
    logging = {"enabled": True, "every": 1, "group": "ladder", "namespace": "mlp"}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), train__steps=5, logging=logging))
    (made,) = wandb.made
    assert wandb.calls[0]["group"] == "ladder"
    assert all(key.startswith("mlp/") for row in made.rows for key in row)
    first = next(row for row in made.rows if "mlp/train/loss" in row)
    assert first["mlp/metrics/loss_train"] == first["mlp/train/loss"]
    assert "mlp/metrics/grad_norm" in first
    assert first["mlp/step"] == 1
    assert any("mlp/metrics/loss_val/a" in row for row in made.rows)
    drawn = {key for row in made.rows for key in row if len(row) == 1}
    assert {"mlp/metrics/loss", "mlp/metrics/loss_val/a_history"} <= drawn
    assert made.rows[-1]["mlp/step"] == 5
    assert not folder.exists(), "this run classifies nothing"
    assert not (tmp_path / "r/artifacts/last_layer.jsonl").exists(), "its model names no last map"


def ladder_run(folder: Path, network: str, steps: int, **more: str) -> Path:
    from nl.config.hydra import compose, run_config

    told = [f"model.network={network}", f"train.steps={steps}", f"run.dir={folder}", "resume=auto"]
    told += ["train.validate_every=0", "train.device=cpu", "train.threads=1", "evals={}"]
    told += ["stream.train_size=200", "stream.test_size=20", "logging.enabled=true"]
    told += ["logging.every=1", f"logging.namespace={network}", "checkpoint.every=2"]
    told += [f"{key}={value}" for key, value in more.items()]
    run = run_config(compose("pilot_smoke", ["experiment=ladder/sign_of_winner", *told]))
    return nl.launch(run)


def test_the_last_layer_and_the_logits_of_attention_are_sent(tmp_path: Path, wandb: Any) -> None:
    folder = ladder_run(tmp_path / "r", "self_attention", 3)
    ladder_run(tmp_path / "r", "self_attention", 5)
    lines = read_records(folder / "artifacts" / "last_layer.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    sent = [row for made in wandb.made for row in made.rows if "self_attention/train/loss" in row]
    for row, line in zip(sent, lines, strict=True):
        assert row["self_attention/step"] == line["step"]
        norm = sum(value**2 for value in line["weight"]) ** 0.5
        assert row["self_attention/metrics/weight_norm"] == pytest.approx(norm, rel=1e-5)
        for name in ("mean", "std", "maxabs"):
            key = f"attn_logits_{name}"
            assert row[f"self_attention/metrics/{key}"] == line[key]
        assert abs(line["attn_logits_mean"]) <= line["attn_logits_maxabs"]
        assert (len(line["weight"]), len(line["bias"])) == (16, 1)
    weight = nl.load_model(folder).final_linear().weight.flatten().tolist()  # type: ignore[operator]
    assert lines[-1]["weight"] == pytest.approx(weight)
    drawn = {k: v for row in wandb.made[1].rows if len(row) == 1 for k, v in row.items()}
    table = drawn["self_attention/metrics/weight"].table.data
    assert len(table) == 16 * 5
    assert {line[1] for line in table} == {f"w[{i}]" for i in range(16)}
    assert [line[2] for line in drawn["self_attention/metrics/bias"].table.data] == [
        line["bias"][0] for line in lines
    ]


def test_a_network_that_does_not_attend_has_no_logits(tmp_path: Path, wandb: Any) -> None:
    folder = ladder_run(tmp_path / "r", "mlp", 1)
    (line,) = read_records(folder / "artifacts" / "last_layer.jsonl")
    assert set(line) == {"step", "weight", "bias", "weight_norm"}
    keys = {key for row in wandb.made[0].rows for key in row}
    assert "mlp/metrics/weight_norm" in keys
    assert not any("attn" in key for key in keys)


def test_charts_are_made_from_files(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run_dir = RunDir(tmp_path)
    rows = [row(n) | {"accuracy": n / 4, "grad_norm": 0.5} for n in (1, 2)]
    rows += [row(2, "val"), row(2, "val") | {"loss": None}]
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in rows))
    line = {"step": 2, "suite": "classification", "task": "test", "metric": "accuracy"}
    run_dir.evals.write_text(json.dumps({**line, "value": 0.75}) + "\n")
    folder = run_dir.artifacts / "evals" / "classification"
    folder.mkdir(parents=True)
    told = {
        "split": "test",
        "roc": [[0.0, 0.0], [0.5, 1.0]],
        "pr": [[0.0, 1.0], [1.0, 0.5]],
        "confusion": [[2, 1], [0, 3]],
    }
    (folder / "test.json").write_text(json.dumps(told))
    (folder / "overlap.json").write_text("{}")
    made = {key: value for one in charts(run_dir, wandb.plot) for key, value in one.items()}
    assert list(made) == [
        "metrics/loss",
        "metrics/accuracy_train_history",
        "metrics/loss_val_history",
        "test/roc",
        "test/pr",
        "test/confusion",
    ]
    assert [list(line) for line in made["test/roc"].table.data] == [
        [0.0, "true positive rate", 0.0],
        [0.5, "true positive rate", 1.0],
    ]
    counts = {(line[0], line[1]): line[2] for line in made["test/confusion"].table.data}
    assert counts == {("0", "0"): 2, ("0", "1"): 1, ("1", "0"): 0, ("1", "1"): 3}
    assert finals(run_dir) == {"metrics/accuracy_test": 0.75}
    assert named(rows[0], "")["train/loss"] == rows[0]["loss"]


def test_wandb_gets_the_code_where_it_is_asked_for(
    tiny: ModuleType, tmp_path: Path, wandb: Any
) -> None:
    wandb_run(tiny, tmp_path / "a")
    wandb_run(tiny, tmp_path / "b", logging={"enabled": True, "code": True})
    assert not wandb.made[0].code
    assert any(path.endswith("nl/train/sinks.py") for path in wandb.made[1].code)
    assert all(path.endswith((".py", ".yaml")) for path in wandb.made[1].code)
    with pytest.raises(ConfigError, match="code: true; only W&B keeps code"):
        LoggingConfig(backend="json", path="x.json", code=True)


def test_a_file_of_settings_fills_in_what_the_environment_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Names of W&B alone; values are never shown."""
    secret = "f" * 40
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_TAGS"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)  # so that it is gone again after the test
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nobody is logged in"):
        check_logging(LoggingConfig(enabled=True))
    lines = (
        *("# of this machine", "", "PATH=/nowhere", "WANDB_PROJECT=theirs", "no line"),
        *(f'export WANDB_API_KEY="{secret}"  # secret', "WANDB_ENTITY = team # ours"),
    )
    (tmp_path / ".env").write_text("\n".join(lines))
    path = os.environ["PATH"]
    with caplog.at_level("INFO", logger="nl"):
        monkeypatch.setattr(logging.getLogger("nl"), "propagate", True)
        check_logging(LoggingConfig(enabled=True))
    assert os.environ["WANDB_API_KEY"] == secret
    assert os.environ["WANDB_ENTITY"] == "team"
    assert (os.environ["WANDB_PROJECT"], os.environ["PATH"]) == ("mine", path)
    assert secret not in caplog.text
    assert read_env_file(tmp_path / "none") == ()
    monkeypatch.delenv("WANDB_ENTITY")
    assert read_env_file() == ("WANDB_ENTITY",)


def test_log_files_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nl.core.logs.FILE_BYTES", 400)
    file = tmp_path / "logs" / "rank_00.log"
    setup_logging(0, file)
    try:
        for number in range(200):
            get_logger("nl.test").info("line %d", number)
    finally:
        setup_logging(0)
    kept = sorted(path.name for path in file.parent.iterdir())
    assert kept == ["rank_00.log", *(f"rank_00.log.{n}" for n in range(1, 6))]
    assert "line 199" in file.read_text()
    assert all(path.stat().st_size <= 400 for path in file.parent.iterdir())


def test_what_only_wandb_has_is_refused_elsewhere() -> None:
    for name in ("group", "namespace"):
        with pytest.raises(ConfigError, match=f"{name}: 'x'; only W&B has it"):
            LoggingConfig(backend="json", path="x.json", **{name: "x"})  # type: ignore[arg-type]


def test_wandb_disabled_needs_no_account(tiny: ModuleType, tmp_path: Path) -> None:
    wandb_run(tiny, tmp_path / "r")
    assert (tmp_path / "r" / "summary.json").is_file()


def test_nobody_logged_in_is_refused_before_anything_is_written(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match=r"logging\.backend: wandb, but nobody is logged in"):
        wandb_run(tiny, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "netrc").write_text("machine api.wandb.test login user password secret\n")
    check_logging(LoggingConfig(enabled=True))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    check_logging(LoggingConfig(enabled=True))


def test_a_missing_wandb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'nl\[wandb\]'"):
        check_logging(LoggingConfig(enabled=True))


def row(step: int, split: str = "train") -> dict[str, Any]:
    return {"step": step, "split": split, "loss": 2.0, "perf/tokens_per_s": 1234.5}


def test_the_console_says_step_loss_rate_and_times(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 90.0, 91.0, 92.0, 93.0, 93.0))  # the first step compiles
    monkeypatch.setattr("nl.train.sinks.time.monotonic", lambda: next(clock))
    logger = logging.getLogger("nl")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        sink = ConsoleSink(100, 0, interval=2)
        for step in (1, 2, 3, 100):
            sink.write(row(step))
        sink.write({"step": 100, "split": "val", "loss": float("nan")})
        sink.close()
    finally:
        logger.removeHandler(caplog.handler)
    first, *middle, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("step 1/100  train  loss 2.0000  1,23")
    assert first.endswith("0:01:30 elapsed")
    assert len(middle) == 2
    assert middle[0].endswith("0:01:32 elapsed  0:01:37 left")
    assert middle[1].startswith("step 100/100")
    assert last == "step 100/100  val  loss non-finite"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    sink = ConsoleSink(10, 2)
    sink.write(row(3))
    sink.write(row(3, "val"))
    sink.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3/10" in captured.err
