"""One registry: a frozen dataclass is selectable as ``<group>=<kind>`` everywhere. Floor 0."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound=type)
_TABLES: dict[str, dict[str, type]] = {}

ALIKE = 0.6
"""From this likeness on a known name may have been meant."""
MOST_NAMES = 30
"""Names that a complaint lists; of more, the nearest."""
NEAREST = 8


class ConfigError(ValueError):
    """A complaint a user can act on: dotted key or file, value, what is allowed, what to do.

    Launchers, the CLI and scripts print it without a traceback and exit with code 2.
    """


class Group:
    """Base of a registry group: a field annotated with a group accepts any of its kinds."""

    group: ClassVar[str] = ""
    kind: ClassVar[str] = ""


def register(group: str, kind: str) -> Callable[[T], T]:
    """Class decorator: make a frozen dataclass selectable as ``<group>=<kind>``."""

    def decorate(cls: T) -> T:
        entries = _TABLES.setdefault(group, {})
        known = entries.get(kind)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ConfigError(f"{group}={kind}: already registered by {known.__qualname__}.")
        cls.group, cls.kind = group, kind  # type: ignore[attr-defined]
        entries[kind] = cls
        return cls

    return decorate


def table(group: str) -> dict[str, type]:
    """All kinds of ``group`` by name, in order of registration."""
    return dict(_TABLES.get(group, {}))


def groups() -> list[str]:
    """Names of all groups that hold at least one kind."""
    return sorted(_TABLES)


def lookup(group: str, kind: Any, path: str) -> type:
    """The class registered as ``group=kind``.

    Raises:
        ConfigError: naming ``path``, the value, the nearest known name and all known names.
    """
    entries = _TABLES.get(group, {})
    if kind in entries:
        return entries[kind]
    raise ConfigError(unknown(path, str(kind), entries))


def unknown(path: str, got: str, known: Iterable[str], where: str = "") -> str:
    """The standard sentence for an unknown name, with a nearest match where there is one.

    Args:
        path: what was to have the name.
        got: the name.
        known: all names.
        where: where all names can be seen; of many, the nearest alone are listed then.
    """
    names = sorted(known)
    ranked = sorted(names, key=lambda name: -_likeness(got, name))
    alike = ranked and _likeness(got, ranked[0]) >= ALIKE
    hint = f" Did you mean {ranked[0]!r}?" if alike else ""
    if where and len(names) > MOST_NAMES:
        shown, rest = ", ".join(ranked[:NEAREST]), len(names) - NEAREST
        return f"{path}: unknown {got!r}.{hint} Nearest: {shown}; {rest} others: {where}."
    return f"{path}: unknown {got!r}.{hint} Known: {', '.join(names) or '(none)'}."


def _likeness(got: str, name: str) -> float:
    """How much a name is like what was typed, 0 to 1; of a path also its last part counts."""
    parts = {name, name.rpartition("/")[2]}
    return max(difflib.SequenceMatcher(None, part, got).ratio() for part in parts)
