"""Token files of other programs, document by document, for ``import_shards.py``. Floor 1.

Every reader yields ``(split, domain, ids)``. They are imported, not read in training: one format
then has digests, a vocabulary that was checked and document ends, and a batch is one gather.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError

Ids = npt.NDArray[Any]
Piece = tuple[str, str, Ids]
Splits = Mapping[str, str]
"""Document -> split."""
FORMATS = ("npy", "datatrove", "hdf5", "bin")
NAMES = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
"""Names of splits in other programs."""
ROWS = 1 << 14
"""Rows of an HDF5 file read at once."""


@dataclass(frozen=True)
class Input:
    """One file or directory to read; split and domain where the format does not say."""

    path: Path
    format: str
    split: str | None
    domain: str | None
    splits: Splits | None = None


def parse_input(text: str, format_: str, splits: Splits | None = None) -> Input:
    """``[SPLIT[/DOMAIN]=]PATH`` as an input.

    Raises:
        ConfigError: a split that does not exist, or a path that does not.
    """
    where, mark, path = text.rpartition("=")
    split, _, domain = where.partition("/")
    if mark and split not in NAMES:
        raise ConfigError(f"{text}: split {split!r}; allowed: train, val, test.")
    if not Path(path).exists():
        form = "" if mark else "; give SPLIT/DOMAIN=PATH, such as train/wiki=old/wiki"
        raise ConfigError(f"{path}: no such file or directory{form}.")
    return Input(Path(path), format_, NAMES.get(split), domain or None, splits)


def read_tokens(source: Input, eos_id: int, vocab_size: int) -> Iterator[Piece]:
    """Documents of one input, in order.

    Args:
        source: what to read.
        eos_id: ends documents where the format has no index of them (npy).
        vocab_size: ids that a file of two bytes each cannot have held are refused.

    Raises:
        ConfigError: naming the file: missing, not of the format, without a split, or of a width
            that the vocabulary does not fit.
    """
    readers = {"npy": _npy, "datatrove": _datatrove, "hdf5": _hdf5, "bin": _bin}
    if source.format not in readers:
        raise ConfigError(f"--format: {source.format!r}; allowed: {', '.join(FORMATS)}.")
    yield from readers[source.format](source, eos_id, vocab_size)


def input_files(source: Input) -> list[Path]:
    """The files of an input, sorted.

    Raises:
        ConfigError: there are none.
    """
    path = source.path
    pattern = {"npy": "*.npy", "datatrove": "*.ds", "hdf5": "*.h*5", "bin": "tokens.bin"}
    found = [path] if path.is_file() else sorted(path.glob(pattern.get(source.format, "*")))
    if not found:
        raise ConfigError(
            f"{path}: no file {pattern.get(source.format, '*')} there; name a file or a directory "
            f"of format {source.format}."
        )
    return found


def _place(source: Input) -> tuple[str, str]:
    return source.split or "train", source.domain or "text"


def _check_width(path: Path, itemsize: int, vocab_size: int) -> None:
    if itemsize <= 2 and vocab_size > 1 << (8 * itemsize):
        raise ConfigError(
            f"{path}: {itemsize} bytes per id cannot hold a vocabulary of {vocab_size}: larger ids "
            "have wrapped around and are lost; tokenize the text again."
        )


def _npy(source: Input, eos_id: int, vocab_size: int) -> Iterator[Piece]:
    """Files of rows (N, T), one stream of documents with EOS after each; cut at EOS."""
    split, domain = _place(source)
    for path in input_files(source):
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"{path}: not a NumPy array ({error}).") from error
        if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
            raise ConfigError(
                f"{path}: {rows.dtype} of shape {rows.shape}; expected integers (N, T)."
            )
        _check_width(path, rows.dtype.itemsize, vocab_size)
        flat = np.asarray(rows).reshape(-1)
        ends = np.flatnonzero(flat == eos_id) + 1
        yield from ((split, domain, part) for part in np.split(flat, ends) if part.size)


def _datatrove(source: Input, eos_id: int, vocab_size: int) -> Iterator[Piece]:
    """``.ds`` (ids) with ``.ds.index`` (document ends, little-endian uint64)."""
    del eos_id
    split, domain = _place(source)
    for path in input_files(source):
        index = path.with_name(path.name + ".index")
        if not index.is_file():
            raise ConfigError(f"{index}: no such file; the documents of {path.name} need it.")
        if index.stat().st_size % 8:
            raise ConfigError(f"{index}: {index.stat().st_size} bytes; not whole numbers (cut?).")
        ends = np.fromfile(index, "<u8").astype(np.int64)
        count, size = int(ends[-1]) if ends.size else 0, path.stat().st_size
        width = size // count if count else 2
        if width not in (2, 4) or width * count != size or (np.diff(ends, prepend=0) < 0).any():
            raise ConfigError(
                f"{path}: {size} bytes, but its index ends at {count} tokens of 2 or 4 bytes."
            )
        _check_width(path, width, vocab_size)
        if count:
            flat = np.memmap(path, dtype=f"<u{width}", mode="r")
            parts = np.split(np.asarray(flat), ends[:-1])
            yield from ((split, domain, part) for part in parts if part.size)


def _bin(source: Input, eos_id: int, vocab_size: int) -> Iterator[Piece]:
    """``tokens.bin`` (uint16), ``index.jsonl`` (where documents are), ``splits.json``."""
    del eos_id
    folder = source.path if source.path.is_dir() else source.path.parent
    path, index = folder / "tokens.bin", folder / "index.jsonl"
    splits = source.splits
    if splits is None and (folder / "splits.json").is_file():
        splits = read_split_map(folder / "splits.json")
    if splits is None and source.split is None:
        raise ConfigError(f"{folder / 'splits.json'}: no such file; name the split (--split).")
    _check_width(path, 2, vocab_size)
    try:
        flat = np.asarray(np.memmap(path, dtype="<u2", mode="r"))
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}, {index.name}: not readable ({error}).") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            name, start, length = str(row["paper_id"]), int(row["offset"]), int(row["length"])
            category = str(row["cat"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{index}, line {number}: expected paper_id, cat, offset and length."
            ) from error
        if not 0 <= start <= start + length <= flat.size:
            raise ConfigError(
                f"{index}, line {number}: tokens {start} to {start + length} of {flat.size}."
            )
        split = source.split if splits is None else splits.get(name)
        if split is None:
            raise ConfigError(f"{index}, line {number}: {name!r} is in no split.")
        yield split, source.domain or category, flat[start : start + length]


def _hdf5(source: Input, eos_id: int, vocab_size: int) -> Iterator[Piece]:
    """``/token_chunks`` (N, T), ``/doc_idx_for_chunk``, ``/category_for_chunk``.

    Neighbouring chunks of one document and category are one document; the file does not hold its
    last tokens and no EOS. A file of all splits is refused without a map, for it mixes them.
    """
    del eos_id
    from nl.data.prep.extras import needed

    needed("h5py", "hdf5")
    import h5py

    for path in input_files(source):
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise ConfigError(f"{path}: not an HDF5 file ({error}).") from error
        with file:
            said = NAMES.get(_text(file.attrs.get("split", "")))
            split = source.split or said or _split_of_name(path)
            if source.splits is None and split is None:
                raise ConfigError(
                    f"{path}: nothing says which split it holds (a file of all splits mixes "
                    "training with validation); give --split-map, or SPLIT=PATH if it holds one."
                )
            yield from _chunks(file, path, source, split, vocab_size)


def _chunks(
    file: Any, path: Path, source: Input, split: str | None, vocab_size: int
) -> Iterator[Piece]:
    names = ("token_chunks", "doc_idx_for_chunk", "category_for_chunk")
    if missing := [name for name in names if name not in file]:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}; has {', '.join(file)}.")
    chunks, documents, categories = (file[name] for name in names)
    length = file.attrs.get("chunk_size", file.attrs.get("token_chunk_size", chunks.shape[1]))
    if int(length) != chunks.shape[1] or not len(chunks) == len(documents) == len(categories):
        raise ConfigError(
            f"{path}: chunks of shape {chunks.shape}, chunk size {length}, {len(documents)} "
            f"document numbers, {len(categories)} categories; they must agree."
        )
    _check_width(path, chunks.dtype.itemsize, vocab_size)
    known = file.attrs.get("selected_categories_in_file", file.attrs.get("category_names_in_file"))
    allowed = None if known is None else {_text(name) for name in known}
    waiting: list[Ids] = []
    key: tuple[int, str] | None = None
    for start in range(0, len(chunks), ROWS):
        stop = start + ROWS
        block = chunks[start:stop], documents[start:stop].tolist(), categories[start:stop]
        for ids, document, category in zip(*block, strict=True):
            new = (int(document), _text(category))
            if allowed is not None and new[1] not in allowed:
                raise ConfigError(f"{path}: category {new[1]!r} is not among {sorted(allowed)}.")
            if new != key and key is not None:
                yield (*_of_document(path, source, split, key), np.concatenate(waiting))
                waiting = []
            key = new
            waiting.append(ids)
    if key is not None:
        yield (*_of_document(path, source, split, key), np.concatenate(waiting))


def _of_document(
    path: Path, source: Input, split: str | None, key: tuple[int, str]
) -> tuple[str, str]:
    found = split if source.splits is None else source.splits.get(str(key[0]))
    if found is None:
        raise ConfigError(f"{path}: document {key[0]} is in no split of the split map.")
    return found, source.domain or key[1]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _split_of_name(path: Path) -> str | None:
    found = re.search(r"_(train|val|valid|validation|test)$", path.stem)
    return NAMES[found[1]] if found else None


def read_split_map(path: Path) -> dict[str, str]:
    """Document -> split, from JSON ``{split: [documents]}``.

    Raises:
        ConfigError: no such file, another shape, a document in two splits.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(str(d), NAMES[split]) for split, rows in data.items() for d in rows]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: expected JSON {{train|validation|test: [documents]}} ({error!r})."
        ) from error
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ConfigError(f"{path}: {len(pairs) - len(found)} documents are in two splits.")
    return found
