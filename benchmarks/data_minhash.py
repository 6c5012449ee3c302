"""Near-duplicates by our dedup stage and by datatrove's own four MinHash steps, on the same text.

Usage: python benchmarks/data_minhash.py --documents 2000 --output artifacts/data/minhash.json

The text is this Python's documentation and code; every third document gets a copy with a passage
or single words changed, so that similarities from 0.3 to 1 occur. Both use 5-word shingles, 14
bands of 8 rows and the same words. What goes is compared with every pair's true similarity.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from data_chain import ROOT, command_line, machine

from nl.config import unstructure
from nl.data.documents import SCHEMA, UNDIVIDED, CorpusManifest, Document, TextFile, encode_jsonl
from nl.data.files import sha256_file, write_json
from nl.data.prep.dedup import DedupOptions, dedup_corpus
from nl.data.prep.dedup_signatures import WORD, jaccard, shingles
from nl.data.prep.engine import Executor
from nl.data.prep.parts import parts_of
from nl.data.prep.stdlib import stdlib_documents

BANDS = ((0.3, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0001))


def texts(count: int, draw: random.Random) -> tuple[list[Document], dict[str, float]]:
    """Documents, and the similarity of every changed copy to its original."""
    both = [*stdlib_documents("prose"), *stdlib_documents("code")]
    originals = [d for d in both if len(shingles(d.text, 5)) >= 50]
    draw.shuffle(originals)
    found, similar = [], {}
    for number, document in enumerate(islice(originals, count)):
        found.append(Document(document.text, f"original:{number}"))
        if number % 3 == 0:
            text = changed(document.text, draw, scattered=number % 2 == 0)
            found.append(Document(text, f"copy:{number}"))
            same = jaccard(shingles(text, 5), shingles(document.text, 5))
            similar[f"copy:{number}"] = same
    return found, similar


def changed(text: str, draw: random.Random, scattered: bool) -> str:
    words = text.split(" ")
    count = max(1, round(draw.uniform(0.0, 0.5) * len(words) / (6 if scattered else 1)))
    start = draw.randrange(max(1, len(words) - count))
    places = draw.sample(range(len(words)), count) if scattered else range(start, start + count)
    for place in places:
        # Letters alone: datatrove takes all numbers for the same.
        words[place] = "".join(draw.choices("abcdefghij", k=8))
    return " ".join(words)


def write(root: Path, documents: list[Document]) -> None:
    """A corpus of parts of 200 documents."""
    files = []
    for start in range(0, len(documents), 200):
        some = documents[start : start + 200]
        path = root / UNDIVIDED / "x" / f"part_{start // 200:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jsonl(some))
        size = sum(len(d.text.encode()) for d in some)
        name = path.relative_to(root).as_posix()
        digest = sha256_file(path)
        files.append(TextFile(file=name, documents=len(some), bytes=size, sha256=digest))
    manifest = CorpusManifest(schema=SCHEMA, name="x", splits={UNDIVIDED: {"x": tuple(files)}})
    write_json(root / "manifest.json", unstructure(manifest))


def ours(corpus: Path, work: Path) -> set[str]:
    dedup_corpus(corpus, work, DedupOptions(exact=False), Executor())
    return {d.source for part in parts_of(work) for d in part.documents()}


def datatrove(corpus: Path, work: Path) -> set[str]:
    """The steps of its example, with words as ours: its default wants spaCy."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]  # the package ships no types
        def word_tokenize(self, text: str) -> list[str]:
            return WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    tasks = len(parts_of(corpus))
    reader = JsonlReader(str(corpus / UNDIVIDED / "x"))
    one, two, three, out = (str(work / n) for n in ("signatures", "buckets", "ids", "out"))
    steps: list[tuple[list[Any], int]] = [
        ([reader, MinhashDedupSignature(one, config, language=Words())], tasks),
        ([MinhashDedupBuckets(one, two, config=config)], 14),
        ([MinhashDedupCluster(two, three, config=config)], 1),
        ([reader, MinhashDedupFilter(three), JsonlWriter(out, compression=None)], tasks),
    ]
    for number, (pipeline, count) in enumerate(steps):
        log = str(work / f"log-{number}")
        LocalPipelineExecutor(pipeline, tasks=count, workers=1, logging_dir=log).run()
    rows = [row for p in Path(out).glob("*.jsonl") for row in p.read_text().splitlines()]
    return {json.loads(row)["metadata"]["source"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="timed (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts/data/minhash.json")
    args = parser.parse_args()
    documents, similar = texts(args.documents, random.Random(1))
    left: dict[str, set[str]] = {}
    seconds: dict[str, list[float]] = {"ours": [], "datatrove": []}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        write(corpus, documents)
        for number in range(args.rounds):
            for name, function in (("ours", ours), ("datatrove", datatrove)):
                start = time.process_time()
                with contextlib.redirect_stderr(io.StringIO()):
                    left[name] = function(corpus, Path(folder) / f"{name}-{number}")
                seconds[name].append(time.process_time() - start)
    size = sum(len(d.text.encode()) for d in documents) / 1e6
    every = {d.source for d in documents}
    gone = {name: every - kept for name, kept in left.items()}
    rows = []
    for low, high in BANDS:
        some = [n for n, s in similar.items() if low <= s < high]
        hit = {
            name: sum(n in lost or n.replace("copy", "original") in lost for n in some)
            for name, lost in gone.items()
        }
        expected = sum(1 - (1 - similar[n] ** 8) ** 14 for n in some) / max(1, len(some))
        row = {"from": low, "to": min(high, 1.0), "pairs": len(some), **hit}
        rows.append(row | {"expected": round(expected * len(some), 1)})
    ratios = sorted(t / o for o, t in zip(seconds["ours"], seconds["datatrove"], strict=True))
    result = {
        "command": command_line(),
        "machine": machine(),
        "documents": len(documents),
        "megabytes": round(size, 2),
        "mb_per_cpu_second": {
            k: round(size / sorted(v)[len(v) // 2], 2) for k, v in seconds.items()
        },
        "speed_against_datatrove": round(ratios[len(ratios) // 2], 2),
        "dropped": {name: len(lost) for name, lost in gone.items()},
        "dropped_by_both": len(gone["ours"] & gone["datatrove"]),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("machine", "rows")}, indent=1))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
