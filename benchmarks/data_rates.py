"""Rates of the data layer beside the tools alone, in one run; writes artifacts/data/rates.json.

Cells of a row take turns in this process on one thread; times are CPU time, a row's number is the
median over rounds of the ratio within a round. Run through benchmarks/data_peers.sh, which brings
litdata; without it its rows are left out, and the page says so.

Example: bash benchmarks/data_peers.sh
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import data_loaders as cells
import numpy as np
import torch
from data_chain import machine

from nl.bench.clock import load_average, ratio, take_turns
from nl.data.documents import read_corpus, read_jsonl
from nl.data.manifest import read_manifest
from nl.data.order import KeyedPermutation, MixturePlan
from nl.data.prep.shard import shard_corpus
from nl.data.prep.shard_part import BATCH, ShardWriter, encode_arrays
from nl.data.shard_stream import ShardStreamConfig
from nl.data.shards import open_shard
from nl.data.stream import RowStream
from nl.data.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((8, 256), (8, 2048), (32, 2048), (64, 1024))
GATED = (32, 2048)
ROWS = 10**9
Row = dict[str, Any]


def texts_of(corpus: Path) -> list[str]:
    """All texts of a corpus."""
    splits = read_corpus(corpus).splits
    files = [f.file for domains in splits.values() for texts in domains.values() for f in texts]
    return [document.text for file in files for document in read_jsonl(corpus / file)]


def spread(values: list[float]) -> Row:
    return {"measured": statistics.median(values), "min": min(values), "max": max(values)}


def against(row: str, other: str, times: tuple[list[float], list[float]], **more: Any) -> Row:
    """How many times faster than ``other`` ours is; times are (other's, ours)."""
    middle, least, largest = ratio(*times)
    found = {"row": row, "other": other, "unit": "x", "measured": middle}
    return found | {"min": least, "max": largest, "gate": None} | more


def tokenising(data: Path, rounds: int) -> tuple[list[Row], list[Any]]:
    """Ids as arrays, beside sentencepiece's own batch call on the same texts, one thread."""
    tokenizer: Any = load_tokenizer(data / "tokenizer.model")
    texts = texts_of(data / "corpus")
    megabytes = sum(len(t.encode()) for t in texts) / 1e6
    found: list[Any] = []

    def ours() -> None:
        found.clear()
        for at in range(0, len(texts), BATCH):
            found.extend(encode_arrays(tokenizer, texts[at : at + BATCH]))

    with tempfile.TemporaryDirectory() as folder:

        def stage() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                shard_corpus(data / "corpus", str(data / "tokenizer.model"), Path(out))

        steps: dict[str, Callable[[], object]] = {
            "sentencepiece": lambda: tokenizer.processor.encode(texts, num_threads=1),
            "ours": ours,
            "stage": stage,
        }
        times = take_turns(steps, rounds)
    peer = times["sentencepiece"]
    rate = {name: megabytes / statistics.median(seconds) for name, seconds in times.items()}
    rows = [
        against(
            "tokenise to arrays",
            "sentencepiece encode(list)",
            (peer, times["ours"]),
            gate=0.9,
            rate=rate["ours"],
            other_rate=rate["sentencepiece"],
            rate_unit="MB of text/s",
        ),
        against(
            "whole shard stage: read, check, tokenise, write",
            "sentencepiece encode(list)",
            (peer, times["stage"]),
            rate=rate["stage"],
            other_rate=rate["sentencepiece"],
            rate_unit="MB of text/s",
        ),
    ]
    return rows, list(found)


def sharding(arrays: list[Any], rounds: int) -> list[Row]:
    """From the tokenizer's arrays to a file on disk: narrow, join, digests, write."""
    count = max(1, (1 << 24) // sum(a.size for a in arrays))
    size = 2 * count * sum(a.size + 1 for a in arrays) / 1e6

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = ShardWriter(cells.INFO, 0)
            for _ in range(count):
                for ids in arrays:
                    writer.add(ids)
            writer.write(Path(folder) / "shard.bin")

    rates = [size / seconds for seconds in take_turns({"ours": step}, rounds)["ours"]]
    row = {"row": "shard after tokenising", "other": None, "unit": "MB/s", "gate": 50.0}
    return [row | spread(rates)]


def loading(root: Path, folder: Path, rounds: int, quick: bool) -> tuple[list[Row], list[str]]:
    """Batches of every shape; the gated shape beside litdata and torch."""
    tokens, missing, rows = (2 if quick else 20) * 10**6, [], []
    info = read_manifest(root)
    flat = folder / "flat.npy"
    shards = info.splits["train"]["text"].shards
    np.save(
        flat, np.concatenate([open_shard(root, s, info.tokenizer, False).tokens for s in shards])
    )
    lit = None
    if importlib.util.find_spec("litdata"):
        lit = cells.write_litdata(folder / "lit", flat, GATED[1])
    else:
        missing.append("litdata is not installed: its row is left out; use data_peers.sh")
    for batch, seq_len in SHAPES:
        count = max(4, tokens // (batch * seq_len))
        sizes = {"count": count}
        steps: dict[str, Callable[[], object]] = {
            "ours": cells.ours(root, batch, seq_len, **sizes),
            "documents=reset": cells.ours(root, batch, seq_len, documents="reset", **sizes),
        }
        if (batch, seq_len) == GATED:
            steps["plain copy in order"] = cells.plain_copy(flat, batch, seq_len, count)
            steps["torch DataLoader"] = cells.torch_loader(flat, batch, seq_len, count)
            if lit is not None:
                steps["litdata TokensLoader"] = cells.litdata_loader(lit, batch, seq_len, count)
        times = take_turns(steps, rounds)
        made = count * batch * seq_len / 1e9
        name = f"loader {batch} x {seq_len}"
        gate = 1.0 if (batch, seq_len) == GATED else None
        rates = [made / s for s in times["ours"]]
        rows.append({"row": name, "other": None, "unit": "Gtok/s", "gate": gate} | spread(rates))
        rates = [made / s for s in times["documents=reset"]]
        row: Row = {
            "row": f"{name}, documents=reset",
            "other": None,
            "unit": "Gtok/s",
            "gate": None,
        }
        rows.append(row | spread(rates))
        for other in [k for k in times if k not in ("ours", "documents=reset")]:
            rate = {"rate": made / statistics.median(times["ours"]), "rate_unit": "Gtok/s"}
            rate["other_rate"] = made / statistics.median(times[other])
            rows.append(against(name, other, (times[other], times["ours"]), **rate))
    return rows, missing


def working_ahead(root: Path, rounds: int) -> Row:
    """Wall time of steps of 5 ms with and without a thread that prepares batches."""
    config = ShardStreamConfig(path=str(root), seq_len=2048, batch_size=32, verify="header")
    plain = iter(config.build("train", seed=0, rank=0, world=1))
    thread = cells.ahead(iter(config.build("train", seed=0, rank=0, world=1)))

    def steps(batches: Any) -> float:
        start = time.perf_counter()
        for _ in islice(batches, 40):
            time.sleep(0.005)
        return time.perf_counter() - start

    pairs = [(steps(plain), steps(thread)) for _ in range(rounds + 1)][1:]
    times = ([a for a, _ in pairs], [b for _, b in pairs])
    thread.close()
    return against("a thread that works ahead, steps of 5 ms", "no thread", times)


def training_share(data: Path, steps: int) -> list[Row]:
    """What the trainer itself reports for pilot_smoke: its share of time spent on batches."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--config-name", "pilot_smoke"]
        command += [f"stream.path={data}", f"train.steps={steps}", f"run.root={folder}"]
        command += ["logging.every=5", "train.validate_every=0", "train.threads=1"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        lines = next(Path(folder).rglob("metrics.jsonl")).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    shares = [100 * r["perf/data_share"] for r in rows if r.get("perf/data_share") is not None]
    row = {"row": "share of a pilot_smoke step", "other": None, "unit": "%", "gate": 0.5}
    return [row | spread(shares[1:]) | {"below": True}]


def resuming(rounds: int) -> list[Row]:
    """From the state of a stream of 1e9 windows to its next batch."""

    def fetch(source: Any, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.from_numpy(source + index)[:, None]
        return both, both

    start = time.perf_counter()
    sizes = [600_000_001, 300_000_007, 99_999_992]
    plan = MixturePlan(sizes, ["a", "b", "c"], sizes, seed=1)
    built = 1e3 * (time.perf_counter() - start)
    draw, times, walls = np.random.default_rng(0), [], []
    for _ in range(20 * rounds):
        place = {"batch_size": 32, "rank": 0, "world": 1, "identity": "x"}
        stream = RowStream(plan, fetch, **place)  # type: ignore[arg-type]
        state = stream.state_dict() | {"row": 32 * int(draw.integers(0, ROWS // 32))}
        start, wall = time.process_time(), time.perf_counter()
        stream.load_state_dict(state)
        next(iter(stream))
        times.append(1e3 * (time.process_time() - start))
        walls.append(1e3 * (time.perf_counter() - wall))
    row = {"row": "resume at a random one of 1e9 rows", "other": None, "unit": "ms", "gate": 10.0}
    rows = [row | spread(times) | {"below": True}]
    row = {"row": "the same, wall time of a shared machine", "other": None, "unit": "ms"}
    rows.append(row | {"gate": None} | spread(walls))
    plain = {"row": "build the plan of 1e9 rows", "other": None, "unit": "ms", "gate": None}
    return [*rows, plain | {"measured": built, "min": built, "max": built}]


def opening(root: Path, rounds: int) -> list[Row]:
    """Reading of a directory under every value of ``verify``, in a fresh process each."""
    info = read_manifest(root).splits["train"]["text"]
    size = sum((root / s.file).stat().st_size for s in info.shards) / 1e9
    code = "import sys, time; from nl.data.windows import TokenWindows; s = time.process_time(); "
    code += "TokenWindows(sys.argv[1], 'train', [], 2048, sys.argv[2]); "
    code += "print(time.process_time() - s)"
    rows = []
    for verify in ("full", "sample", "header"):
        call = [sys.executable, "-c", code, str(root), verify]
        done = [
            subprocess.run(call, capture_output=True, text=True, check=True) for _ in range(rounds)
        ]
        times = [1e3 * float(d.stdout) for d in done]
        name = f"open {size:.2f} GB, verify={verify}"
        rows.append({"row": name, "other": None, "unit": "ms", "gate": None} | spread(times))
    return rows


def order_checks() -> list[Row]:
    """Counts, not times: what the order promises, looked at row by row."""
    twice = missed = 0
    size, epochs, batch = 100_003, 3, 48
    plan = MixturePlan([size], ["a"], [1], seed=7)
    whole = plan.locate(np.arange(size * epochs))[1].reshape(epochs, size)
    for world in (1, 2, 4, 8, 16):
        rows = np.arange(-(-size * epochs // batch) * batch).reshape(-1, world, batch // world)
        ranks = [plan.locate(rows[:, rank].reshape(-1))[1] for rank in range(world)]
        joined = np.stack([r.reshape(len(rows), -1) for r in ranks], 1).reshape(-1)
        for epoch in joined[: size * epochs].reshape(epochs, size):
            seen = np.bincount(epoch, minlength=size)
            twice += int((seen > 1).sum())
            missed += int((seen == 0).sum())
        assert (joined[: size * epochs].reshape(epochs, size) == whole).all()
    weights = [0.4, 0.2, 0.15, 0.15, 0.1]
    mixed = MixturePlan([900, 40, 70_000, 5, 12_345], [*"abcde"], weights, seed=3)
    source = mixed.locate(np.arange(10**6))[0]
    counts = np.cumsum(source[:, None] == np.arange(5), axis=0)
    exact = np.arange(1, 10**6 + 1)[:, None] * np.asarray(weights)
    images = KeyedPermutation(ROWS, 5)(np.arange(10**6), np.zeros(10**6, np.int64))
    counted = {"other": None, "unit": "", "below": True}
    bounds = [
        ("windows read twice in an epoch: ranks 1 to 16, 3 epochs", float(twice), 0.0),
        ("windows not read in an epoch", float(missed), 0.0),
        (
            "largest distance of a mixture of 5 from exact, 1e6 rows",
            np.abs(counts - exact).max(),
            1.0,
        ),
        ("repeated images of 1e6 of 1e9 rows", float(images.size - np.unique(images).size), 0.0),
    ]
    return [
        counted
        | {"row": name, "measured": float(v), "min": float(v), "max": float(v), "gate": gate}
        for name, v, gate in bounds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--data", type=Path, default=Path("data/stdlib"), help="default: %(default)s")
    flag("--output", type=Path, default=ROOT / "artifacts/data/rates.json")
    flag("--rounds", type=int, default=9)
    flag("--quick", action="store_true", help="few rounds, little data; no numbers to keep")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if args.quick else args.rounds
    load = [load_average()]
    rows, arrays = tokenising(args.data, rounds)
    rows += sharding(arrays, rounds)
    with tempfile.TemporaryDirectory() as folder:
        size = 1 << 22 if args.quick else cells.SHARD_TOKENS
        root = cells.write_data(Path(folder) / "data", tokens=size)
        found, missing = loading(root, Path(folder), rounds, args.quick)
        rows += found
        rows.append(working_ahead(root, rounds))
        rows += opening(root, rounds)
    rows += resuming(rounds) + order_checks()
    rows += training_share(args.data, 20 if args.quick else 100)
    load.append(load_average())
    result = {
        "command": "bash benchmarks/data_peers.sh" + " --quick" * args.quick,
        "machine": machine() | {"torch": torch.__version__, "numpy": np.__version__},
        "load": load,
        "rounds": rounds,
        "missing": missing,
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['row']:<58} {row['other'] or '':<28} {row['measured']:.3g} {row['unit']}")


if __name__ == "__main__":
    main()
