"""The closing table of scripts/run_e2e_smoke.sh, from the files of the run; exit 1 on failure.

Example: python scripts/checks/e2e_table.py runs/e2e/pilot_smoke --seconds 240
It fails where the validation loss is not clearly below that of a unigram model.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

CLEARLY = 0.1
"""Nats below the unigram model that count as having learned from context."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def losses(run: Path) -> list[list[str]]:
    """Validation loss of the last step beside the unigram model, per split."""
    unigram = json.loads((run / "artifacts" / "baselines.json").read_text())["unigram"]
    rows = [row for row in rows_of(run / "metrics.jsonl") if row["split"].startswith("val/")]
    last = {row["split"]: row for row in rows if row["split"] in unigram}
    table = [["split", "step", "loss (nats/token)", "unigram model", "below it by"]]
    for split, row in last.items():
        gap = unigram[split] - row["loss"]
        numbers = [f"{row['loss']:.3f}", f"{unigram[split]:.3f}", f"{gap:.3f}"]
        table.append([split, str(row["step"]), *numbers])
        if gap < CLEARLY:
            raise SystemExit(f"failed: {split} {row['loss']:.3f}, unigram {unigram[split]:.3f}")
    return table


def measured(run: Path) -> list[list[str]]:
    """Every measured number with memorisation off and on, and chance."""
    cells: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    record = json.loads((run / "artifacts" / "evals" / "continual.json").read_text())
    for row in [*rows_of(run / "evals.jsonl"), *record["rows"]]:
        if row["value"] is not None:
            key = (row["suite"], row["task"], row["metric"])
            cells.setdefault(key, {})[row["memorize"]] = row
    table = [["suite", "task", "metric", "n", "memories off", "memories on", "chance"]]
    for (suite, task, metric), modes in cells.items():
        shown = [show(modes.get(mode)) for mode in ("off", "context")]
        one = next(iter(modes.values()))
        chance = "" if one["chance"] is None else f"{one['chance']:.4g}"
        table.append([suite, task, metric, str(one["n"]), *shown, chance])
    return table


def show(row: dict[str, Any] | None) -> str:
    """Value and standard error."""
    if row is None:
        return "-"
    error = "" if row["stderr"] is None else f" +- {row['stderr']:.2g}"
    return f"{row['value']:.4g}{error}"


def aligned(table: list[list[str]]) -> str:
    """Columns of equal width."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    """Read the flags, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory of the main run")
    parser.add_argument("--seconds", type=int, required=True, help="wall time of all steps")
    args = parser.parse_args()
    summary = json.loads((args.run / "summary.json").read_text())
    print(aligned(measured(args.run)))
    print()
    print(aligned(losses(args.run)))
    print()
    print(f"{summary['parameters']:,} parameters, {summary['tokens']:,} training tokens")
    print(f"report: {args.run / 'report.html'}")
    print(f"all steps: {args.seconds} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
