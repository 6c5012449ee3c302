"""``nl staircase``: theory of a configuration, plateaus of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nl.cli import main
from nl.run.files import write_json

TINY = [
    "experiment=groups/d3",
    *("model.hidden=40", "optim.lr=0.02", "train.steps=30", "train.validate_every=0"),
    *("logging.every=1", "train.max_norm=0"),
]


def test_theory_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["staircase", "experiment=groups/c10"]) == 0
    text = capsys.readouterr().out
    assert "C10, 10 elements, words of 2; 1200 steps" in text
    assert "simulated from the initial weights: 1b at step 4" in text
    assert main(["staircase", "experiment=groups/c5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["theory"]
    assert found["simulated"] is None
    assert found["stairs"][0]["before"] == pytest.approx(0.16)


def test_plateaus_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nl.config.hydra import compose, run_config, save_config
    from nl.run import RunDir

    home = RunDir(tmp_path / "run")
    home.artifacts.mkdir(parents=True)
    save_config(run_config(compose("pilot_smoke", TINY)), home.config)
    write_json(home.meta, {})
    losses = [5.5] * 8 + [3.0, 0.8, 0.51, 0.5, 0.5, 0.49, 0.3, 0.05]
    rows = [{"step": n + 1, "split": "train", "loss": loss} for n, loss in enumerate(losses)]
    home.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["staircase", "--run", str(home.path), "--no-simulation"]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [["0.5", "0.5"], ["11", "14", "1b", "16"]] in [[w[:2], w[3:]] for w in words]
    plateaus = json.loads((home.artifacts / "plateaus.json").read_text())
    assert [row["escape"] for row in plateaus] == [10, 16]
    theory = json.loads((home.artifacts / "theory.json").read_text())
    assert [row["learned"] for row in theory["stairs"]] == [["2a"], ["1b"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=recall/pairs8"], "stream: recall; theory is known of"),
        (["experiment=groups/c10", "stream.group_name=C77777"], "no group; C10, C3xC3"),
        (["--run", "nowhere"], "nowhere"),
        (["--run", "nowhere", "seed=1"], "seed=1: --run has its own configuration"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["staircase", *arguments]) == 2
    assert message in capsys.readouterr().err
