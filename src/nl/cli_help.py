"""``nl help``: groups, kinds and fields with types, defaults and docstrings. Floor 8.

Help text is read from the source: the string under a field is its documentation.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from nl.config import ConfigError, Group, lookup, table
from nl.config.fields import field_docs
from nl.config.registry import groups, unknown
from nl.config.run import RunConfig
from nl.config.structure import MISSING, unstructure

WIDTH = 96


def show_help(topic: str) -> int:
    """Print help on nothing (all groups), ``group``, ``group=kind`` or a dotted key."""
    import nl.assembly  # noqa: F401 - registers every part

    print("\n".join(lines_for(topic)))
    return 0


def lines_for(topic: str) -> list[str]:
    """The help of a topic.

    Raises:
        ConfigError: no such group, kind or key; the nearest one is named.
    """
    if not topic:
        return overview()
    if "=" in topic:
        group, _, kind = topic.partition("=")
        if group not in groups():
            raise ConfigError(unknown("help", group, groups()))
        return about_class(lookup(group, kind, group), f"{group}={kind}")
    if topic in groups():
        return [f"{topic}: one of"] + [f"  {k:24} {summary(c)}" for k, c in table(topic).items()]
    return about_key(topic)


def overview() -> list[str]:
    """All groups with their kinds, then the keys of a run."""
    lines = ["Parts, chosen with <group>=<kind>:"]
    lines += [f"  {group:12} {', '.join(table(group))}" for group in groups()]
    lines += ["", "Keys of a run, set with <key>=<value>:"]
    for field in dataclasses.fields(RunConfig):
        tp = hints(RunConfig)[field.name]
        inner = [c for c in classes_in(tp) if not issubclass(c, Group)]
        names = [f.name for c in inner for f in dataclasses.fields(c)]
        lines.append(f"  {field.name:12} {', '.join(names) if names else type_name(tp)}")
    lines += ["", "nl help model=language     nl help train.steps     nl help model.dim"]
    return lines


def about_class(cls: type, title: str) -> list[str]:
    """Title, docstring, source file and every field."""
    module = inspect.getmodule(cls)
    lines = [title, "", *textwrap.wrap(inspect.getdoc(cls) or "", WIDTH)]
    lines += ["", f"defined in {module.__name__ if module else '?'}", ""]
    return lines + about_fields(cls)


def about_fields(cls: type, indent: str = "") -> list[str]:
    """Every field, those of nested records one step further in."""
    lines = []
    for field in dataclasses.fields(cls):
        lines += [indent + text for text in about_field(cls, field)]
        for inner in classes_in(hints(cls)[field.name]):
            if not issubclass(inner, Group) or inner.kind:
                lines += about_fields(inner, indent + "    ")
    return lines


def about_field(cls: type, field: dataclasses.Field[Any]) -> list[str]:
    """``name: type = default`` and its documentation."""
    tp = hints(cls)[field.name]
    lines = [f"  {field.name}: {type_name(tp)} = {default_text(field)}"]
    text = field_docs(cls).get(field.name, "")
    return lines + textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def about_key(topic: str) -> list[str]:
    """Help of a dotted key, through every kind a group may take on the way."""
    found: list[str] = []
    wrong: list[str] = []
    for cls, field, title in walk(RunConfig, topic.split("."), "", wrong):
        tp = hints(cls)[field.name]
        found += [title, *about_field(cls, field)]
        for inner in classes_in(tp):
            if issubclass(inner, Group) and not inner.kind:
                found.append(f"  kinds: {', '.join(table(inner.group)) or '(none)'}")
            else:
                found += about_fields(inner, "    ")
    if not found:
        # Of all kinds that a group may take, the one with a name like it is meant.
        raise ConfigError(next((text for text in wrong if "Did you mean" in text), wrong[0]))
    return found


def walk(
    cls: type, parts: list[str], path: str, wrong: list[str]
) -> Iterator[tuple[type, dataclasses.Field[Any], str]]:
    """Every field that the dotted parts can mean, with a title that says in which kind."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    name, rest = parts[0], parts[1:]
    here = f"{path}.{name}" if path else name
    if name not in fields:
        wrong.append(unknown(path or "help", name, {*fields, *(() if path else groups())}))
        return
    if not rest:
        kind = getattr(cls, "kind", "")
        yield cls, fields[name], f"{here} ({cls.group}={kind})" if kind else here  # type: ignore[attr-defined]
        return
    tp = hints(cls)[name]
    inner = classes_in(tp)
    if not inner:
        wrong.append(f"{here}: {type_name(tp)} has no keys below it.")
    if typing.get_origin(tp) is dict and rest[1:]:
        rest = rest[1:]
    for target in inner:
        is_group = issubclass(target, Group) and not target.kind
        for concrete in table(target.group).values() if is_group else (target,):
            yield from walk(concrete, rest, here, wrong)


def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass."""
    return typing.get_type_hints(cls)


def classes_in(tp: Any) -> list[Any]:
    """Dataclasses and groups that a type mentions."""
    if isinstance(tp, type) and (dataclasses.is_dataclass(tp) or issubclass(tp, Group)):
        return [tp]
    return [cls for arg in typing.get_args(tp) for cls in classes_in(arg)]


def type_name(tp: Any) -> str:
    """A type as a reader writes it: ``int``, ``a | b``, ``list of float``."""
    origin, args = typing.get_origin(tp), typing.get_args(tp)
    if origin in (typing.Union, types.UnionType):
        return " | ".join("null" if a is type(None) else type_name(a) for a in args)
    if origin is typing.Literal:
        return " | ".join(map(str, args))
    if origin in (tuple, list):
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"mapping of {type_name(args[1])}"
    if isinstance(tp, type) and issubclass(tp, Group) and not tp.kind:
        return f"{tp.group} kind"
    return getattr(tp, "__name__", str(tp))


def default_text(field: dataclasses.Field[Any]) -> str:
    """The default as YAML would show it, or ``required``."""
    if field.default is not dataclasses.MISSING:
        value = unstructure(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        value = unstructure(field.default_factory())
    else:
        return "required"
    if value == MISSING:
        return "required"
    if isinstance(value, dict) and value:
        return "{...}"
    return "null" if value is None else str(value)


def summary(cls: type) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]
