"""Perplexity and bits per byte of held-out documents, per split and domain.

Example: python scripts/eval/perplexity.py --checkpoint runs/pilot_smoke/<run> --splits val test
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


def main() -> int:
    """Read the flags, run, print the table."""
    parser = parser_for(__doc__, "eval/perplexity.json")
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--splits", nargs="+", default=["val", "test"], help=shown)
    flag("--max-samples", type=int, default=64, help="documents per domain; 0: all; " + shown)
    flag("--max-tokens", type=int, default=2048, help="per document; 0: all; " + shown)
    flag("--window", type=int, default=0, help="fresh State every n tokens; 0: carried")
    args = parser.parse_args()

    def work() -> None:
        settings = {
            "splits": args.splits,
            "max_documents": args.max_samples,
            "max_tokens": args.max_tokens,
            "state": "window" if args.window else "document",
            "window": args.window or None,
            "memorize": memorize_modes(args),
            "memory": memory_settings(args),
        }
        measure(args, evaluator("perplexity", settings))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
