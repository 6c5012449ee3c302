"""What components hold, for a study that counts windows: documents, tokens, overlap. Floor 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError, require
from nl.data.components import ComponentData, check_splits, open_components
from nl.data.manifest import read_manifest
from nl.data.prep.extras import needed
from nl.data.prep.inspection import distinct, inspect_data

NGRAM = 13
"""Tokens of a run that counts as shared with the training split."""
KEPT = 1 << 24
"""Runs of the training split that are remembered; of more, an equal share of all."""
STEP = 1 << 20
Words = npt.NDArray[np.uint64]


def analyse(path: Path, window: int = 100, ngram: int = NGRAM) -> dict[str, Any]:
    """Counts of every split and component, what repeats, and whether all is as the manifest says.

    Args:
        path: data directory.
        window: tokens of a window.
        ngram: tokens of the runs that are compared with the training split.

    Returns:
        Plain data: ``rows`` by split and component, ``budget`` (windows of the smallest component
        of the training split), ``problems``.

    Raises:
        ConfigError: no readable manifest, or splits that are mixed up.
    """
    require(window >= 1 and ngram >= 1, f"--window: {window}, --ngram: {ngram}; must be >= 1.")
    manifest = read_manifest(path)
    check_splits(manifest, path)
    report = inspect_data(path, samples=0, window=window)
    found = {row["where"]: row for row in report["rows"]}
    known, every = _known(path, tuple(manifest.splits.get("train", {})), ngram)
    rows = []
    for split, domains in manifest.splits.items():
        data = open_components(path, split, tuple(domains), "header")
        for code, name in enumerate(data.names):
            old = found[f"{split}/{name}"]
            row = {"split": split, "component": name} | _windows(data, code, window)
            row["unknown"] = round((old["unknown_rate"] or 0) * old["tokens"])
            row["bytes"], tokens = old["bytes"], max(1, row["tokens"])
            row["bytes_per_token"] = old["bytes"] / tokens
            hashed = max(1, old["hashed_windows"])
            row["duplicate_windows"] = old["repeated_windows"] / hashed
            row["repeated_documents"] = old["repeated_documents"]
            if split != "train":
                mine = _runs(data, code, ngram, every)
                share = float(np.isin(mine, known).mean()) if mine.size else 0.0
                row["ngrams_in_train"] = share
            rows.append(row)
    train = [row["windows"] for row in rows if row["split"] == "train"]
    return {
        "name": manifest.name,
        "tokenizer": manifest.tokenizer.sha256,
        "vocab_size": manifest.tokenizer.vocab_size,
        "window": window,
        "ngram": ngram,
        "budget": min(train, default=0),
        "checksums": "differ" if report["problems"] else "as in the manifest",
        "rows": rows,
        "problems": report["problems"],
    }


def _windows(data: ComponentData, code: int, window: int) -> dict[str, Any]:
    documents = data.documents[code]
    counts = documents.windows(window, legacy=False)
    tokens = int(documents.length.sum())
    return {
        "documents": int(documents.length.size),
        "tokens": tokens,
        "windows": int(counts.sum()),
        "windows_legacy": int(documents.windows(window, legacy=True).sum()),
        "dropped_tokens": tokens - int(counts.sum()) * window,
        "too_short": int((counts == 0).sum()),
        "windows_per_document": [int(counts.min()), float(counts.mean()), int(counts.max())]
        if counts.size
        else [0, 0.0, 0],
    }


def _known(path: Path, names: tuple[str, ...], ngram: int) -> tuple[Words, int]:
    """Hashes of the runs of the training split, and of how many classes one was taken."""
    if not names:
        return np.empty(0, np.uint64), 1
    data = open_components(path, "train", names, "header")
    whole = sum(int(documents.length.sum()) for documents in data.documents)
    every = -(-max(1, whole) // KEPT)
    found = [_runs(data, code, ngram, every) for code in range(len(names))]
    return distinct(np.concatenate(found)), every


def _runs(data: ComponentData, code: int, ngram: int, every: int) -> Words:
    """A hash per run of ``ngram`` tokens inside documents; of ``every`` classes of them one."""
    draw = np.random.default_rng(ngram)
    factors = draw.integers(1, 1 << 63, ngram, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    kept: list[Words] = [np.empty(0, np.uint64)]
    for number in range(data.documents[code].length.size):
        ids = data.text(code, number)
        for start in range(0, ids.size - ngram + 1, STEP):
            part = ids[start : start + STEP + ngram - 1].astype(np.uint64) + np.uint64(1)
            size = part.size - ngram + 1
            words = np.zeros(size, np.uint64)
            for place, factor in enumerate(factors):
                words += part[place : place + size] * factor
            words = (words ^ (words >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
            kept.append(words[(words >> np.uint64(20)) % np.uint64(every) == 0])
    data.release()
    return np.concatenate(kept)


def table(report: dict[str, Any]) -> Iterator[str]:
    """The report in lines."""
    yield (
        f"{report['name']}: tokenizer {report['tokenizer'][:12]}, vocabulary "
        f"{report['vocab_size']:,}; smallest component {report['budget']:,} windows of "
        f"{report['window']}"
    )
    yield (
        f"{'split/component':<24} {'documents':>9} {'tokens':>12} {'windows':>9} {'dropped':>8} "
        f"{'short':>6} {'unk':>5} {'B/token':>8} {'repeated':>9} {'in train':>9}"
    )
    for row in report["rows"]:
        shared = row.get("ngrams_in_train")
        yield (
            f"{row['split'] + '/' + row['component']:<24} {row['documents']:>9,} "
            f"{row['tokens']:>12,} {row['windows']:>9,} {row['dropped_tokens']:>8,} "
            f"{row['too_short']:>6,} {row['unknown']:>5,} {row['bytes_per_token']:>8.3f} "
            f"{row['duplicate_windows']:>9.2%} {'-' if shared is None else f'{shared:.2%}':>9}"
        )
    yield f"digests {report['checksums']}"
    yield from (f"WRONG: {problem}" for problem in report["problems"])


def analyse_hdf5(path: Path) -> dict[str, Any]:
    """Attributes of an HDF5 file of windows and what it holds by category.

    Raises:
        ConfigError: not such a file, or its rows, attributes and names disagree.
    """
    h5py = needed("h5py", "hdf5")
    require(path.is_file(), f"{path}: no such file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ConfigError(f"{path}: not an HDF5 file ({error}).") from error
    with file:
        names = ("token_chunks", "doc_idx_for_chunk", "category_for_chunk")
        if missing := [name for name in names if name not in file]:
            raise ConfigError(f"{path}: lacks {', '.join(missing)}; has {', '.join(file)}.")
        attrs = {key: _plain(value) for key, value in file.attrs.items()}
        rows, width = file["token_chunks"].shape
        owners = file["doc_idx_for_chunk"][:]
        labels = np.asarray([_plain(v) for v in file["category_for_chunk"][:]], object).astype(str)
    problems = []
    said = attrs.get("chunk_size", attrs.get("token_chunk_size", width))
    for what, value, wanted in (
        ("chunk_size", said, width),
        ("total_chunks", attrs.get("total_chunks", rows), rows),
        ("doc_idx_for_chunk", owners.size, rows),
        ("category_for_chunk", labels.size, rows),
    ):
        if value != wanted:
            problems.append(f"{what}: {value}, but token_chunks has shape ({rows}, {width}).")
    found = []
    for name in sorted(set(labels.tolist())):
        _, counts = np.unique(owners[labels == name], return_counts=True)
        per = [int(counts.min()), float(counts.mean()), int(counts.max())]
        row = {"component": name, "documents": int(counts.size), "windows": int(counts.sum())}
        found.append(row | {"windows_per_document": per})
    return {"file": path.name, "attributes": attrs, "rows": found, "problems": problems}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def hdf5_table(report: dict[str, Any]) -> Iterator[str]:
    """The report of an HDF5 file in lines."""
    yield report["file"]
    yield from (f"  {key}: {value}" for key, value in sorted(report["attributes"].items()))
    for row in report["rows"]:
        low, mean, high = row["windows_per_document"]
        yield (
            f"  {row['component']}: {row['windows']:,} windows of {row['documents']:,} documents "
            f"({low} to {high} each, {mean:.1f} on average)"
        )
    yield from (f"WRONG: {problem}" for problem in report["problems"])
