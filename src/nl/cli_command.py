"""How a command of ``nl`` is declared. Floor 8."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from nl.config import ConfigError

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction
Handler = Callable[[argparse.Namespace], int]


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the default of a flag where it has a value: no None, no empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default in (None, "", []) or action.default is False
        return action.help if empty else super()._get_help_string(action)


def add_command(
    commands: Commands, name: str, summary: str, example: str, handler: Handler
) -> argparse.ArgumentParser:
    """A command with its one-line summary, an example and its handler."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=DefaultsFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


@contextlib.contextmanager
def naming_flags(*names: str) -> Iterator[None]:
    """A complaint inside about one of these arguments names its flag instead."""
    try:
        yield
    except ConfigError as error:
        name, colon, rest = str(error).partition(":")
        if name not in names or not colon:
            raise
        raise ConfigError(f"--{name.replace('_', '-')}:{rest}") from error
