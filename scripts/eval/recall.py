"""Recall over context length and depth, for a checkpoint trained on stream=noisy_recall.

Example: python scripts/eval/recall.py --checkpoint runs/long_context/titan_mal-s0 --lengths 256 512
"""

import argparse
import sys
from pathlib import Path

from nl.cli_measure import guarded
from nl.cli_recall import recall


def main() -> int:
    """Read the flags, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--checkpoint", required=True, help="run, checkpoint directory or exported file")
    flag("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024], help="tokens; " + shown)
    flag("--depths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help=shown)
    flag("--samples", type=int, default=100, help="per length and depth; " + shown)
    flag("--pairs", type=int, help="facts per row; default: as in training")
    modes = ("off", "context")
    flag("--memorize", nargs="+", default=list(modes), choices=modes, help=shown)
    flag("--seed", type=int, default=0, help="seed of the rows; " + shown)
    flag("--batch-size", type=int, default=20, help="rows per forward pass; " + shown)
    flag("--segment", type=int, default=512, help="tokens per forward pass; " + shown)
    flag("--device", default="cpu", choices=("cpu", "cuda"), help=shown)
    flag("--output", type=Path, default=Path("eval/recall.json"), help="JSON file; " + shown)
    args = parser.parse_args()
    return guarded(lambda: recall(args))


if __name__ == "__main__":
    sys.exit(main())
