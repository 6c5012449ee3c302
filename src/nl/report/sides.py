"""Saved evaluations as something that can be put side by side. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.report.frames import Row, read_rows
from nl.report.tables import newest

Key = tuple[str, str, str, str]
"""(suite, task, metric, memorisation mode)"""
Pair = tuple[float, float]
"""(numerator, denominator); the denominator of a mean's sample is 1."""


LOGS = {"perplexity": ("nats_per_token", "answer_nats")}
"""Metrics that are the exponential of another one, which their samples are kept of."""
FILES = (".json", ".safetensors")
"""Endings that are left out of a name."""


@dataclass(frozen=True)
class Side:
    """One run, folder or file of results.

    Attributes:
        name: of its column.
        source: where it was read.
        rows: by key.
        samples: by key, then by the sample's name.
        facts: by suite: checkpoint, step, seed, tokenizer, digests of prompts.
    """

    name: str
    source: Path
    rows: dict[Key, Row]
    samples: dict[Key, dict[str, Pair]] = field(default_factory=dict)
    facts: dict[str, Row] = field(default_factory=dict)

    @property
    def suites(self) -> list[str]:
        """Names of the suites, in order."""
        return list(dict.fromkeys(key[0] for key in self.rows))


def read_side(path: Path, name: str) -> Side:
    """A result file, a folder of them, or a run directory.

    Raises:
        ConfigError: nothing there that an evaluation wrote.
    """
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; give a run, a result JSON or a folder of them.")
    side = Side(name, path, {})
    if path.is_file():
        files = [path]
    else:
        inner = path / "artifacts" / "evals"
        files = sorted((inner if inner.is_dir() else path).glob("*.json"))
        for row in newest(read_rows(path / "evals.jsonl", [])):
            side.rows[key_of(row, str(row.get("suite", "")))] = row
    for file in files:
        add_file(side, file)
    if not side.rows:
        raise ConfigError(
            f"{path}: holds no evaluation; run nl eval on it, or give --suite to measure it now."
        )
    return side


def add_file(side: Side, file: Path) -> None:
    """Rows and samples of one result file; other JSON files are passed over.

    Raises:
        ConfigError: the file was named and is not JSON.
    """
    try:
        record = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("rows"), list):
        return
    suite = str(record.get("suite", file.stem))
    side.facts[suite] = {k: v for k, v in record.items() if k not in ("rows", "details")}
    for row in record["rows"]:
        side.rows[key_of(row, suite)] = row
    if isinstance(record.get("samples"), str):
        add_samples(side, suite, file.parent / record["samples"])


def key_of(row: Row, suite: str) -> Key:
    """What a row measures."""
    words = (row.get("task", ""), row.get("metric", ""), row.get("memorize", "off"))
    task, metric, mode = map(str, words)
    return suite, task, metric, mode


def add_samples(side: Side, suite: str, path: Path) -> None:
    """Read ``samples.jsonl`` beside a result file, if it came along."""
    for line in read_rows(path, []):
        for metric, value in line.get("values", {}).items():
            key = key_of({**line, "metric": metric}, suite)
            pair = value if isinstance(value, list) else [value, 1]
            if all(isinstance(x, (int, float)) for x in pair):
                found = side.samples.setdefault(key, {})
                found[str(line["sample"])] = (float(pair[0]), float(pair[1]))


def samples_of(side: Side, key: Key) -> dict[str, Pair]:
    """The samples behind a row; ``<split>/all`` has those of its domains, if all are there.

    A perplexity has those of its logarithm.
    """
    suite, task, metric, mode = key
    number = side.rows[key].get("n")
    kept = (_kept(side, (suite, task, name, mode), number) for name in LOGS.get(metric, (metric,)))
    return next(filter(None, kept), {})


def _kept(side: Side, key: Key, number: object) -> dict[str, Pair]:
    """The samples of a key, for a pooled row those of all domains if they are ``number``."""
    if key in side.samples or not key[1].endswith("/all"):
        return side.samples.get(key, {})
    split = key[1].removesuffix("all")
    found: dict[str, Pair] = {}
    for other, named in side.samples.items():
        if other[1].startswith(split) and (other[0], *other[2:]) == (key[0], *key[2:]):
            found |= {f"{other[1]} {name}": pair for name, pair in named.items()}
    return found if len(found) == number else {}


def aligned(sides: list[Side]) -> list[Side]:
    """Sides that each hold one suite are compared whatever their files are called."""
    if any(len(side.suites) != 1 for side in sides):
        return sides
    suite = sides[0].suites[0]

    def renamed(found: dict[Key, Any]) -> dict[Key, Any]:
        return {(suite, *key[1:]): value for key, value in found.items()}

    return [
        Side(
            side.name,
            side.source,
            renamed(side.rows),
            renamed(side.samples),
            {suite: next(iter(side.facts.values()))} if side.facts else {},
        )
        for side in sides
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Last parts of the paths, as many as it takes to tell them apart."""
    whole = [
        path.resolve().with_suffix("") if path.suffix in FILES else path.resolve() for path in paths
    ]
    for parts in range(1, 5):
        names = ["-".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{number}-{path.name}" for number, path in enumerate(whole, 1)]
