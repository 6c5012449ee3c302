"""Zero-shot tasks through lm_eval: local cloze tasks, or the hub's with official prompts.

Example: python scripts/eval/zeroshot.py --checkpoint runs/pilot_smoke/<run> --tasks cloze
Under torchrun the ranks share the work and the numbers stay those of one. Exit code 2 if no task
could be run.
"""

import sys

from nl.cli_measure import (
    evaluator,
    guarded,
    measure,
    memorize_modes,
    memory_settings,
    parser_for,
)
from nl.eval.hub_tasks import listing


def main() -> int:
    """Read the flags, run, print the table."""
    parser = parser_for(__doc__, "eval/zeroshot.json")
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--tasks", default="cloze", help="comma-separated; " + shown)
    flag("--max-samples", type=int, default=64, help="per task; 0: all; " + shown)
    flag("--data-dir", help="local copies of hub data: <data-dir>/<task>/<split>.jsonl")
    begin = "text: as lm_eval's hf model; document: after the mark that ends one; " + shown
    flag("--begin", choices=("text", "document"), default="text", help=begin)
    flag("--max-length", type=int, default=2048, help="tokens for one answer; 0: all; " + shown)
    flag("--split", help="of the documents that cloze passages come from; default: test")
    flag("--list-tasks", action="version", version=listing(), help="names and their data")
    args = parser.parse_args()

    def work() -> None:
        settings = {
            "tasks": [name.strip() for name in args.tasks.split(",") if name.strip()],
            "samples": args.max_samples,
            "data_dir": args.data_dir,
            "split": args.split,
            "begin": args.begin,
            "max_length": args.max_length,
            "memorize": memorize_modes(args),
            "memory": memory_settings(args),
        }
        measure(args, evaluator("zeroshot", settings))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
