"""Build the `stdlib` corpus from this Python: prose (help topics, docstrings) and code.

The first stages of configs/data/stdlib.yaml: ingest, filter, dedup, divide.
Example: python scripts/data/build_stdlib.py --output-dir data/stdlib/corpus --limit-mb 6
"""

import argparse
import sys
from pathlib import Path

from nl.config import ConfigError
from nl.data.prep.command import run
from nl.data.prep.mixture import read_mixture
from nl.data.prep.mixture_run import RunOptions, overridden, run_mixture, table

MANIFEST = Path(__file__).resolve().parents[2] / "configs/data/stdlib.yaml"


def main() -> None:
    """Read the flags, build, print what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("data/stdlib/corpus"), help="default: %(default)s"
    )
    parser.add_argument(
        "--limit-mb", type=float, default=6.0, help="megabytes per domain (default: %(default)s)"
    )
    a = parser.parse_args()
    if not a.limit_mb > 0:
        raise ConfigError(f"--limit-mb: {a.limit_mb}; must be > 0.")
    if a.output_dir.name != "corpus":
        raise ConfigError(f"--output-dir: {a.output_dir}; must end in corpus, as stages have it.")
    changes = [f"{name}.max_mb={a.limit_mb}" for name in ("prose", "code")]
    changes.append(f"output_dir={a.output_dir.parent}")
    mixture = overridden(read_mixture(MANIFEST), changes)
    print(*table(list(run_mixture(mixture, RunOptions(until="divide")))), sep="\n")


if __name__ == "__main__":
    sys.exit(run(main))
