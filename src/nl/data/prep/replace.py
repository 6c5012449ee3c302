"""What a command may replace in its output directory: only what it wrote itself. Floor 1."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from nl.config import ConfigError

OWN = re.compile(r"part_\d{5}(_\d{5})?\.jsonl|shard_\d{5}(_\d{3})?\.bin")
CURE = "choose another output directory."


def check_own(output: Path, folders: Iterable[str], stage: str) -> None:
    """Complain, before the work, that replacing folders of ``output`` would lose something.

    Splits are put where folders of their names are. Files named like those of a stage, or listed in
    the manifest there, are a stage's; anything else belongs to somebody.

    Raises:
        ConfigError: the directory is another stage's, or a folder holds somebody's file.
    """
    made = _stage_of(output / "stage.json")
    if made not in (None, stage):
        raise ConfigError(
            f"{output}: holds what the stage {made!r} wrote, which {stage!r} would replace; {CURE}"
        )
    manifest = output / "manifest.json"
    listed = manifest.read_text(encoding="utf-8") if manifest.is_file() else ""
    for folder in folders:
        for path in sorted((output / folder).rglob("*")):
            name = path.relative_to(output).as_posix()
            if path.is_file() and not OWN.fullmatch(path.name) and f'"{name}"' not in listed:
                raise ConfigError(
                    f"{path}: would be lost: no data command wrote it, and the folder {folder!r} "
                    f"of {output} is replaced; {CURE}"
                )


def check_apart(corpus: Path, output: Path) -> None:
    """Complain that a command would replace the corpus that it reads.

    Raises:
        ConfigError: both are the same directory.
    """
    if corpus.resolve() == output.resolve():
        raise ConfigError(f"{output}: is the corpus that is read and would be replaced; {CURE}")


def _stage_of(log: Path) -> str | None:
    try:
        found = json.loads(log.read_bytes())["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)
