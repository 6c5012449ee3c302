"""The whole chain of the data preparation, from raw files to shards, for the data benchmarks.

Usage: python benchmarks/data_chain.py RAW OUTPUT --executor local --workers 2
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from nl.data.prep.command import run
from nl.data.prep.dedup import DedupOptions, dedup_corpus
from nl.data.prep.divide import DivideOptions, divide_corpus
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.flags import add_flags, read_flags
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.shard import shard_corpus
from nl.data.prep.sources_spec import Source
from nl.data.prep.train_tokenizer import TokenizerOptions, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
VARYING = ("stage.json", ".lock", "tokenizer_log.json")
"""Files that say how long something took."""


def chain(
    raw: Path,
    output: Path,
    executor: Executor,
    options: FilterOptions,
    part_mb: float,
    tokenizer: TokenizerOptions | None,
) -> dict[str, dict[str, Any]]:
    """Every stage; the log of each that writes one. Without ``tokenizer`` it ends with divide."""
    source = Source(name="web", dataset="json", data_files=str(raw))
    logs = {"ingest": ingest(source, output / "1", IngestOptions(part_mb=part_mb), executor)[0]}
    logs["filter"] = filter_corpus(output / "1", output / "2", options, executor)[0]
    logs["dedup"] = dedup_corpus(output / "2", output / "3", DedupOptions(pairs=True), executor)[0]
    logs["divide"] = divide_corpus(output / "3", output / "4", DivideOptions(), executor)[0]
    if tokenizer is not None:
        train_tokenizer(output / "4", output / "5", tokenizer)
        model = str(output / "5/tokenizer.model")
        shard_corpus(output / "4", model, output / "6", executor=executor)
    return logs


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of every file that must not depend on how the chain was run."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in VARYING
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    git = ["git", "-C", str(ROOT)]
    show = [*git, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(show, capture_output=True, text=True, check=False).stdout.strip()
    changed = [*git, "diff", "--quiet", "HEAD", "--", "src", "benchmarks"]
    commit += "-dirty" if subprocess.run(changed, check=False).returncode else ""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cpu = names[0] if names else platform.machine()
    return {"cpu": cpu, "cores": len(names), "python": platform.python_version(), "commit": commit}


def command_line() -> str:
    """The command that this process runs, for the record."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def main() -> None:
    """Read the flags, run the chain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("raw", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--part-mb", type=float, default=0.5)
    parser.add_argument("--vocab-size", type=int, default=1024)
    add_flags(parser, Executor, kind="executor")
    args = parser.parse_args()
    tokenizer = TokenizerOptions(vocab_size=args.vocab_size, sample_mb=0.5, model_type="bpe")
    executor = read_flags(args, Executor)
    chain(args.raw, args.output, executor, FilterOptions(), args.part_mb, tokenizer)


if __name__ == "__main__":
    sys.exit(run(main))
