"""Peak memory and rate of every stage on a corpus and on one ten times as large, each in a process.

Usage: python benchmarks/data_memory.py --megabytes 12 --output artifacts/data/memory.json

The rows of the same files have labels, too: the rows called components are what
scripts/data/process_mixture.py does to make data for stream=components, then its HDF5 files, its
analysis, and what a run opens (the index of documents and windows, the frozen list). With two
workers the largest of them counts, beside the process itself.

Text is that of the synthetic generator, with every twentieth document repeated and every other
twentieth changed a little, so that dedup has work. The number of documents in a part and of rows in
a range of the join are the same at both sizes; only the number of parts grows.
"""

from __future__ import annotations

import argparse
import contextlib
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

from nl.config import structure
from nl.data.prep import analysis, dedup, divide
from nl.data.prep import export_hdf5 as hdf5
from nl.data.prep.command import run
from nl.data.prep.dedup import DedupOptions, dedup_corpus
from nl.data.prep.divide import DivideOptions, divide_corpus
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.mixture import Mixture
from nl.data.prep.mixture_run import RunOptions, run_mixture
from nl.data.prep.shard import shard_corpus
from nl.data.prep.sources_spec import Source
from nl.data.prep.synthetic import synthetic_documents
from nl.data.prep.train_tokenizer import TokenizerOptions, train_tokenizer

RANGE_ROWS = 1_000
"""Rows of a range of dedup here: small, so that both corpora have several."""
CHUNK_BYTES = 500_000
"""Held-out text that divide looks at at once: likewise."""
KEPT = 1 << 18
"""Runs of tokens that the analysis remembers: likewise."""
HDF5_ROWS = 512
"""Windows that the HDF5 writer has in memory at once: likewise."""
TIMES = 10
ONE = Executor()
TWO = Executor(workers=2)
LABELS = ("cs.DS", "cs.IT", "math.GR")
WINDOW = 100
EVERY = 0.02
"""Seconds between looks at the memory of workers."""


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
        pairs = [{"text": t, "label": LABELS[i % len(LABELS)]} for i, t in enumerate(some)]
        rows = "".join(json.dumps(pair) + "\n" for pair in pairs)
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


def _components(stage: str, executor: Executor) -> Callable[[Path, Path], Any]:
    """The command up to a stage; those before it are found done."""

    def run_stage(raw: Path, work: Path) -> None:
        dedup.RANGE_ROWS, divide.CHUNK_BYTES = RANGE_ROWS, CHUNK_BYTES
        rows = [
            {"name": name, "dataset": "json", "data_files": str(raw), "label_column": "label"}
            for name in LABELS
        ]
        data = {
            "name": "components",
            "output_dir": str(work / "components"),
            "held_out": {"val": 0.1, "test": 0.05},
            "tokenizer": {"model_type": "byte_bpe", "vocab_size": 1024, "sample_mb": 1.0},
            "datasets": rows,
        }
        made = structure(Mixture, data, "memory")
        options = RunOptions(until=stage, part_mb=2.0, executor=executor)
        list(run_mixture(made, options))

    return run_stage


def _hdf5(_: Path, work: Path) -> Any:
    hdf5.ROWS = HDF5_ROWS
    return hdf5.export_hdf5(work / "components", work / "windows", "train", window=WINDOW)


def _analysis(_: Path, work: Path) -> Any:
    analysis.KEPT = KEPT
    return analysis.analyse(work / "components", WINDOW)


def _index(_: Path, work: Path) -> Any:
    """What a run does before its first step, and a thousand batches."""
    from nl.data.component_stream import ComponentStreamConfig

    path, names = str(work / "components"), LABELS
    stream = ComponentStreamConfig(path=path, components=names, window=WINDOW, batch_size=32)
    rows = iter(stream.build("train", seed=0, rank=0, world=1))
    stream.frozen("val", 2048, 0)
    for _row in range(1000):
        next(rows)


STAGES: dict[str, Callable[[Path, Path], Any]] = {
    "ingest": _ingest,
    "filter: language": _language,
    "filter: gopher": _quality,
    "filter: lengths, PII": _filter,
    "dedup": _dedup,
    "divide": _divide,
    "tokenizer": _tokenizer,
    "shard": _shard,
    "components: ingest": _components("ingest", TWO),
    "components: filter, two workers": _components("filter", TWO),
    "components: dedup": _components("dedup", ONE),
    "components: divide": _components("divide", ONE),
    "components: tokenizer": _components("tokenizer", ONE),
    "components: shard, two workers": _components("shard", TWO),
    "components: HDF5": _hdf5,
    "components: analysis": _analysis,
    "components: stream, frozen windows": _index,
}


def measured(name: str, raw: Path, work: Path) -> dict[str, Any]:
    """Run one stage in a fresh process; the peak of it, or of the largest that it started."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, raw, work, send))
    process.start()
    peaks: dict[int, int] = {}
    while not receive.poll(EVERY):
        assert process.pid is not None
        peaks |= {pid: peak(pid) for pid in below(process.pid)}
    found = receive.recv()
    process.join()
    assert isinstance(found, dict)
    found["peak_mib"] = max(found["peak_mib"], *(round(kib / 1024, 1) for kib in peaks.values()), 0)
    return found


def below(pid: int) -> list[int]:
    """The processes that descend from one."""
    started: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            started.setdefault(parent, []).append(int(file.parent.name))
    found = list(started.get(pid, []))
    for one in found:
        found += started.get(one, [])
    return found


def peak(pid: int | str) -> int:
    """KiB that a process had in memory at most, mapped files included; 0: it has ended."""
    with contextlib.suppress(OSError):
        for row in Path(f"/proc/{pid}/status").read_text().splitlines():
            if row.startswith("VmHWM"):
                return int(row.split()[1])
    return 0


def _child(name: str, raw: Path, work: Path, send: Any) -> None:
    start = time.process_time()
    STAGES[name](raw, work)
    seconds = round(time.process_time() - start, 2)
    send.send({"peak_mib": round(peak("self") / 1024, 1), "cpu_seconds": seconds})


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
                # The time of workers is not in that of the process that started them.
                "mb_per_cpu_second": None
                if "workers" in name
                else round(sizes[1] / large["cpu_seconds"], 2),
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
