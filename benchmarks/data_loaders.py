"""Loaders that are measured in turn: ours, litdata's TokensLoader, a plain torch DataLoader."""

from __future__ import annotations

import itertools
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nl.config import unstructure
from nl.data.files import write_json
from nl.data.manifest import DataManifest, DomainInfo, TokenizerInfo
from nl.data.shard_stream import ShardStreamConfig
from nl.data.shards import write_shard

VOCAB = 32_000
SHARDS, SHARD_TOKENS = 4, 1 << 25
INFO = TokenizerInfo(path=None, sha256="ab" * 32, vocab_size=VOCAB)
Step = Callable[[], object]


def write_data(root: Path, shards: int = SHARDS, tokens: int = SHARD_TOKENS) -> Path:
    """A data directory of random ids; documents of 800 tokens on average."""
    records = []
    for number in range(shards):
        draw = np.random.default_rng(number)
        ids = draw.integers(0, VOCAB, tokens, dtype=np.uint16)
        ends = np.unique(np.append(draw.choice(tokens, tokens // 800), tokens - 1) + 1)
        name = f"train/text/shard_{number:05d}.bin"
        record = write_shard(root / name, ids, ends, INFO)
        records.append(unstructure(record) | {"file": name})
    total = sum(r["tokens"] for r in records)
    documents = sum(r["documents"] for r in records)
    info = DomainInfo(shards=(), tokens=total, documents=documents, bytes=total)
    manifest: dict[str, Any] = unstructure(
        DataManifest(schema=2, name="random", tokenizer=INFO, splits={"train": {"text": info}})
    )
    manifest["splits"]["train"]["text"]["shards"] = records
    write_json(root / "manifest.json", manifest)
    return root


class Steps:
    """Takes ``count`` batches from an endless iterator at each call."""

    def __init__(self, batches: Iterator[Any], count: int) -> None:
        self.batches, self.count = batches, count

    def __call__(self) -> None:
        for _ in islice(self.batches, self.count):
            pass


def ours(root: Path, batch: int, seq_len: int, count: int, **more: Any) -> Step:
    """Batches of ``stream=shards`` as the trainer gets them."""
    config = ShardStreamConfig(
        path=str(root), seq_len=seq_len, batch_size=batch, verify="header", **more
    )
    return Steps(iter(config.build("train", seed=0, rank=0, world=1)), count)


def plain_copy(flat: Path, batch: int, seq_len: int, count: int) -> Step:
    """The same number of ids read in order and widened, nothing else: what memory allows."""
    tokens = np.asarray(np.load(flat, mmap_mode="r"))
    size = batch * seq_len
    rows = tokens[: tokens.size // size * size].reshape(-1, size)
    return Steps((rows[n % len(rows)].astype(np.int32) for n in itertools.count()), count)


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One window per item from a memory map: what a plain DataLoader is given."""

    def __init__(self, path: Path, seq_len: int) -> None:
        self.tokens = np.load(path, mmap_mode="r")
        self.seq_len = seq_len

    def __len__(self) -> int:
        return int(self.tokens.size - 1) // self.seq_len

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * self.seq_len
        row = torch.from_numpy(self.tokens[start : start + self.seq_len + 1].astype(np.int64))
        return row[:-1], row[1:]


def forever(make: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield from make()


def torch_loader(flat: Path, batch: int, seq_len: int, count: int) -> Step:
    """torch's DataLoader without workers over the same tokens, shuffled."""
    loader = DataLoader(Rows(flat, seq_len), batch_size=batch, shuffle=True, num_workers=0)
    return Steps(forever(lambda: loader), count)


def litdata_loader(folder: Path, batch: int, seq_len: int, count: int) -> Step:
    """litdata's StreamingDataset with its TokensLoader over the same tokens, shuffled."""
    import litdata

    loader = litdata.TokensLoader(block_size=seq_len + 1)
    data = litdata.StreamingDataset(str(folder), item_loader=loader, shuffle=True, drop_last=True)
    batches = litdata.StreamingDataLoader(data, batch_size=batch, num_workers=0)
    return Steps(forever(lambda: batches), count)


def tokens_of(path: str) -> Iterator[torch.Tensor]:
    """For litdata: the tokens of one file in pieces of a million."""
    for part in np.array_split(np.load(path, mmap_mode="r"), 32):
        yield torch.from_numpy(part.astype(np.uint16))


def write_litdata(folder: Path, flat: Path, seq_len: int) -> Path:
    """The tokens of ``flat`` in litdata's format."""
    import litdata

    shutil.rmtree(folder, ignore_errors=True)
    litdata.optimize(
        fn=tokens_of,
        inputs=[str(flat)],
        output_dir=str(folder),
        chunk_size=(seq_len + 1) * 4096,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
    )
    return folder


def ahead(batches: Iterator[Any], depth: int = 2) -> Generator[Any, None, None]:
    """The same batches from a thread that works ahead."""
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def fill() -> None:
        for batch in batches:
            while not stop.is_set():
                try:
                    waiting.put(batch, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stop.is_set():
                return

    threading.Thread(target=fill, daemon=True).start()
    try:
        while True:
            yield waiting.get()
    finally:
        stop.set()
