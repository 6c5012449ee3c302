"""Flags of a command from the fields of an options record; their names in a manifest. Floor 1."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from nl.config import ConfigError
from nl.config.fields import field_docs

Options = TypeVar("Options")
FLAG = re.compile(r"(?<!uv sync )--(no-)?([a-z][a-z-]*)")
"""A flag of the command in a complaint; that of ``uv sync --extra`` is none."""


def add_flags(parser: argparse.ArgumentParser, options: type, **names: str) -> None:
    """A flag for every field: ``min_chars`` is ``--min-chars``.

    Args:
        parser: gets the flags, in a group of their own.
        options: a dataclass whose fields are numbers, texts, truth values or tuples of texts.
        names: field -> flag where it is not the field's name.
    """
    docs, types = field_docs(options), typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        flag = "--" + names.get(field.name, field.name).replace("_", "-")
        text = docs[field.name].replace("``", "").replace("%", "%%")
        shown = f"{text} (default: %(default)s)"
        found: dict[str, Any] = {"dest": field.name, "default": field.default}
        if types[field.name] is bool:
            found |= {"action": argparse.BooleanOptionalAction, "help": text}
        elif typing.get_origin(types[field.name]) is tuple:
            found |= {"nargs": "*", "metavar": "NAME", "help": text}
        else:
            kind = types[field.name]
            found |= {"type": kind, "metavar": kind.__name__.upper(), "help": shown}
        parser.add_argument(flag, **found)


def read_flags(args: argparse.Namespace, options: type[Options]) -> Options:
    """The record that the flags describe.

    Raises:
        ConfigError: from its ``__post_init__``.
    """
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return options(**made)


@contextlib.contextmanager
def keys_for_flags(keys: Mapping[str, str]) -> Iterator[None]:
    """Inside, complaints name keys of a manifest where they name flags, which its command lacks.

    Args:
        keys: field -> key: with ``web.pii`` for ``pii``, ``--no-pii`` becomes ``web.pii=false``.
    """

    def key(found: re.Match[str]) -> str:
        named = keys.get(found[2].replace("-", "_"))
        if named is None:
            return found[0]
        return f"{named}=false" if found[1] else named

    try:
        yield
    except ConfigError as error:
        raise type(error)(FLAG.sub(key, str(error))) from error
