"""Plain data <-> frozen dataclasses: strict, dotted paths, all complaints at once. Floor 0."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from nl.config.registry import ConfigError, Group, lookup, table, unknown

T = TypeVar("T")
MISSING = "???"
YAML_BOOLS = {False: ("off", "no"), True: ("on", "yes")}
"""Words that YAML reads as a bool where they are not quoted."""
UNQUOTED = "YAML reads off, no, on and yes as false and true: quote the word, as 'off'."


def structure(tp: type[T], value: Any, path: str = "") -> T:
    """Convert plain data (dicts, lists, scalars) to ``tp``.

    Widening is int -> float only; bool is not int; ``"???"`` counts as missing; NaN and infinity
    are refused. A field annotated with a registry group takes a mapping with ``kind``.

    Raises:
        ConfigError: all complaints at once, one per line, each with its dotted path as typed on
            the command line.
    """
    problems: list[str] = []
    result = _convert(tp, value, path, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return typing.cast(T, result)


def unstructure(obj: Any) -> Any:
    """Plain data that ``structure`` reads back to an equal object (``kind`` included)."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        kind = getattr(obj, "kind", "")
        head = {"kind": kind} if kind else {}
        fields = dataclasses.fields(obj)
        return head | {f.name: unstructure(getattr(obj, f.name)) for f in fields}
    if isinstance(obj, (list, tuple)):
        return [unstructure(v) for v in obj]
    if isinstance(obj, dict):
        return {k: unstructure(v) for k, v in obj.items()}
    return obj


def defaults_of(cls: type) -> dict[str, Any]:
    """The defaults of a registered dataclass as plain data; a required field reads ``"???"``."""
    kind = getattr(cls, "kind", "")
    out: dict[str, Any] = {"kind": kind} if kind else {}
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            out[f.name] = unstructure(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            out[f.name] = unstructure(f.default_factory())
        else:
            out[f.name] = MISSING
    return out


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _convert(tp: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if tp is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, path, problems)
    if origin is typing.Literal:
        return _convert_word(args, value, path, problems)
    if origin is tuple or origin is list:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{path}: expected a list, [a, b], got {value!r}.")
            return None
        return origin(_convert(args[0], v, f"{path}[{i}]", problems) for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{path}: expected a mapping, got {value!r}.")
            return None
        return {str(k): _convert(args[1], v, _join(path, k), problems) for k, v in value.items()}
    if isinstance(tp, type) and (dataclasses.is_dataclass(tp) or issubclass(tp, Group)):
        return _convert_dataclass(tp, value, path, problems)
    return _convert_scalar(tp, value, path, problems)


def _convert_word(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    """One of the words of a ``Literal``; off and on may come as what YAML reads them as."""
    if isinstance(value, bool):
        meant = [word for word in args if word in YAML_BOOLS[value]]
        if len(meant) == 1:
            return meant[0]
    elif value in args:
        return value
    told = unknown(path, str(value), [str(a) for a in args])
    problems.append(told + (f" {UNQUOTED}" if isinstance(value, bool) else ""))
    return None


def _convert_union(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if value is None and type(None) in args:
        return None
    collected: list[list[str]] = []
    for arg in (a for a in args if a is not type(None)):
        attempt: list[str] = []
        result = _convert(arg, value, path, attempt)
        if not attempt:
            return result
        collected.append(attempt)
    fewest: list[str] = min(collected, key=len)
    problems.extend(fewest)
    return None


def _convert_scalar(tp: Any, value: Any, path: str, problems: list[str]) -> Any:
    if tp is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value == MISSING:
        problems.append(f"{path}: missing; set it to a value of type {tp.__name__}.")
    elif not isinstance(value, tp) or (tp is int and isinstance(value, bool)):
        told = f" {UNQUOTED}" if tp is str and isinstance(value, bool) else ""
        problems.append(f"{path}: expected {tp.__name__}, got {value!r}.{told}")
    elif tp is float and not math.isfinite(value):
        problems.append(f"{path}: expected a finite number, got {value!r}.")
    return value


def _convert_dataclass(tp: Any, value: Any, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(value) and isinstance(value, tp):
        return value
    if not isinstance(value, dict):
        problems.append(f"{path}: expected a mapping, got {value!r}.")
        return None
    data = dict(value)
    kind = data.pop("kind", None)
    if issubclass(tp, Group) and not tp.kind:
        if kind in (None, MISSING):
            known = ", ".join(table(tp.group))
            problems.append(f"{_join(path, 'kind')}: missing; choose one of {known}.")
            return None
        try:
            tp = lookup(tp.group, kind, _join(path, "kind"))
        except ConfigError as error:
            problems.append(str(error))
            return None
    return _fill(tp, data, path, problems)


def _fill(tp: Any, data: dict[str, Any], path: str, problems: list[str]) -> Any:
    before = len(problems)
    fields = {f.name: f for f in dataclasses.fields(tp)}
    hints = typing.get_type_hints(tp)
    problems.extend(_not_there(tp, path, [str(k) for k in data if k not in fields], list(fields)))
    kwargs: dict[str, Any] = {}
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if name in data and not (data[name] == MISSING and required):
            kwargs[name] = _convert(hints[name], data[name], _join(path, name), problems)
        elif required:
            problems.append(f"{_join(path, name)}: missing; it has no default.")
    if len(problems) > before:
        return None
    try:
        return tp(**kwargs)
    except ConfigError as error:
        problems.extend(_join(path, line) for line in str(error).splitlines())
        return None


def _not_there(tp: Any, path: str, keys: list[str], known: list[str]) -> list[str]:
    """What to say about keys without a field; in one line about those that other kinds have."""
    others: dict[str, set[str]] = {}
    if issubclass(tp, Group):
        for name, cls in table(tp.group).items():
            has = {f.name for f in dataclasses.fields(cls)} if name != tp.kind else ()
            others |= {key: others.get(key, set()) | {name} for key in keys if key in has}
    lines = [unknown(path or "config", key, known) for key in keys if key not in others]
    if others:
        kinds = ", ".join(sorted(set().union(*others.values())))
        how = f"set {path}.kind to one of those or leave them out"
        if path == tp.group:
            how = f"choose with {path}={tp.kind}, which brings the options of that kind"
        lines.append(
            f"{path}: {', '.join(others)}: no option of kind={tp.kind} (but of {kinds}); {how}. "
            f"Known: {', '.join(sorted(known)) or '(none)'}."
        )
    return lines


def require(condition: bool, message: str) -> None:
    """Cross-field check for ``__post_init__``: raise ``ConfigError(message)`` unless it holds.

    The message starts with the field name; ``structure`` puts the dotted path in front.
    """
    if not condition:
        raise ConfigError(message)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Surrounds the writing of a file or folder: what the system refuses is a ``ConfigError``."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        file = next((place for place in (path, *path.parents) if place.is_file()), None)
        if file and isinstance(error, FileExistsError | NotADirectoryError):
            why = f"{file} is a file, not a directory"
        raise ConfigError(f"{path}: cannot be written ({why}).") from error


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(data, dict) or not data:
        return {path: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found
