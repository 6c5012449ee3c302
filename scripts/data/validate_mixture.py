"""Check a mixture that was built: files, digests, counts, licences, and real overlap of texts.

Exit code 1 if something is wrong, among it more overlap than --overlap-threshold.
Example: python scripts/data/validate_mixture.py --manifest configs/data/stdlib.yaml
"""

import argparse
import sys
from pathlib import Path

from nl.data.files import check_writable, write_json
from nl.data.prep.command import run
from nl.data.prep.engine import Executor
from nl.data.prep.flags import add_flags, read_flags
from nl.data.prep.mixture import read_mixture
from nl.data.prep.mixture_run import overridden
from nl.data.prep.validate import report_lines, validate


def main() -> None:
    """Read the flags, check, print; end with code 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--manifest", type=Path, required=True, help="the manifest it was built from")
    flag("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="as built")
    flag("--output", type=Path, help="write the report here as JSON")
    flag("--overlap-threshold", type=float, default=0.05, help="share of documents; " + shown)
    flag("--held-out-limit", type=int, default=10_000, help="documents of val and test; " + shown)
    add_flags(parser, Executor, kind="executor")
    a = parser.parse_args()
    check_writable(a.output)
    found = validate(
        overridden(read_mixture(a.manifest), a.changes),
        read_flags(a, Executor),
        threshold=a.overlap_threshold,
        limit=a.held_out_limit,
    )
    if a.output:
        write_json(a.output, found)
    print(*report_lines(found), sep="\n")
    sys.exit(1 if found["problems"] else 0)


if __name__ == "__main__":
    sys.exit(run(main))
