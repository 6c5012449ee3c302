"""Passkey: a number in filler, asked for at the end; needle task passkey at one context length.

--filler-sentences of the earlier script becomes a length in tokens (11 per sentence on average);
--context-lengths says it exactly, for several lengths.

Example: python scripts/eval/passkey.py --checkpoint runs/pilot_smoke/<run> --samples 64
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
from nl.config import ConfigError

TOKENS = 11
"""Tokens per sentence of filler, on average, where a token is about four letters."""


def main() -> int:
    """Read the flags, run, print the table."""
    parser = parser_for(__doc__, "eval/passkey.json")
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--samples", type=int, default=64, help="per length and depth; " + shown)
    flag("--filler-sentences", type=int, default=200, help="sentences around the key; " + shown)
    flag("--context-lengths", type=int, nargs="+", help="tokens; instead of --filler-sentences")
    flag("--depths", type=float, nargs="+", default=[0.5], help="of the key; " + shown)
    flag("--digits", type=int, default=4, help="of the key; " + shown)
    flag("--candidates", type=int, default=2, help="chance is 1 / candidates; " + shown)
    ways = ("likelihood", "generate")
    flag("--scoring", choices=ways, default=ways[0], help="generate: decode and parse; " + shown)
    args = parser.parse_args()

    def work() -> None:
        if args.filler_sentences < 1:
            raise ConfigError(f"--filler-sentences: {args.filler_sentences}; must be >= 1.")
        settings = {
            "task": "passkey",
            "lengths": args.context_lengths or [TOKENS * args.filler_sentences],
            "depths": args.depths,
            "samples": args.samples,
            "digits": args.digits,
            "candidates": args.candidates,
            "scoring": args.scoring,
            "memorize": memorize_modes(args),
            "memory": memory_settings(args),
        }
        measure(args, evaluator("needle", settings))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
