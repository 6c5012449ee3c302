"""A manifest end to end: ingest, filter, dedup, divide, tokenizer, shard; resumes where it was.

Example: python scripts/data/process_mixture.py configs/data/stdlib.yaml --until divide
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from nl.data.files import check_writable, write_json
from nl.data.prep.command import run
from nl.data.prep.engine import Executor
from nl.data.prep.flags import add_flags, read_flags
from nl.data.prep.mixture import STAGES, read_mixture
from nl.data.prep.mixture_run import (
    RunOptions,
    overridden,
    plan_lines,
    run_mixture,
    stream_overrides,
    table,
)


def main() -> None:
    """Read the flags, run the stages, print the table of their counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("manifest", type=Path, help="a mixture in YAML, such as configs/data/stdlib.yaml")
    flag("--tokenizer-path", help="a tokenizer that exists; default: train one on the train split")
    flag("--log-file", type=Path, help="also write the table to this JSON file")
    flag("--until", choices=STAGES, default=STAGES[-1], help="last stage; " + shown)
    flag("--work-dir", type=Path, help="stages' directories; default: <output_dir>/work")
    flag("--part-mb", type=float, default=32.0, help="megabytes of a unit of work; " + shown)
    flag("--tokenizer-log", type=Path, help="log of its training; default: beside it")
    flag("--force", nargs="*", default=[], metavar="STAGE", help="stages to do again")
    flag("--dry-run", action="store_true", help="say what would be read; write nothing")
    more = "change the manifest: output_dir=data/x, or <data set>.limit=1000"
    flag("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help=more)
    add_flags(parser, Executor, kind="executor")
    a = parser.parse_args()
    mixture = overridden(read_mixture(a.manifest), a.changes)
    if a.dry_run:
        for line in plan_lines(mixture):
            print(line)
        return
    names = ("until", "tokenizer_path", "tokenizer_log", "part_mb")
    chosen = {name: getattr(a, name) for name in names} | {"force": tuple(a.force)}
    check_writable(a.log_file)
    options = RunOptions(work=a.work_dir, executor=read_flags(a, Executor), **chosen)
    rows = list(run_mixture(mixture, options))
    print(*table(rows), sep="\n")
    if a.log_file:
        stats = [asdict(row) for row in rows]
        write_json(a.log_file, {"manifest": str(a.manifest), "name": mixture.name, "stats": stats})
    if a.until == STAGES[-1]:
        print(f"train on it with: {stream_overrides(mixture)}")


if __name__ == "__main__":
    sys.exit(run(main))
