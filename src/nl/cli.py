"""The ``nl`` command: one parser, one place for errors, everything heavy imported late. Floor 8."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nl.config import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    Handler = Callable[[argparse.Namespace], int]

USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 for anything the user can mend (printed without a traceback); 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return USAGE
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        return int(options.handler(options))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="nl",
        description="Train, stream, evaluate and compare sequence models that keep learning.",
        epilog="nl <command> --help shows an example of each command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    add_doctor(commands)
    add_report(commands)
    add_bench(commands)
    return parser


def add_command(
    commands: Commands, name: str, summary: str, example: str, handler: Handler
) -> argparse.ArgumentParser:
    """A command with its one-line summary, an example and its handler."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_doctor(commands: Commands) -> None:
    """``nl doctor``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_doctor import doctor

        return doctor(as_json=options.json)

    parser = add_command(
        commands, "doctor", "check what this machine has and what is missing", "nl doctor", run
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def add_report(commands: Commands) -> None:
    """``nl report``."""

    def run(options: argparse.Namespace) -> int:
        from nl.report import write_report

        print(write_report(options.run))
        return 0

    example = "nl report runs/pilot_smoke/20260101-120000-0123456789ab-s0"
    parser = add_command(commands, "report", "write report.html of a run", example, run)
    parser.add_argument("run", help="run directory, finished or not")


def add_bench(commands: Commands) -> None:
    """``nl bench``."""

    def run(options: argparse.Namespace) -> int:
        from nl.bench import BenchConfig, as_table, bench

        names = {field.name for field in dataclasses.fields(BenchConfig)}
        chosen: dict[str, Any] = {
            key: value for key, value in vars(options).items() if key in names and value is not None
        }
        result = bench(BenchConfig(**chosen))
        print(json.dumps(result, indent=1) if options.json else as_table(result))
        return 0

    parser = add_command(
        commands,
        "bench",
        "time one train step of every block against the transformer",
        "nl bench --json --dim 256 --seq-len 256",
        run,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--blocks", nargs="+", help="block kinds beside the transformer")
    for name, text in (
        ("dim", "width"),
        ("layers", "blocks of the model"),
        ("heads", "attention heads"),
        ("seq-len", "tokens per row"),
        ("batch-size", "rows"),
        ("vocab-size", "token ids"),
        ("rounds", "measured turns per block"),
        ("threads", "CPU threads"),
    ):
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to run")
