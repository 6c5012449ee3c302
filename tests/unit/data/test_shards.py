"""A shard that is not what the manifest says is refused, with the file's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nl.config import ConfigError
from nl.data.manifest import ShardInfo, TokenizerInfo, read_manifest
from nl.data.shards import HEADER_BYTES, dtype_for, open_shard, write_shard
from nl.data.tokenizer import ByteTokenizer
from nl.data.windows import TokenWindows

BYTES = TokenizerInfo(path=None, sha256=ByteTokenizer.sha256, vocab_size=259)
SHARD = "train/code/shard_00000.bin"


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(259, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_round_trip(tmp_path: Path, vocab: int, dtype: str) -> None:
    info = TokenizerInfo(path=None, sha256="ab" * 32, vocab_size=vocab)
    tokens = np.asarray([5, 0, vocab - 1, 7, 1], np.uint32)
    ends = np.asarray([2, 2, 5], np.uint64)
    record = write_shard(tmp_path / "s.bin", tokens, ends, info)
    assert record == ShardInfo(
        file="s.bin",
        tokens=5,
        documents=3,
        sha256=hashlib.sha256((tmp_path / "s.bin").read_bytes()).hexdigest(),
        dtype=dtype,  # type: ignore[arg-type]
        max_id=vocab - 1,
    )
    assert dtype_for(vocab) == dtype
    shard = open_shard(tmp_path, record, info, verify=True)
    assert shard.tokens.dtype == np.dtype(dtype)
    assert shard.tokens.tolist() == tokens.tolist()
    assert shard.ends.tolist() == ends.tolist()
    raw = (tmp_path / "s.bin").read_bytes()
    assert raw[:8] == b"NLTOKENS"
    size = shard.tokens.itemsize
    stored = [raw[HEADER_BYTES + i * size : HEADER_BYTES + (i + 1) * size] for i in range(5)]
    assert [int.from_bytes(b, "little") for b in stored] == tokens.tolist()


def test_empty_shard(tmp_path: Path) -> None:
    nothing = np.empty(0, np.uint32)
    record = write_shard(tmp_path / "s.bin", nothing, nothing, BYTES)
    shard = open_shard(tmp_path, record, BYTES, verify=True)
    assert shard.tokens.size == shard.ends.size == 0


def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"s.bin: token id 259 is outside the vocabulary of 259"):
        write_shard(tmp_path / "s.bin", np.asarray([1, 259]), np.asarray([2]), BYTES)
    assert list(tmp_path.iterdir()) == []


def overwrite(root: Path, offset: int, data: bytes) -> None:
    with (root / SHARD).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip(root: Path) -> None:
    byte = (root / SHARD).read_bytes()[HEADER_BYTES + 100]
    overwrite(root, HEADER_BYTES + 100, bytes([byte ^ 1]))


def sign(root: Path) -> None:
    """Put the digest of the file as it is into the manifest."""
    digest = hashlib.sha256((root / SHARD).read_bytes()).hexdigest()
    shard(root, sha256=digest)


def shard(root: Path, **fields: Any) -> None:
    edit(root, lambda d: d["splits"]["train"]["code"]["shards"][0].update(fields))


def large_id(root: Path) -> None:
    overwrite(root, HEADER_BYTES, b"\xff\xff")
    sign(root)


def drop(root: Path, count: int) -> None:
    data = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(data[:-count])


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda r: (r / SHARD).unlink(), "00000.bin: no such file, but the manifest lists"),
    ("truncated", lambda r: drop(r, 1), r"00000.bin: \d+ bytes, expected \d+ \(truncated"),
    (
        "longer",
        lambda r: (r / SHARD).write_bytes((r / SHARD).read_bytes() + b"x"),
        "00000.bin: .* bytes, expected",
    ),
    ("flipped", flip, "00000.bin: sha256 is .* the manifest says .*the file was changed"),
    ("magic", lambda r: overwrite(r, 0, b"X"), "00000.bin: not a shard of format version 1"),
    ("version", lambda r: overwrite(r, 8, b"\x09"), "not a shard of format version 1"),
    ("large id", large_id, "00000.bin: token id 65535 is outside the vocabulary of 259"),
    ("max id", lambda r: shard(r, max_id=3), "header says .* the manifest"),
    ("count", lambda r: edit(r, lambda d: d["tokenizer"].update(vocab_size=300)), "header says"),
    (
        "tokenizer",
        lambda r: edit(r, lambda d: d["tokenizer"].update(sha256="0" * 64)),
        "made with tokenizer .* the manifest names 000000000000",
    ),
    ("schema", lambda r: edit(r, lambda d: d.update(schema=7)), "schema 7; this version reads"),
    ("field", lambda r: edit(r, lambda d: d.pop("tokenizer")), "tokenizer: missing"),
    ("typo", lambda r: shard(r, tokns=1), "unknown 'tokns'. Did you mean 'tokens'"),
    ("json", lambda r: (r / "manifest.json").write_text("{"), "not readable JSON"),
]


@pytest.mark.parametrize(("damage", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_data_is_refused(
    own_tiny: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(own_tiny)
    with pytest.raises(ConfigError, match=message):
        TokenWindows(str(own_tiny), "train", ["code"], 16, verify=True)


def test_a_shard_is_read_once_until_it_changes(own_tiny: Path) -> None:
    TokenWindows(str(own_tiny), "train", ["code"], 16, verify=True)
    TokenWindows(str(own_tiny), "train", ["code"], 16, verify=True)
    flip(own_tiny)
    with pytest.raises(ConfigError, match="sha256"):
        TokenWindows(str(own_tiny), "train", ["code"], 16, verify=True)


def test_without_verify_only_sizes_and_headers_are_looked_at(own_tiny: Path) -> None:
    flip(own_tiny)
    TokenWindows(str(own_tiny), "train", ["code"], 16, verify=False)
    drop(own_tiny, 1)
    with pytest.raises(ConfigError, match="truncated"):
        TokenWindows(str(own_tiny), "train", ["code"], 16, verify=False)


def test_ends_are_the_ends_of_the_documents(tiny: Path) -> None:
    info = read_manifest(tiny)
    eos = ByteTokenizer.eos_id
    for record in info.domain("train", "prose", tiny).shards:
        shard = open_shard(tiny, record, info.tokenizer, verify=True)
        assert (np.flatnonzero(shard.tokens == eos) + 1).tolist() == shard.ends.tolist()
        assert record.documents == shard.ends.size
