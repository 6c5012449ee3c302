"""The closing table of scripts/run_cpu_ddp_smoke.sh, from the files of its runs; exit 1 on failure.

Example: python scripts/checks/ddp_table.py runs/ddp_smoke
It fails where two ranks are not as one process (1e-5), or a resumed run is not bit-equal.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5


def rows(run: Path) -> dict[int, dict[str, Any]]:
    """Training rows by step."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.strip()]
    return {row["step"]: row for row in found if row["split"] == "train"}


def main() -> int:
    """Read the flags, print the table, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds the runs one, two and parts")
    args = parser.parse_args()
    one, two, parts = (rows(args.folder / name) for name in ("one", "two", "parts"))
    meta = json.loads((args.folder / "parts" / "meta.json").read_text())
    at = [resume["step"] for resume in meta["resumes"]]
    print(f"\n{'step':>4}  {'one process':>12}  {'two ranks':>12}  {'difference':>10}  resumed run")
    worst, equal = 0.0, one.keys() == two.keys() == parts.keys()
    for step in sorted(one.keys() & two.keys() & parts.keys()):
        a, b, c = (run[step] for run in (one, two, parts))
        gap = abs(a["loss"] - b["loss"]) / a["loss"]
        same = all(b[key] == c[key] for key in ("loss", "grad_norm", "tokens"))
        worst, equal = max(worst, gap), equal and same
        note = ("bit-equal" if same else "differs") + (", stopped here" if step in at else "")
        print(f"{step:>4}  {a['loss']:>12.6f}  {b['loss']:>12.6f}  {gap:>10.1e}  {note}")
    good = worst <= TOLERANCE and equal and bool(at)
    print(f"two ranks as one process: within {worst:.1e} (allowed {TOLERANCE:.0e})")
    print(f"stopped at step {', '.join(map(str, at)) or 'none'} and resumed: ", end="")
    print("bit-equal to the run without a stop" if equal else "NOT equal")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
