"""A split of a data directory as one HDF5 file of windows, as other programs read them. Floor 1.

``/token_chunks`` int32 (N, W), ``/doc_idx_for_chunk`` int32 (N,), ``/category_for_chunk`` UTF-8
(N,), ``/category_code`` uint8 (N,); the split is in the name and in an attribute. Windows begin at
the beginning of a document and lie in it; what is left of a document is not in the file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nl.config import ConfigError, require
from nl.data.components import ComponentData, gather, open_components
from nl.data.manifest import read_manifest
from nl.data.prep.extras import needed

if TYPE_CHECKING:
    from nl.data.order import Ints

ROWS = 1 << 12
"""Windows that are in memory at once."""
BLOCKS = 8
"""Times ``ROWS`` after which pages of the shards are let go."""
MOST = 256
"""Components that a code of one byte can tell apart."""


def export_hdf5(
    path: Path, output: Path, split: str, components: Sequence[str] = (), window: int = 100
) -> tuple[Path, dict[str, int]]:
    """Write ``<output>_<split>.hdf5``, whole or not at all.

    Args:
        path: data directory.
        output: the file without split and ending.
        split: train, val or test; a file of all splits would mix training with validation.
        components: which; empty: all of the split.
        window: tokens of a row.

    Returns:
        The file, and its rows by component.

    Raises:
        ConfigError: no such split or component, nothing to write, no write access.
    """
    require(window >= 1, f"--window: {window}; must be >= 1.")
    h5py, manifest = needed("h5py", "hdf5"), read_manifest(path)
    names = tuple(components) or tuple(manifest.splits.get(split, {"": ()}))
    data = open_components(path, split, names, "full")
    require(len(names) <= MOST, f"components: {len(names)}; at most {MOST} fit one byte.")
    counts = [d.windows(window, legacy=True) for d in data.documents]
    rows = {name: int(count.sum()) for name, count in zip(names, counts, strict=True)}
    total = sum(rows.values())
    require(total > 0, f"--window: {window}; no document of {split} of {path} holds one.")
    file = output.with_name(f"{output.name}_{split}.hdf5")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=".tmp-", suffix=".hdf5", dir=file.parent)
        os.close(handle)
        with h5py.File(scratch, "w") as out:
            _fill(out, h5py, data, counts, window)
            out.attrs.update(
                {
                    "total_chunks": total,
                    "chunk_size": window,
                    "split": split,
                    "tokenizer_name_or_path": manifest.tokenizer.path or "bytes",
                    "tokenizer_sha256": manifest.tokenizer.sha256,
                    "vocab_size": manifest.tokenizer.vocab_size,
                    "shards_sha256": data.digest,
                    "selected_categories_in_file": sorted(names),
                    "reference_chunk_budget_smallest_top_category": min(rows.values()),
                }
            )
        Path(scratch).chmod(0o644)
        Path(scratch).replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error}).") from error
    return file, rows


def _fill(out: Any, h5py: Any, data: ComponentData, counts: Sequence[Ints], window: int) -> None:
    total = sum(int(count.sum()) for count in counts)
    text = h5py.string_dtype()
    chunks = out.create_dataset("token_chunks", (total, window), "<i4")
    owners = out.create_dataset("doc_idx_for_chunk", (total,), "<i4")
    names = out.create_dataset("category_for_chunk", (total,), text)
    codes = out.create_dataset("category_code", (total,), "u1")
    at = before = 0
    for code, count in enumerate(counts):
        for turn, (document, number) in enumerate(_blocks(count)):
            size, component = document.size, np.full(document.size, code)
            rows = gather(data, component, document, number * window, window)
            chunks[at : at + size], owners[at : at + size] = rows, document + before
            names[at : at + size] = np.full(size, data.names[code], object)
            codes[at : at + size] = code
            at += size
            if turn % BLOCKS == 0:
                data.release()
        before += count.size


def _blocks(counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """(document, window in it) of all windows in order, ``ROWS`` at a time."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    for start in range(0, total, ROWS):
        row = np.arange(start, min(start + ROWS, total))
        document = np.searchsorted(ends, row, side="right")
        yield document, row - (ends[document] - counts[document])
