"""Peak memory and rate of every stage on a corpus and on one ten times as large, each in a process.

Usage: python benchmarks/data_memory.py --megabytes 12 --output artifacts/data/memory.json

Text is that of the synthetic generator, with every twentieth document repeated and every other
twentieth changed a little, so that dedup has work. The number of documents in a part and of rows in
a range of the join are the same at both sizes; only the number of parts grows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_chain import ROOT, command_line, machine

from nl.data.prep import dedup, divide
from nl.data.prep.command import run
from nl.data.prep.dedup import DedupOptions, dedup_corpus
from nl.data.prep.divide import DivideOptions, divide_corpus
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.shard import shard_corpus
from nl.data.prep.sources_spec import Source
from nl.data.prep.synthetic import synthetic_documents
from nl.data.prep.train_tokenizer import TokenizerOptions, train_tokenizer

RANGE_ROWS = 1_000
"""Rows of a range of dedup here: small, so that both corpora have several."""
CHUNK_BYTES = 500_000
"""Held-out text that divide looks at at once: likewise."""
TIMES = 10
ONE = Executor()


def texts(megabytes: float) -> Iterator[str]:
    """Documents, some repeated and some changed a little."""
    left, made = megabytes * 1e6, synthetic_documents("memory", "1")
    for number, document in enumerate(made):
        yield document.text
        left -= len(document.text)
        if number % 20 == 0:
            yield document.text
        if number % 20 == 10:
            yield document.text + "It was changed.\n"
        if left < 0:
            return


def write_raw(path: Path, megabytes: float) -> None:
    """Files of about four megabytes."""
    path.mkdir(parents=True)
    stream = texts(megabytes)
    for number in range(10**6):
        some = list(islice(stream, 1500))
        if not some:
            return
        rows = "".join(json.dumps({"text": t}) + "\n" for t in some)
        (path / f"{number:05d}.jsonl").write_text(rows)


def _ingest(raw: Path, work: Path) -> Any:
    source = Source(name="web", dataset="json", data_files=str(raw))
    options = IngestOptions(part_mb=2.0, unit_mb=5.0)
    return ingest(source, work / "ingest", options, ONE)


def _language(_: Path, work: Path) -> Any:
    """Made-up words are in no language: all is asked, and all goes."""
    return filter_corpus(work / "ingest", work / "language", FilterOptions(), ONE)


def _quality(_: Path, work: Path) -> Any:
    rules = FilterOptions(target_lang="any", quality=("gopher",), max_chars=0, keep_dropped=True)
    return filter_corpus(work / "ingest", work / "quality", rules, ONE)


def _filter(_: Path, work: Path) -> Any:
    plain = FilterOptions(target_lang="any", max_chars=0, pii=True)
    return filter_corpus(work / "ingest", work / "filter", plain, ONE)


def _dedup(_: Path, work: Path) -> Any:
    dedup.RANGE_ROWS = RANGE_ROWS
    return dedup_corpus(work / "filter", work / "dedup", DedupOptions(), ONE)


def _divide(_: Path, work: Path) -> Any:
    divide.CHUNK_BYTES = CHUNK_BYTES
    return divide_corpus(work / "dedup", work / "divide", DivideOptions(), ONE)


def _tokenizer(_: Path, work: Path) -> Any:
    options = TokenizerOptions(vocab_size=2048, sample_mb=1.0, model_type="bpe")
    return train_tokenizer(work / "divide", work / "tokenizer", options)


def _shard(_: Path, work: Path) -> Any:
    model = str(work / "tokenizer/tokenizer.model")
    return shard_corpus(work / "divide", model, work / "shard", shard_tokens=1 << 18)


STAGES: dict[str, Callable[[Path, Path], Any]] = {
    "ingest": _ingest,
    "filter: language": _language,
    "filter: gopher": _quality,
    "filter: lengths, PII": _filter,
    "dedup": _dedup,
    "divide": _divide,
    "tokenizer": _tokenizer,
    "shard": _shard,
}


def measured(name: str, raw: Path, work: Path) -> dict[str, Any]:
    """Run one stage, which starts no others, in a fresh process; its peak."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, raw, work, send))
    process.start()
    found = receive.recv()
    process.join()
    assert isinstance(found, dict)
    return found


def _child(name: str, raw: Path, work: Path, send: Any) -> None:
    start = time.process_time()
    STAGES[name](raw, work)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(row.split()[1]) for row in status if row.startswith("VmHWM"))
    seconds = round(time.process_time() - start, 2)
    send.send({"peak_mib": round(peak / 1024, 1), "cpu_seconds": seconds})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--megabytes", type=float, default=12.0, help="the smaller (default: %(default)s)")
    flag("--output", type=Path, default=ROOT / "artifacts/data/memory.json")
    args = parser.parse_args()
    sizes = (args.megabytes, TIMES * args.megabytes)
    peaks: dict[tuple[str, float], dict[str, Any]] = {}
    counts: dict[float, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            raw, work = Path(folder) / f"raw-{size}", Path(folder) / f"work-{size}"
            write_raw(raw, size)
            for name in STAGES:
                peaks[name, size] = measured(name, raw, work)
                print(name, size, peaks[name, size], flush=True)
            counts[size] = json.loads((work / "dedup/stage.json").read_bytes())
    rows = []
    for name in STAGES:
        small, large = (peaks[name, size] for size in sizes)
        rows.append(
            {
                "stage": name,
                "peak_mib": small["peak_mib"],
                "peak_mib_at_10x": large["peak_mib"],
                "ratio": round(large["peak_mib"] / small["peak_mib"], 3),
                "cpu_seconds": small["cpu_seconds"],
                "cpu_seconds_at_10x": large["cpu_seconds"],
                "mb_per_cpu_second": round(sizes[1] / large["cpu_seconds"], 2),
            }
        )
    result = {
        "command": command_line(),
        "machine": machine(),
        "megabytes": list(sizes),
        "parts": [counts[size]["parts"] for size in sizes],
        "documents": [counts[size]["counts"]["documents_in"] for size in sizes],
        "duplicates": [counts[size]["reasons"] for size in sizes],
        "highest_ratio": max(row["ratio"] for row in rows),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    sys.exit(run(main))
