"""The flags of ``nl probe``. Floor 8."""

from __future__ import annotations

import argparse

from nl.cli_command import Commands, add_command


def add_probe(commands: Commands) -> None:
    """``nl probe list | show | sample | verify``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_probe import run as act

        return act(options)

    summary = "list, show, sample or verify the tasks that are made as they are read"
    parser = add_command(commands, "probe", summary, "nl probe show mqar_update", run)
    actions = parser.add_subparsers(dest="action", metavar="<action>", required=True)
    one = add_command(actions, "list", "show one line per task", "nl probe list", run)
    one.add_argument("--write-docs", action="store_true", help="write docs/probes.md instead")
    one = add_command(
        actions, "show", "say what a task asks", "nl probe show mqar pairs=2 length=16", run
    )
    add_task(one)
    one = add_command(
        actions,
        "sample",
        "print rows, scored positions with [the right answer]",
        "nl probe sample nonstat_online -n 5",
        run,
    )
    add_task(one)
    one.add_argument("-n", type=int, default=5, help="rows")
    one.add_argument("--split", default="test", help="train, val or test")
    one.add_argument("--seed", type=int, default=0, help="of the rows")
    one.add_argument("--shortcut", help="also show where this shortcut is wrong")
    text = "check oracle, chance, bounds of shortcuts, splits, determinism and digests"
    one = add_command(actions, "verify", text, "nl probe verify mqar cl_remap", run)
    one.add_argument("task", nargs="*", help="tasks; none: all")
    add_preset(one)
    one.add_argument("--seed", type=int, default=0, help="of the rows; digests are those of 0")
    one.add_argument("--output", default="runs/probes", help="folder of leakage.json")


def add_task(parser: argparse.ArgumentParser) -> None:
    """What a command about one task takes."""
    parser.add_argument("task", help="a task of nl probe list, or the kind of a stream")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="fields of the stream")
    add_preset(parser)


def add_preset(parser: argparse.ArgumentParser) -> None:
    """``--preset``."""
    parser.add_argument("--preset", default="smoke", help="smoke, small, medium or paper")
