"""Rates of every stage on one core, and what they mean for a corpus of 1T tokens.

    python benchmarks/data_scale.py --megabytes 100 --output artifacts/data/scale.json

The text is English: paragraphs of this Python's documentation, drawn anew for every document, so
that few documents are near-duplicates. Rates are per second of CPU time of one process.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from nl.bench.machine import machine
from nl.config import structure
from nl.data.files import write_json
from nl.data.prep.divide import CHUNK_BYTES
from nl.data.prep.mixture import Mixture
from nl.data.prep.mixture_run import RunOptions, run_mixture
from nl.data.prep.stdlib import stdlib_documents

PARAGRAPHS = 14
PROSE = re.compile(r"[A-Z][ \w.,;:'()\"-]+\.")
"""Sentences: what the quality rules keep of documentation."""
TOKENS = 1e12
HELD_OUT_MB = 100.0
"""Held-out text of the large corpus."""
CORES = (64, 1024)


def write_raw(path: Path, megabytes: float) -> None:
    """JSON lines, zstd-compressed, as most corpora come."""
    import zstandard

    texts = [document.text for document in stdlib_documents("prose")]
    pool = [" ".join(p.split()) for text in texts for p in text.split("\n\n")]
    pool = [p for p in pool if 120 <= len(p) <= 1500 and PROSE.fullmatch(p)]
    draw, left = random.Random(0), megabytes * 1e6
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        while left > 0:
            text = "\n\n".join(draw.choices(pool, k=PARAGRAPHS))
            left -= len(text.encode())
            file.write((json.dumps({"text": text, "url": "none"}) + "\n").encode())


def manifest(root: Path) -> Mixture:
    """One data set with the checks that web text gets."""
    entry = {
        "name": "web",
        "dataset": "json",
        "data_files": str(root / "raw.jsonl.zst"),
        "lang": "en",
        "min_chars": 200,
        "max_chars": 100_000,
        "quality": ["gopher"],
    }
    data = {
        "name": "scale",
        "output_dir": str(root / "data"),
        "held_out": {"val": 0.17, "test": 0.17},
        "tokenizer": {"vocab_size": 8000, "sample_mb": 6},
        "datasets": [entry],
    }
    return structure(Mixture, data, "scale")


def chunks(held_mb: float) -> int:
    """Runs of held-out text that train is compared with, one after another."""
    return max(1, math.ceil(held_mb * 1e6 / CHUNK_BYTES))


def compare_rate(root: Path, stages: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of divide without its search, and what the search adds per MB and chunk."""
    plain = replace(manifest(root), apart=0.0)
    start = time.process_time()
    list(run_mixture(plain, RunOptions(part_mb=16.0, until="divide")))
    seconds = time.process_time() - start
    row = stages["divide"]
    held = row["mb_in"] * sum(plain.held_out.values())
    # Nearly a whole chunk is held out, and what is left of the text is train.
    extra = max(0.0, row["cpu_seconds"] - seconds) / ((row["mb_in"] - held) * chunks(held))
    return {"plain_mb_per_core_second": row["mb_in"] / seconds, "search_seconds_per_mb": extra}


def size_of(folder: Path) -> int:
    """Bytes on disk of a stage's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def measure(root: Path) -> dict[str, Any]:
    """CPU seconds and documents of every stage."""
    options = RunOptions(part_mb=16.0)
    cpu: dict[str, float] = defaultdict(float)
    found: dict[str, dict[str, float]] = {}
    last = time.process_time()
    for row in run_mixture(manifest(root), options):
        now = time.process_time()
        cpu[row.stage] += now - last
        last = now
        kept = found.setdefault(row.stage, {"in": 0, "out": 0, "mb_out": 0.0, "tokens": 0})
        kept["in"] += row.documents_in
        kept["out"] += row.documents_out
        kept["mb_out"] += row.megabytes_out
        kept["tokens"] += row.tokens or 0
    return {stage: {**found[stage], "cpu_seconds": round(cpu[stage], 3)} for stage in found}


def scaled(
    stages: dict[str, Any], search: dict[str, float], disk: dict[str, float], dollars: float
) -> list[dict[str, Any]]:
    """Core-hours, hours and disk of each stage for ``TOKENS`` tokens in the end."""
    shard = stages["shard"]
    end = TOKENS * shard["mb_out"] / shard["tokens"]
    rows = []
    for name, row in stages.items():
        if name == "tokenizer":
            continue
        text = end * row["mb_in"] / shard["mb_out"]
        hours = text / row["mb_per_core_second"] / 3600
        if name == "divide":
            each = chunks(HELD_OUT_MB) * search["search_seconds_per_mb"]
            hours = text * (1 / search["plain_mb_per_core_second"] + each) / 3600
        rows.append(
            {
                "stage": name,
                "mb_per_core_second": row["mb_per_core_second"],
                "text_tb_in": round(text / 1e6, 2),
                "core_hours": round(hours),
                **{f"hours_{cores}_cores": round(hours / cores, 1) for cores in CORES},
                "disk_tb": round(disk[name] * end / 1e6, 2),
                "dollars": round(hours * dollars),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--dollars", type=float, default=0.04, help="price of a core-hour")
    parser.add_argument("--output", type=Path, default=Path("artifacts/data/scale.json"))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_raw(root / "raw.jsonl.zst", a.megabytes)
        stages = measure(root)
        work, data = root / "data/work", root / "data"
        before = a.megabytes
        for name, row in stages.items():
            row["mb_in"] = round(before, 3)
            row["mb_per_core_second"] = round(before / row["cpu_seconds"], 2)
            before = before if name == "tokenizer" else row["mb_out"]
        end = stages["shard"]["mb_out"]
        places = {
            "ingest": work / "web/ingest",
            "filter": work / "web/filter",
            "dedup": work / "dedup",
            "divide": data / "corpus",
        }
        search = compare_rate(root, stages)
        disk = {name: size_of(place) / 1e6 / end for name, place in places.items()}
        disk["shard"] = sum(p.stat().st_size for p in data.glob("*/*/*.bin")) / 1e6 / end
    found = {
        "command": f"python benchmarks/data_scale.py --megabytes {a.megabytes:g}",
        "machine": machine(1, "cpu"),
        "stages": stages,
        "disk_bytes_per_byte_of_text": {k: round(v, 3) for k, v in disk.items()},
        "tokens": TOKENS,
        "held_out_mb": HELD_OUT_MB,
        "divide": search,
        "dollars_per_core_hour": a.dollars,
        "rows": scaled(stages, search, disk, a.dollars),
    }
    write_json(a.output, found)
    heads = list(found["rows"][0])
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in found["rows"]:
        print(
            "| "
            + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values())
            + " |"
        )


if __name__ == "__main__":
    main()
