"""Hub tasks exist in the harness, mirrors keep its prompts, an unreachable hub is asked once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from nl.config import ConfigError
from nl.eval.hub_tasks import (
    HUB_TASKS,
    expand,
    harness_folder,
    listing,
    offline_if_unreachable,
    task_folder,
)


def read_task(path: Path) -> dict[str, Any]:
    """A task file of the harness with what it includes, Python functions left out."""
    lines = [line for line in path.read_text().splitlines() if "!function" not in line]
    data = yaml.safe_load("\n".join(lines))
    base = read_task(path.parent / data["include"]) if "include" in data else {}
    return base | data


@pytest.mark.parametrize("name", sorted(HUB_TASKS))
def test_names_and_splits_are_the_harness_own(name: str, tmp_path: Path) -> None:
    task = HUB_TASKS[name]
    official = read_task(harness_folder() / task.file)
    assert official["task"] == task.name
    assert official["dataset_path"] == task.path
    assert official.get("dataset_name") == task.subset
    code = [p.read_text() for p in (harness_folder() / task.file).parent.glob("*.py")]
    for column in task.columns:
        assert any(column in part for part in (str(official), *code)), column
    assert (official.get("test_split") or official["validation_split"]) == task.split
    assert f"{name}: {task.dataset}" in listing()
    assert expand([task.name, name, "cloze"]) == [name, "cloze"]
    assert task_folder(name, tmp_path, None) == (harness_folder() / task.file).parent


def test_mirror_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"arc_easy/test\.jsonl"):
        task_folder("arc_easy", tmp_path, tmp_path)
    assert not list(tmp_path.rglob("*.yaml"))
    (tmp_path / "arc_easy").mkdir()
    file = tmp_path / "arc_easy" / "test.jsonl"
    for text, word in (("{}", "no column 'question'"), ("x", "does not begin with a line of JSON")):
        file.write_text(text + "\n")
        with pytest.raises(ConfigError, match=f"{word}.*mirror_task.py --tasks arc_easy"):
            task_folder("arc_easy", tmp_path / "out", tmp_path)
    file.write_text('{"question": "", "choices": {}, "answerKey": ""}\n')
    place = task_folder("arc_easy", tmp_path / "out", tmp_path)
    mirror = yaml.safe_load((place / "arc_easy.yaml").read_text())
    assert mirror["training_split"] is mirror["validation_split"] is None
    assert "test_split" not in mirror
    assert Path(mirror["include"]).is_file()


def test_unreachable_hub_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    tried: list[Any] = []

    def refuse(address: Any, timeout: float) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert offline_if_unreachable()
    assert offline_if_unreachable()
    assert len(tried) == 1
    assert constants.HF_HUB_OFFLINE
