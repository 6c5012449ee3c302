"""Compare the training losses of two runs step by step; exit 1 where they differ.

Example: python scripts/checks/loss_compare.py runs/a runs/b --assert-equal
Steps that only one of them logged are left out; at least one step must be common.
"""

import argparse
import json
import sys
from pathlib import Path


def losses(path: Path) -> dict[int, float]:
    """Step -> loss of the training rows of a run directory or a metrics.jsonl."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    return {row["step"]: row["loss"] for row in rows if row.get("split") == "train"}


def main() -> int:
    """Read the flags, compare, say what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="run directory or metrics.jsonl")
    parser.add_argument("second", type=Path, help="run directory or metrics.jsonl")
    parser.add_argument("--assert-equal", action="store_true", help="fail on any difference at all")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest relative difference")
    args = parser.parse_args()
    for path in (args.first, args.second):
        if not path.exists():
            print(f"error: {path}: no such file or run directory", file=sys.stderr)
            return 2
    first, second = losses(args.first), losses(args.second)
    common = sorted(first.keys() & second.keys())
    if not common:
        print("error: no training step was logged by both", file=sys.stderr)
        return 2
    limit = 0.0 if args.assert_equal else args.tolerance
    worst = max(common, key=lambda s: abs(first[s] - second[s]))
    gap = abs(first[worst] - second[worst]) / max(abs(first[worst]), 1e-30)
    print(f"{len(common)} common steps {common[0]}..{common[-1]}, largest difference {gap:.3g}")
    return 0 if gap <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
