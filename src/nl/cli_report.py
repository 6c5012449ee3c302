"""``nl report``: the page of a run, the dashboard of a sweep, one page over many runs. Floor 8."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nl.cli_command import Commands, add_command
from nl.config import ConfigError
from nl.run.files import writable_folder

EARLIER = "earlier seeds 0 and 1"


def add_report(commands: Commands) -> None:
    """``nl report``."""
    example = "nl report runs/pilot_smoke/20260101-120000-0123456789ab-s0, or nl report runs"
    summary = "write report.html of a run, the dashboard of a sweep, or one page over many runs"
    parser = add_command(commands, "report", summary, example, report)
    flag = parser.add_argument
    flag("run", nargs="+", help="a run, sweeps, or folders with runs for one page over all")
    flag("--index", help="the page over many; default: index.html in the first")
    flag("--output", help="write everything below this folder instead of beside the runs")
    flag("--pages", action="store_true", help="of a sweep: the page of every run, too")
    flag("--legacy-csv", action="store_true", help="the files that an earlier system wrote")


def report(options: argparse.Namespace) -> int:
    """Write the pages and print where they are."""
    from nl.cli_model import write_baselines
    from nl.report import write_report
    from nl.report.index import INDEX, is_run, write_index
    from nl.report.legacy_grid import FOLDER, write_run_view
    from nl.report.sweep_page import is_sweep

    paths = [Path(path) for path in options.run]
    output = Path(options.output) if options.output else None
    if all(is_sweep(path) for path in paths):
        return sweep_report(paths, output, options)
    one = len(paths) == 1 and (is_run(paths[0]) or not paths[0].is_dir()) and options.index is None
    if options.pages or (options.legacy_csv and not one):
        name = "--pages" if options.pages else "--legacy-csv"
        raise ConfigError(f"{name}: {paths[0]} is no sweep; leave it out.")
    if one:
        if output is None and paths[0].is_dir():
            writable_folder(paths[0], "--output")
            write_baselines(paths[0])
        print(write_report(paths[0], output))
        if options.legacy_csv:
            print(*write_run_view(paths[0], (output or paths[0]) / FOLDER), sep="\n")
        return 0
    page = Path(options.index) if options.index else (output or paths[0]) / INDEX
    print(f"{page}: {write_index(paths, page)} runs")
    return 0


def sweep_report(roots: Sequence[Path], output: Path | None, options: argparse.Namespace) -> int:
    """The dashboard of one sweep or of several together, with what belongs to it."""
    from nl.data.ladder_tasks import TASKS
    from nl.report import write_report
    from nl.report.index import is_run
    from nl.report.legacy_csv import write_legacy
    from nl.report.legacy_grid import FOLDER, reads_tasks, write_grid_view
    from nl.report.sweep_page import merged, write_sweep_page

    root, rows = merged(roots)
    if options.pages:
        for row in rows:
            run = root / str(row.get("run_dir"))
            if is_run(run):
                write_report(run, output / str(row["run_dir"]) if output else None)
    page = Path(options.index) if options.index else (output or roots[0]) / "index.html"
    found, tables = overlaps(root, rows), []
    if options.legacy_csv and reads_tasks(root, rows):
        tables = write_grid_view(roots, root, rows, page.parent / FOLDER)
    elif options.legacy_csv:  # refused before a page is written
        tables = write_legacy(rows, found, page.parent, TASKS)
    print(write_sweep_page(roots, page, overlaps=found, pages=output), *tables, sep="\n")
    return 0


def overlaps(root: Path, rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Per task what test shares with train, of streams whose examples can be compared.

    The earlier system's data, where a run was trained on such, comes first with its own seeds.
    """
    from nl.report.dashboard import OWN

    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        path = root / str(row.get("run_dir")) / "config.yaml"
        task = str(row.get("column/task"))
        if task in found or not path.is_file():
            continue
        config = yaml.safe_load(path.read_text()) or {}
        data = config.get("stream")
        if not isinstance(data, dict) or data.get("kind") != "ladder":
            continue
        from nl.config import structure
        from nl.config.groups import StreamConfig
        from nl.core.seeds import SeedBook
        from nl.data.ladder import LadderConfig, overlap

        stream = structure(StreamConfig, data, "stream")
        assert isinstance(stream, LadderConfig)
        seeds = {OWN: SeedBook(int(config.get("seed", 0))).seed("data")}
        if stream.legacy:
            seeds = {EARLIER: 0, **seeds}
        found[task] = [
            {
                "data": name,
                **overlap(stream.examples("train", at), stream.examples("test", at))._asdict(),
            }
            for name, at in seeds.items()
        ]
    return found
