"""Needles in a haystack (RULER tasks) over exact token lengths and depths, a heat map as JSON.

Example: python scripts/eval/niah.py --checkpoint runs/pilot_smoke/<run> --context-lengths 256 512
"""

import itertools
import sys

from nl.cli_measure import (
    evaluator,
    guarded,
    measure,
    memorize_modes,
    memory_settings,
    parser_for,
)
from nl.eval.puzzles import MAKERS


def main() -> int:
    """Read the flags, run, print the table."""
    parser = parser_for(__doc__, "eval/niah.json")
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--context-lengths", type=int, nargs="+", action="append", help="default: 256 512")
    flag("--depths", type=float, nargs="+", default=[0.1, 0.5, 0.9], help=shown)
    flag("--samples-per-length", type=int, default=8, help="per length and depth; " + shown)
    flag("--candidates", type=int, default=8, help="chance is 1 / candidates; " + shown)
    flag("--task", choices=tuple(MAKERS), default="single", help=shown)
    flag("--keys", type=int, default=4, help="facts of a question, where it has several; " + shown)
    flag("--haystack", choices=("noise", "distractor", "text"), default="noise", help=shown)
    ways = ("likelihood", "generate")
    flag("--scoring", choices=ways, default=ways[0], help="generate: decode and parse; " + shown)
    args = parser.parse_args()

    def work() -> None:
        lengths = args.context_lengths
        settings = {
            "lengths": lengths and list(itertools.chain(*lengths)),
            "depths": args.depths,
            "samples": args.samples_per_length,
            "candidates": args.candidates,
            "haystack": args.haystack,
            "task": args.task,
            "keys": args.keys,
            "scoring": args.scoring,
            "memorize": memorize_modes(args),
            "memory": memory_settings(args),
        }
        measure(args, evaluator("needle", settings))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
