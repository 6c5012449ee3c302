"""Token files of other programs become shards with the same ids; what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nl.config import ConfigError
from nl.data.files import sha256_file
from nl.data.manifest import DataManifest, documents, read_manifest
from nl.data.prep.import_shards import ImportOptions, import_shards
from nl.data.readers import parse_input, read_split_map
from nl.data.shard_stream import ShardStreamConfig
from nl.data.shards import open_shard
from nl.data.tokenizer import ByteTokenizer

EOS = ByteTokenizer.eos_id
BYTES = ImportOptions(tokenizer_path="bytes")


def text_ids(text: str, eos: bool = True) -> list[int]:
    return [*text.encode(), *([EOS] if eos else [])]


def read(root: Path, split: str, domain: str) -> list[list[int]]:
    """Documents of a domain, from its shards."""
    manifest, found = read_manifest(root), []
    for info in manifest.domain(split, domain, root).shards:
        shard = open_shard(root, info, manifest.tokenizer, "full")
        cuts = shard.ends[:-1].astype(np.int64)
        found += [part.tolist() for part in np.split(shard.tokens, cuts)]
    return found


def load(out: Path, format_: str, *inputs: str, **more: object) -> DataManifest:
    splits = more.pop("splits", None)
    found = [parse_input(text, format_, splits) for text in inputs]  # type: ignore[arg-type]
    options = ImportOptions(**({"tokenizer_path": "bytes"} | more))  # type: ignore[arg-type]
    return import_shards(found, out, options)[0]


def write_npy(root: Path) -> list[list[int]]:
    rows = [text_ids(f"document {n} " * (n % 5 + 1)) for n in range(40)]
    flat = [i for row in rows for i in row]
    blocks = np.asarray(flat[: len(flat) // 32 * 32], np.int32).reshape(-1, 32)
    root.mkdir()
    np.save(root / "shard_00000.npy", blocks[:20])
    np.save(root / "shard_00001.npy", blocks[20:])
    return rows


def test_npy(tmp_path: Path) -> None:
    rows = write_npy(tmp_path / "old")
    manifest = load(tmp_path / "out", "npy", f"train/wiki={tmp_path}/old", f"val={tmp_path}/old")
    got = read(tmp_path / "out", "train", "wiki")
    flat = [i for row in got for i in row]
    assert flat == [i for row in rows for i in row][: len(flat)]
    assert len(flat) % 32 == 0
    assert got[:5] == rows[:5], "cut at EOS"
    assert read(tmp_path / "out", "val", "text") == got
    info = manifest.splits["train"]["wiki"]
    assert info.bytes == sum(i < 256 for i in flat)
    with pytest.raises(ConfigError, match="its shards were imported"):
        documents(tmp_path / "out", "train", "wiki")
    config = ShardStreamConfig(path=str(tmp_path / "out"), seq_len=16, batch_size=4)
    assert next(iter(config.build("train", seed=0, rank=0, world=1))).inputs.shape == (4, 16)
    again = import_shards(
        [parse_input(f"train/wiki={tmp_path}/old", "npy")], tmp_path / "two", BYTES
    )
    assert again[1]
    assert not import_shards(
        [parse_input(f"train/wiki={tmp_path}/old", "npy")], tmp_path / "two", BYTES
    )[1]


@pytest.mark.parametrize("width", [2, 4])
def test_datatrove(tmp_path: Path, width: int) -> None:
    rows = [text_ids(f"text {n}" * (n % 3)) for n in range(30)]
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(str(tmp_path), "00000.ds", token_size=width, save_final_metadata=True)
    for row in rows:
        file.write(row, None)
    file.close()
    load(tmp_path / "out", "datatrove", f"val/web={tmp_path}", shard_tokens=60)
    assert read(tmp_path / "out", "val", "web") == rows
    assert len(read_manifest(tmp_path / "out").splits["val"]["web"].shards) > 3


def write_bin(root: Path) -> dict[str, list[int]]:
    root.mkdir()
    rows = {f"train_{n}": text_ids(f"paper {n} " * 4, eos=False) for n in range(6)}
    flat = np.asarray([i for row in rows.values() for i in row], "<u2")
    flat.tofile(root / "tokens.bin")
    lines, start = [], 0
    for n, (name, row) in enumerate(rows.items()):
        at = {"paper_id": name, "cat": "ab"[n % 2], "offset": start, "length": len(row)}
        lines.append(json.dumps(at))
        start += len(row)
    (root / "index.jsonl").write_text("\n".join(lines))
    splits = {"train": list(rows)[:4], "validation": list(rows)[4:5], "test": list(rows)[5:]}
    (root / "splits.json").write_text(json.dumps(splits))
    return rows


def test_bin(tmp_path: Path) -> None:
    rows = list(write_bin(tmp_path / "old").values())
    manifest = load(tmp_path / "out", "bin", str(tmp_path / "old"))
    assert {s: list(d) for s, d in manifest.splits.items()} == {
        "train": ["a", "b"],
        "val": ["a"],
        "test": ["b"],
    }
    assert read(tmp_path / "out", "train", "a") == [rows[0], rows[2]]
    assert read(tmp_path / "out", "test", "b") == [rows[5]]


def write_hdf5(path: Path, **attrs: object) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["token_chunks"] = np.arange(60, dtype=np.int32).reshape(6, 10)
        file["doc_idx_for_chunk"] = np.asarray([0, 0, 1, 2, 2, 3], np.int32)
        names = np.asarray(["cs.AI", "cs.AI", "cs.AI", "math.GR", "math.GR", "cs.AI"], object)
        file.create_dataset("category_for_chunk", data=names, dtype=h5py.string_dtype())
        for name, value in attrs.items():
            file.attrs[name] = value


@pytest.mark.parametrize(
    "attrs",
    [
        {"chunk_size": 10, "selected_categories_in_file": ["cs.AI", "math.GR"]},
        {"token_chunk_size": 10, "category_names_in_file": ["cs.AI", "math.GR"]},
        {},
    ],
)
def test_hdf5(tmp_path: Path, attrs: dict[str, object]) -> None:
    write_hdf5(tmp_path / "arxiv_train.hdf5", **attrs)
    manifest = load(tmp_path / "out", "hdf5", str(tmp_path / "arxiv_train.hdf5"))
    assert list(manifest.splits) == ["train"]
    got = read(tmp_path / "out", "train", "cs.AI")
    assert got == [list(range(20)), list(range(20, 30)), list(range(50, 60))]
    assert read(tmp_path / "out", "train", "math.GR") == [list(range(30, 50))]


def test_an_hdf5_file_of_all_splits_needs_a_map(tmp_path: Path) -> None:
    path = tmp_path / "arxiv.hdf5"
    write_hdf5(path, chunk_size=10)
    with pytest.raises(ConfigError, match=r"arxiv.hdf5: nothing says which split.*--split-map"):
        load(tmp_path / "out", "hdf5", str(path))
    (tmp_path / "map.json").write_text('{"train": [0, 2], "validation": [1], "test": [3]}')
    splits = read_split_map(tmp_path / "map.json")
    load(tmp_path / "out", "hdf5", str(path), splits=splits)
    assert read(tmp_path / "out", "val", "cs.AI") == [list(range(20, 30))]
    (tmp_path / "map.json").write_text('{"train": [0, 2], "test": [3]}')
    splits = read_split_map(tmp_path / "map.json")
    with pytest.raises(ConfigError, match="document 1 is in no split of the split map"):
        load(tmp_path / "two", "hdf5", str(path), splits=splits)
    assert not (tmp_path / "two" / "manifest.json").exists()


def test_a_tokenizer_that_cannot_be_loaded_is_named_by_its_digest(tmp_path: Path) -> None:
    write_npy(tmp_path / "old")
    (tmp_path / "old.model").write_bytes(b"not for us")
    more = {"tokenizer_path": str(tmp_path / "old.model"), "vocab_size": 300, "eos_id": EOS}
    manifest = load(tmp_path / "out", "npy", str(tmp_path / "old"), **more)
    assert manifest.tokenizer.sha256 == sha256_file(tmp_path / "out" / "tokenizer.model")
    assert manifest.splits["train"]["text"].bytes == 0
    with pytest.raises(ConfigError, match="--eos-id: missing"):
        ImportOptions(tokenizer_path="x", vocab_size=300)


def negative(root: Path) -> None:
    rows = np.load(root / "old/shard_00001.npy")
    rows[0, 5] = -7
    np.save(root / "old/shard_00001.npy", rows)


def cut_index(root: Path) -> None:
    (root / "a.ds").write_bytes(b"\0" * 20)
    (root / "a.ds.index").write_bytes((9).to_bytes(8, "little"))


BAD: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("npy", "old", negative, "old: token id -7 is outside the vocabulary of 259.*tokenizer-path"),
    ("npy", "old", lambda r: (r / "old/shard_00001.npy").write_bytes(b"no"), "not a NumPy array"),
    ("npy", "old", lambda r: np.save(r / "old/a.npy", np.zeros(4, np.int32)), r"expected integers"),
    ("npy", "bin", lambda r: None, r"no file \*.npy there"),
    ("npy", "gone", lambda r: None, "gone: no such file or directory"),
    ("zip", "old", lambda r: None, "--format: 'zip'; allowed: npy, datatrove, hdf5, bin"),
    ("datatrove", "a.ds", cut_index, "20 bytes, but its index ends at 9 tokens"),
    ("datatrove", "a.ds", lambda r: (r / "a.ds").write_bytes(b""), "a.ds.index: no such file"),
    ("bin", "bin", lambda r: (r / "bin/tokens.bin").write_bytes(b"\0\0"), "line 1: tokens 0 to"),
    ("bin", "bin", lambda r: (r / "bin/splits.json").unlink(), "splits.json: no such file"),
    ("bin", "bin", lambda r: (r / "bin/splits.json").write_text('{"train": []}'), "in no split"),
    (
        "bin",
        "bin",
        lambda r: (r / "bin/splits.json").write_text('{"train": ["a"], "test": ["a"]}'),
        "1 documents are in two splits",
    ),
    ("hdf5", "x_train.h5", lambda r: (r / "x_train.h5").write_bytes(b"no"), "not an HDF5 file"),
]


@pytest.mark.parametrize(("format_", "name", "damage", "message"), BAD)
def test_bad_files_are_refused(
    tmp_path: Path, format_: str, name: str, damage: Callable[[Path], object], message: str
) -> None:
    write_npy(tmp_path / "old")
    write_bin(tmp_path / "bin")
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "out", format_, str(tmp_path / name))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_ids_that_have_wrapped_around_are_refused(tmp_path: Path) -> None:
    """65,537 ids do not fit two bytes; the file looks whole."""
    write_bin(tmp_path / "old")
    (tmp_path / "t.model").write_bytes(b"x")
    more = {"tokenizer_path": str(tmp_path / "t.model"), "vocab_size": 65537, "eos_id": 0}
    with pytest.raises(ConfigError, match=r"2 bytes per id cannot hold .* 65537: .*wrapped around"):
        load(tmp_path / "out", "bin", str(tmp_path / "old"), **more)
    load(tmp_path / "out", "bin", str(tmp_path / "old"), **(more | {"vocab_size": 65536}))
