"""One registry: a frozen dataclass is selectable as ``<group>=<kind>`` everywhere. Floor 0."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound=type)
_TABLES: dict[str, dict[str, type]] = {}


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


def unknown(path: str, got: str, known: Iterable[str]) -> str:
    """The standard sentence for an unknown name, with a nearest match where there is one."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{path}: unknown {got!r}.{hint} Known: {', '.join(names) or '(none)'}."
