"""The map from the earlier system's commands in docs/systems/groups.md, executed at a tiny size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import nl.assembly  # noqa: F401 - registers the parts
from nl.assembly import launch
from nl.cli import build_parser, main
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.run import RunDir

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/systems/groups.md"
TINY = (
    *("train.steps=2", "train.validate_every=0", "train.validate_batches=1", "stream.batch_size=4"),
    *("stream.val_words=4", "model.hidden=3", "checkpoint.every=0", "checkpoint.at=[1]"),
)


def commands() -> list[list[str]]:
    """Every command of the page's bash blocks as words, ``uv run`` left out."""
    text = "".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[2:] for words in lines if words]


def of(*head: str) -> list[list[str]]:
    """What follows a head in the commands that have it, each once."""
    found = [words[len(head) :] for words in commands() if tuple(words[: len(head)]) == head]
    assert found, head
    return list({tuple(words): words for words in found}.values())


@pytest.mark.parametrize("words", of("python", "train.py"), ids=" ".join)
def test_training_commands_run(words: list[str], tmp_path: Path) -> None:
    assert words[:2] == ["--config-name", "pilot_smoke"]
    config = compose(words[1], [*words[2:], *TINY, f"run.dir={tmp_path / 'run'}"])
    run = RunDir.open(launch(run_config(config)))
    assert run.finished()


@pytest.mark.parametrize("file", sorted({words[0] for words in of("nl", "sweep")}))
def test_sweeps_compose(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one width of every kind of network; the flags of the page are the parser's."""
    for words in of("nl", "sweep"):
        assert build_parser().parse_args(["sweep", *words]).file == words[0]
    data = yaml.safe_load((ROOT / file).read_text())
    data["grid"] = {"model.hidden": [3]}
    for part in data.get("axes", {}).values():
        del part[1:-1]
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(data))
    assert main(["sweep", str(small), "--dry-run"]) == 0
    assert "nothing was run" in "".join(capsys.readouterr())


def test_everything_else_on_the_page_is_known() -> None:
    heads = {tuple(words[:2]) for words in commands()}
    assert heads == {
        ("python", "train.py"),
        ("python", "benchmarks/groups.py"),
        ("nl", "sweep"),
        ("nl", "staircase"),
    }


def test_the_map_names_every_old_key() -> None:
    from nl.config.legacy_groups import GROUPS

    names = set(re.findall(r"[a-z_0-9]+", PAGE.read_text().split("key of the earlier system")[1]))
    assert {key.rpartition(".")[2] for key in GROUPS} - {"description"} <= names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.group_name=C0", "out of range"),
        ("stream.group_name=M11", "no group; C10, C3xC3"),
        ("stream.group_name=TABLE", "row 0 has an element twice"),
        ("data.group_name=cn", "set stream.group_name=C10"),
        ("training.epochs=10", "set train.steps"),
        ("stream.length=3", "stream.length: 3; model=sequential_mlp composes 2 elements"),
        ("stream.group_name=D5", "objective.spectrum: C10; stream.group_name=D5 is another group"),
        ("stream.group_name=C7", "model.size: 10; .* has 7 elements: set model.size=7"),
        ("stream.targets=prefixes", "stream.targets: prefixes; model=sequential_mlp gives last"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(override: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "no_group.json"
    table.write_text("[[0, 0], [1, 1]]")
    override = override.replace("TABLE", str(table))
    given = ["experiment=groups/c10", override, *TINY, f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=message):
        launch(run_config(compose("pilot_smoke", given)))
    assert not (tmp_path / "run").exists()
