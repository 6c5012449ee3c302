"""Save the data of zero-shot tasks as JSON lines, so that they run where there is no network.

Example: python scripts/data/mirror_task.py --tasks piqa arc_easy --output-dir eval_data
Then: python scripts/eval/zeroshot.py --checkpoint <run> --tasks piqa,arc_easy --data-dir eval_data
"""

import argparse
import sys
from pathlib import Path

from nl.config import ConfigError
from nl.config.registry import unknown
from nl.data.prep.command import run
from nl.data.prep.mirror import save_split
from nl.eval.hub_tasks import HUB_TASKS, expand, offline_if_unreachable


def main() -> None:
    """Read the flags, save one file per task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--tasks", nargs="+", default=["all"], help=f"all, {', '.join(HUB_TASKS)}; {shown}")
    flag("--output-dir", type=Path, required=True, help="gets <task>/<split>.jsonl")
    args = parser.parse_args()
    names = expand([name for word in args.tasks for name in word.split(",") if name])
    for name in names:
        if name not in HUB_TASKS:
            raise ConfigError(unknown("--tasks", name, HUB_TASKS))
    offline_if_unreachable()
    for name in names:
        task = HUB_TASKS[name]
        path = args.output_dir / name / f"{task.split}.jsonl"
        rows = save_split(task.path, task.subset, task.split, path, task.columns)
        print(f"{path}: {rows:,} rows of {task.dataset}")


if __name__ == "__main__":
    sys.exit(run(main))
