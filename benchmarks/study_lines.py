"""Finished runs as lines of one CSV file, which outlives their directories.

A study may be longer than one machine's turn: what is in its file is not trained again. A key says
which run a line is of (a named tuple), a line what that run left (a dataclass); both have fields of
int, float, str and tuples of numbers.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

K = TypeVar("K")
L = TypeVar("L")


def parsed(text: str, kind: Any) -> Any:
    """A cell of the file as a value of an annotated type; a tuple's words stand apart."""
    if get_origin(kind) is tuple:
        return tuple(get_args(kind)[0](word) for word in text.split())
    return kind(text)


def written(value: Any) -> str:
    """A value as a cell of the file, floats with six digits."""
    if isinstance(value, tuple):
        return " ".join(map(written, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def columns(key: type, line: type) -> list[str]:
    """The first line of the file."""
    return [*get_type_hints(key), *get_type_hints(line)]


def read(path: Path, key: type[K], line: type[L]) -> dict[K, L]:
    """The lines of the file; none where there is no file.

    Exits with code 2 where the file has other columns: it is of another version of the study.
    """
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows, found = list(reader), list(reader.fieldnames or ())
    if found != (wanted := columns(key, line)):
        print(
            f"{path}: columns {', '.join(found)}; this study writes {', '.join(wanted)}. Remove "
            "the file to begin anew, or name another with --output.",
            file=sys.stderr,
        )
        raise SystemExit(2)

    def made(kind: Any, row: dict[str, str]) -> Any:
        types = get_type_hints(kind)
        return kind(**{name: parsed(row[name], one) for name, one in types.items()})

    return {made(key, row): made(line, row) for row in rows}


def write(path: Path, lines: dict[K, L]) -> None:
    """All lines, in the order of their keys; a study without a finished run leaves no file."""
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    some = next(iter(lines.items()))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns(*map(type, some)))
        for one in sorted(lines):  # type: ignore[type-var]
            values: Any = (*one, *astuple(lines[one]))  # type: ignore[misc, call-overload]
            writer.writerow([written(value) for value in values])
