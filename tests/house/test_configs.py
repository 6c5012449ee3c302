"""Every configuration file composes and becomes a checked run, without reading data."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.config.run import RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NOT_COMPOSED = {"continual", "data", "deepspeed", "sweep"}
"""Folders of files that are read by scripts, not composed by Hydra."""
BASE = "pilot_smoke"


def names() -> list[str]:
    files = [p.relative_to(CONFIGS).with_suffix("").as_posix() for p in CONFIGS.rglob("*.yaml")]
    return sorted(name for name in files if name.split("/")[0] not in NOT_COMPOSED)


def check(name: str) -> None:
    """Compose a file the way it is used: a primary by name, a group's file as an override.

    Raises:
        ConfigError: it does not compose, or the run would be refused.
    """
    folder, _, option = name.partition("/")
    if not option or folder == "hope":
        run_config(compose(name))
    else:
        sign = "+" if folder == "evals" else ""
        run_config(compose(BASE, [f"{sign}{folder}={option}"]))


@pytest.mark.parametrize("name", names())
def test_every_file_composes(name: str) -> None:
    check(name)


def test_every_field_of_a_run_can_be_set_on_the_command_line() -> None:
    assert {field.name for field in fields(RunConfig)} <= set(compose(BASE))


@pytest.mark.parametrize(
    "text", ["defaults: [pilot_smoke, _self_]\ntrian:\n  steps: 3\n", "seed: 1\n", "a: [\n"]
)
def test_composition_check_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "planted.yaml").write_text(text)
    monkeypatch.setattr("nl.config.hydra.config_dir", lambda: tmp_path / "configs")
    with pytest.raises(ConfigError):
        check("planted")
