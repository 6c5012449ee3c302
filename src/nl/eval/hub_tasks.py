"""Tasks of the evaluation hub: their names and folders in lm_eval, local mirrors. Floor 6."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml

from nl.config import ConfigError

CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class HubTask:
    """One task of lm_eval.

    Attributes:
        name: the harness's task name.
        file: its YAML below lm_eval/tasks.
        path: identifier of its data set.
        split: the split that is scored.
        columns: what its prompts and answers are made of.
        subset: of the data set.
    """

    name: str
    file: str
    path: str
    split: str
    columns: tuple[str, ...]
    subset: str | None = None

    @property
    def dataset(self) -> str:
        """The data set and its subset, in words."""
        return f"{self.path} ({self.subset})" if self.subset else self.path


_ARC = ("question", "choices", "answerKey")
HUB_TASKS = {
    "piqa": HubTask(
        "piqa", "piqa/piqa.yaml", "baber/piqa", "validation", ("goal", "sol1", "sol2", "label")
    ),
    "hellaswag": HubTask(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        "Rowan/hellaswag",
        "validation",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    "winogrande": HubTask(
        "winogrande",
        "winogrande/default.yaml",
        "allenai/winogrande",
        "validation",
        ("sentence", "option1", "option2", "answer"),
        "winogrande_xl",
    ),
    "arc_easy": HubTask(
        "arc_easy", "arc/arc_easy.yaml", "allenai/ai2_arc", "test", _ARC, "ARC-Easy"
    ),
    "arc_challenge": HubTask(
        "arc_challenge", "arc/arc_challenge.yaml", "allenai/ai2_arc", "test", _ARC, "ARC-Challenge"
    ),
    "boolq": HubTask(
        "boolq",
        "super_glue/boolq/default.yaml",
        "aps/super_glue",
        "validation",
        ("passage", "question", "label"),
        "boolq",
    ),
    "siqa": HubTask(
        "social_iqa",
        "siqa/siqa.yaml",
        "lighteval/siqa",
        "validation",
        ("context", "question", "answerA", "answerB", "answerC", "label"),
    ),
    "commonsenseqa": HubTask(
        "commonsense_qa", "commonsense_qa/default.yaml", "tau/commonsense_qa", "validation", _ARC
    ),
    "openbookqa": HubTask(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        "allenai/openbookqa",
        "test",
        ("question_stem", "choices", "answerKey"),
        "main",
    ),
    "lambada": HubTask(
        "lambada_openai",
        "lambada/lambada_openai.yaml",
        "EleutherAI/lambada_openai",
        "test",
        ("text",),
        "default",
    ),
    "wikitext": HubTask(
        "wikitext",
        "wikitext/wikitext.yaml",
        "EleutherAI/wikitext_document_level",
        "test",
        ("page",),
        "wikitext-2-raw-v1",
    ),
}
"""Every hub task by our name."""

ALIASES = {task.name: name for name, task in HUB_TASKS.items()} | {"social_i_qa": "siqa"}
"""Other names of tasks: the harness's own."""


def expand(names: Sequence[str]) -> list[str]:
    """Names of tasks with ``all`` and the harness's names replaced by ours, each once."""
    found: list[str] = []
    for name in names:
        found += list(HUB_TASKS) if name == "all" else [ALIASES.get(name, name)]
    return list(dict.fromkeys(found))


def harness_folder() -> Path:
    """The folder of lm_eval's own tasks.

    Raises:
        ConfigError: lm_eval is not installed.
    """
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise ConfigError(
            "lm_eval: not installed; install the extra: uv sync --extra eval."
        ) from error
    return Path(lm_eval.__file__).parent / "tasks"


def task_folder(name: str, folder: Path, data_dir: Path | None) -> Path:
    """The folder that lm_eval must index for one hub task, and nothing else.

    Without ``data_dir`` it is lm_eval's own and the data comes from the hub. With it, a YAML is
    written to ``folder`` that takes prompt and metrics from lm_eval's own and reads
    ``<data_dir>/<name>/<split>.jsonl`` in the columns of the hub's data set.

    Raises:
        ConfigError: the local file is not there, or is not of that data set.
    """
    task = HUB_TASKS[name]
    official = harness_folder() / task.file
    if data_dir is None:
        return official.parent
    files = {path.stem: str(path.resolve()) for path in sorted((data_dir / name).glob("*.jsonl"))}
    if task.split not in files:
        raise ConfigError(f"{name}: no {data_dir / name / f'{task.split}.jsonl'}; {recipe(name)}")
    check_columns(name, Path(files[task.split]))
    mirror: dict[str, Any] = {
        "include": str(official),
        "task": task.name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str((folder / ".cache").resolve())},
    }
    splits = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
    mirror |= {key: None for key, split in splits.items() if split not in files}
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.yaml").write_text(yaml.safe_dump(mirror, sort_keys=False))
    return place


def offline_if_unreachable() -> bool:
    """Look once whether the hub answers; if not, work from its local cache without retrying.

    Returns:
        Whether the hub's library is in offline mode now.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not getproxies():
        place = urlsplit(constants.ENDPOINT)
        try:
            address = (place.hostname or "", place.port or 443)
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    return bool(constants.HF_HUB_OFFLINE)


def check_columns(name: str, path: Path) -> None:
    """Refuse a local file that has not the columns of the hub's data set.

    Raises:
        ConfigError: naming file, line and column.
    """
    with path.open(encoding="utf-8") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ConfigError(f"{name}: {path} does not begin with a line of JSON; {recipe(name)}")
    missing = [column for column in HUB_TASKS[name].columns if column not in row]
    if missing:
        raise ConfigError(
            f"{name}: {path} has no column {missing[0]!r} (it has {', '.join(row)}); {recipe(name)}"
        )


def recipe(name: str) -> str:
    """How to get one task's data."""
    task = HUB_TASKS[name]
    return (
        f"with a network run python scripts/data/mirror_task.py --tasks {name} --output-dir <dir>, "
        f"which saves split {task.split} of {task.dataset} as <dir>/{name}/{task.split}.jsonl "
        f"(columns {', '.join(task.columns)}), and give --data-dir <dir>."
    )


def listing() -> str:
    """All task names, one per line, with where their data comes from."""
    lines = [
        "cloze: made from held-out documents of the data directory",
        "<file>.yaml: a task of your own, in lm_eval's format",
        "all: every one of these, official prompts of lm_eval:",
    ]
    for name, task in HUB_TASKS.items():
        lines += [
            f"{name}: {task.dataset}, split {task.split}",
            f"    file <data-dir>/{name}/{task.split}.jsonl, columns {', '.join(task.columns)}",
        ]
    lines += [
        "The files are made on a machine with a network:",
        "    python scripts/data/mirror_task.py --tasks all --output-dir <data-dir>",
    ]
    return "\n".join(lines)
