"""How a command of ``nl`` is declared. Floor 8."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

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
