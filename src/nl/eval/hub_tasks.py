"""Tasks of the evaluation hub: their names and folders in lm_eval, local mirrors. Floor 6."""

from __future__ import annotations

import socket
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
        dataset: identifier of its data set.
        split: the split that is scored.
    """

    name: str
    file: str
    dataset: str
    split: str


HUB_TASKS = {
    "piqa": HubTask("piqa", "piqa/piqa.yaml", "baber/piqa", "validation"),
    "hellaswag": HubTask("hellaswag", "hellaswag/hellaswag.yaml", "Rowan/hellaswag", "validation"),
    "winogrande": HubTask(
        "winogrande", "winogrande/default.yaml", "allenai/winogrande (winogrande_xl)", "validation"
    ),
    "arc_easy": HubTask("arc_easy", "arc/arc_easy.yaml", "allenai/ai2_arc (ARC-Easy)", "test"),
    "arc_challenge": HubTask(
        "arc_challenge", "arc/arc_challenge.yaml", "allenai/ai2_arc (ARC-Challenge)", "test"
    ),
    "boolq": HubTask(
        "boolq", "super_glue/boolq/default.yaml", "aps/super_glue (boolq)", "validation"
    ),
    "siqa": HubTask("social_iqa", "siqa/siqa.yaml", "lighteval/siqa", "validation"),
    "lambada": HubTask(
        "lambada_openai",
        "lambada/lambada_openai.yaml",
        "EleutherAI/lambada_openai (default)",
        "test",
    ),
    "wikitext": HubTask(
        "wikitext",
        "wikitext/wikitext.yaml",
        "EleutherAI/wikitext_document_level (wikitext-2-raw-v1)",
        "test",
    ),
}
"""Every hub task by our name."""


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
        ConfigError: the local file is not there.
    """
    task = HUB_TASKS[name]
    official = harness_folder() / task.file
    if data_dir is None:
        return official.parent
    files = {path.stem: str(path.resolve()) for path in sorted((data_dir / name).glob("*.jsonl"))}
    if task.split not in files:
        raise ConfigError(f"{name}: no {data_dir / name / f'{task.split}.jsonl'}; {recipe(name)}")
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


def recipe(name: str) -> str:
    """How to get one task's data."""
    task = HUB_TASKS[name]
    return (
        f"save split {task.split} of {task.dataset} as JSON lines to "
        f"<dir>/{name}/{task.split}.jsonl and give --data-dir <dir>."
    )


def listing() -> str:
    """All task names, one per line, with where their data comes from."""
    lines = ["cloze: made from held-out documents of the data directory"]
    lines += [f"{name}: {task.dataset}, split {task.split}" for name, task in HUB_TASKS.items()]
    return "\n".join(lines)
