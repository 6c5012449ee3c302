"""Texts with labels: JSON lines, mirrors of hub data sets, and a set made of a data directory.

Floor 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nl.config import ConfigError
from nl.data.manifest import documents, read_manifest
from nl.data.prep.mirror import save_split

BUILT_IN = "modules"
MIN_LETTERS, SNIPPET = 80, 240
"""Characters of a snippet of the built-in set."""


class Labelled(NamedTuple):
    """One example; ``split`` is train, test, or empty where the set is not divided."""

    text: str
    label: str
    split: str = ""


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub: identifier, configuration, columns, splits for train and test."""

    name: str
    subset: str | None
    text: str
    label: str
    splits: tuple[str, str] = ("train", "test")


HUB = {
    "clinc": HubSet("clinc/clinc_oos", "plus", "text", "intent"),
    "banking77": HubSet("PolyAI/banking77", None, "text", "label"),
    "dbpedia14": HubSet("fancyzhx/dbpedia_14", None, "content", "label"),
}


def read_jsonl_examples(path: Path, split: str = "") -> list[Labelled]:
    """The lines of a file {"text", "label"}.

    Raises:
        ConfigError: no such file, or a line that is none (its number is named).
    """
    if not path.is_file():
        raise ConfigError(f'{path}: no such file; a line is {{"text": ..., "label": ...}}.')
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            text, label = row["text"], row["label"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{path}, line {number}: is no {{"text": ..., "label": ...}}.'
            ) from error
        fits = isinstance(text, str) and text.strip() and isinstance(label, str | int)
        if not fits or not str(label).strip():
            raise ConfigError(f"{path}, line {number}: text and label must be there, not empty.")
        found.append(Labelled(text.strip(), str(label).strip(), split))
    return found


def read_hub_examples(name: str, mirror: Path | None) -> list[Labelled]:
    """``<mirror>/<name>/train.jsonl`` and ``test.jsonl``, in the hub's columns or text and label.

    Files that are not there are fetched from the hub into the mirror (``eval/mirrors`` without
    one).

    Raises:
        ConfigError: neither mirror nor hub has it; one line says what would do.
    """
    hub = HUB[name]
    found = []
    for split, theirs in zip(("train", "test"), hub.splits, strict=True):
        path = (mirror or Path("eval/mirrors")) / name / f"{split}.jsonl"
        if not path.is_file():
            try:
                save_split(hub.name, hub.subset, theirs, path, (hub.text, hub.label))
            except ConfigError as error:
                raise ConfigError(
                    f"--dataset {name}: looked for {path} and {hub.name} on the hub; "
                    f'lines of {{"text", "label"}} at the former would do. {error}'
                ) from error
        found += _columns(path, split, hub)
    return found


def _columns(path: Path, split: str, hub: HubSet) -> list[Labelled]:
    rows: list[Any] = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if rows and "text" in rows[0] and "label" in rows[0]:
        return read_jsonl_examples(path, split)
    if rows and not {hub.text, hub.label} <= set(rows[0]):
        raise ConfigError(f"{path}: has neither text and label nor {hub.text} and {hub.label}.")
    return [Labelled(str(row[hub.text]).strip(), str(row[hub.label]), split) for row in rows]


def module_examples(path: str | Path) -> list[Labelled]:
    """Which module is this from? Snippets of held-out sources and docstrings of ``stdlib``.

    The label is the top-level module or package; a snippet with that word in it is left out, and
    so is text of the training split, which the model has seen with its neighbours.

    Raises:
        ConfigError: the data directory is not made of the standard library.
    """
    found = []
    for split in ("val", "test"):
        domains = read_manifest(path).splits.get(split, {})
        for domain in domains:
            for document in documents(path, split, domain):
                place = document.source.removeprefix("docstring:")
                if not place.endswith(".py"):
                    continue
                label = place.split("/")[0].removesuffix(".py")
                found += [Labelled(text, label) for text in snippets(document.text, label)]
    if not found:
        raise ConfigError(
            f"{path}: no held-out text of Python modules; give --data of a directory with the "
            "stdlib corpus, or --local-jsonl."
        )
    return found


def snippets(text: str, label: str) -> Iterator[str]:
    """Pieces of ``SNIPPET`` characters, cut at lines, that do not say ``label``."""
    word = re.compile(re.escape(label.strip("_")), re.IGNORECASE)
    piece = ""
    for line in [*text.split("\n"), " " * SNIPPET]:
        if len(piece) + len(line) < SNIPPET:
            piece = f"{piece}\n{line}"
            continue
        short = " ".join(piece.split())
        if len(short) >= MIN_LETTERS and not word.search(short):
            yield short
        piece = line if len(line) < SNIPPET else ""
