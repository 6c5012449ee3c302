"""Perplexity by position over long documents, State carried through them: JSON, CSV and PNG.

Example: python scripts/eval/pg19_perplexity.py --checkpoint runs/pilot_smoke/<run>
    --source books/ --context-tokens 16384 --max-samples 16
Without a network give --source a file or directory of long texts (one document per .txt, or rows
of .jsonl or .parquet with a column text), or corpus: held-out documents of the data directory.
"""

import sys

from nl.cli_long import measure_long
from nl.cli_measure import evaluator, guarded, memorize_modes, memory_settings, parser_for


def main() -> int:
    """Read the flags, run, print the table, draw."""
    parser = parser_for(__doc__, "eval/pg19_perplexity.json")
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--source", default="pg19", help="pg19 (hub), corpus, or files; " + shown)
    flag("--max-samples", type=int, default=64, help="documents per domain; 0: all; " + shown)
    flag("--context-tokens", type=int, default=2048, help="per document; 0: all; " + shown)
    flag("--min-tokens", type=int, default=0, help="leave shorter documents out; " + shown)
    flag("--buckets", type=int, nargs="+", default=[], help="ends; default: 64, 128, 256, ...")
    flag("--window", type=int, default=0, help="fresh State every n tokens; 0: carried")
    flag("--split", default="test", help="with --source corpus; " + shown)
    args = parser.parse_args()

    def work() -> None:
        settings = {
            "split": args.split,
            "documents": args.max_samples,
            "tokens": args.context_tokens,
            "least": args.min_tokens,
            "buckets": args.buckets,
            "state": "window" if args.window else "document",
            "window": args.window or None,
            "memorize": memorize_modes(args),
            "memory": memory_settings(args),
        }
        measure_long(args, evaluator("long_documents", settings))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
