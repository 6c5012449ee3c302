"""A shard that is not what the manifest says is refused, with the file's name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.data.manifest import ShardInfo, TokenizerInfo, read_manifest
from nl.data.shard_stream import ShardStreamConfig
from nl.data.shards import (
    BLOCK,
    HEADER_BYTES,
    damaged_blocks,
    dtype_for,
    open_shard,
    write_shard,
)
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
    assert (
        record
        == ShardInfo(
            file="s.bin",
            tokens=5,
            documents=3,
            sha256=hashlib.sha256((tmp_path / "s.bin").read_bytes()).hexdigest(),
            dtype=dtype,  # type: ignore[arg-type]
            max_id=vocab - 1,
            blocks=hashlib.sha256((tmp_path / "s.bin").read_bytes()[-32:]).hexdigest(),
        )
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


def forget(root: Path) -> None:
    (root / SHARD).unlink()


def swap(root: Path) -> None:
    other = root / "val/code/shard_00000.bin"
    (root / SHARD).write_bytes(other.read_bytes())


def sign(root: Path) -> None:
    """Put the digest of the file as it is into the manifest."""
    digest = hashlib.sha256((root / SHARD).read_bytes()).hexdigest()
    shard(root, sha256=digest)


def last_byte(root: Path) -> None:
    data = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


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
    ("empty file", lambda r: (r / SHARD).write_bytes(b""), r"00000.bin: 0 bytes, expected \d+"),
    ("directory", lambda r: (forget(r), (r / SHARD).mkdir()), "00000.bin: no such file"),
    ("loop", lambda r: (forget(r), (r / SHARD).symlink_to(r / SHARD)), "00000.bin: no such file"),
    ("other file", lambda r: swap(r), "header says .* the manifest|bytes, expected"),
    ("outside", lambda r: shard(r, file="../x.bin"), "names '../x.bin', outside of it"),
    ("flipped", flip, r"00000.bin: sha256 is .* the manifest says .*damaged block 0 \(bytes 0 to"),
    ("magic", lambda r: overwrite(r, 0, b"X"), "00000.bin: not a shard of format version 2"),
    ("version", lambda r: overwrite(r, 8, b"\x09"), "not a shard of format version 2"),
    ("digests", last_byte, "00000.bin: .*the table of block digests was changed"),
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


def test_a_shard_that_may_not_be_read_is_named(
    own_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def deny(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == own_tiny / SHARD:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(ConfigError, match=r"00000.bin: cannot be read \(Permission denied\)"):
        TokenWindows(str(own_tiny), "train", ["code"], 16, verify=False)


def test_a_shard_that_is_replaced_while_it_is_read_stays_what_it_was(own_tiny: Path) -> None:
    """Shards are written beside and renamed, so a running stream keeps the old file."""
    windows = TokenWindows(str(own_tiny), "train", ["code"], 16, verify=True)
    rows = np.zeros(1, np.int64), np.arange(1)
    before = windows(*rows)[0].clone()
    info = read_manifest(own_tiny)
    write_shard(own_tiny / SHARD, np.zeros(9, np.uint16), np.asarray([9]), info.tokenizer)
    assert (windows(*rows)[0] == before).all()


def test_ends_are_the_ends_of_the_documents(tiny: Path) -> None:
    info = read_manifest(tiny)
    eos = ByteTokenizer.eos_id
    for record in info.domain("train", "prose", tiny).shards:
        shard = open_shard(tiny, record, info.tokenizer, verify=True)
        assert (np.flatnonzero(shard.tokens == eos) + 1).tolist() == shard.ends.tolist()
        assert record.documents == shard.ends.size


def as_version_1(root: Path) -> None:
    """Make every shard what format version 1 was: no block digests."""

    def change(manifest: dict[str, Any]) -> None:
        domains = [d for split in manifest["splits"].values() for d in split.values()]
        for record in [s for domain in domains for s in domain["shards"]]:
            path = root / record["file"]
            data = bytearray(path.read_bytes())
            ends = HEADER_BYTES + 2 * record["tokens"]
            del data[ends + -ends % 64 + 8 * record["documents"] :]
            data[8:12] = (1).to_bytes(4, "little")
            path.write_bytes(data)
            record["sha256"] = hashlib.sha256(data).hexdigest()
            del record["blocks"]

    edit(root, change)


@pytest.mark.parametrize("verify", [True, False, "full", "sample", "header"])
def test_version_1_is_read_and_its_runs_go_on(own_tiny: Path, verify: Any) -> None:
    """Batches and identity are those that the code of version 1 gave."""
    as_version_1(own_tiny)
    config = ShardStreamConfig(path=str(own_tiny), seq_len=32, batch_size=4, verify=verify)
    stream = config.build("train", seed=0, rank=0, world=1)
    digest = hashlib.sha256()
    for batch in islice(stream, 9):
        digest.update(batch.inputs.numpy().tobytes())
    assert digest.hexdigest()[:12] == "c6577a0e56d2"
    assert stream.state_dict() == {
        "row": 36,
        "identity": "train b7058da5d4f2, seq_len 32, seed 0, {'code': 653, 'prose': 821}",
        "batch_size": 4,
    }


def test_damage_in_version_1_has_no_place(own_tiny: Path) -> None:
    as_version_1(own_tiny)
    flip(own_tiny)
    for verify in ("sample", "full"):
        with pytest.raises(ConfigError, match=r"sha256 is .*\(the file was changed\)"):
            TokenWindows(str(own_tiny), "train", ["code"], 16, verify=verify)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardInfo]:
    """A shard of 11 blocks."""
    root = tmp_path_factory.mktemp("large")
    tokens = np.arange(11 * BLOCK // 2 - 1000, dtype=np.uint32) % 259
    return root, write_shard(root / "s.bin", tokens, np.asarray([tokens.size]), BYTES)


def damage(path: Path, *places: int) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 64]))


def test_the_damaged_blocks_are_named(large: tuple[Path, ShardInfo], tmp_path: Path) -> None:
    root, record = large
    path = tmp_path / "s.bin"
    shutil.copy(root / "s.bin", path)
    open_shard(tmp_path, record, BYTES, verify="full")
    places = [3 * BLOCK, 5 * BLOCK - 1]
    damage(path, *places)
    with pytest.raises(ConfigError) as error:
        open_shard(tmp_path, record, BYTES, verify="full")
    assert f"damaged blocks 3 (bytes {3 * BLOCK} to {4 * BLOCK}), 4 (bytes" in str(error.value)
    assert damaged_blocks(record, np.fromfile(path, np.uint8)) == [3, 4]
    open_shard(tmp_path, record, BYTES, verify="header")
    damage(path, *places)
    open_shard(tmp_path, record, BYTES, verify="full")


def test_a_sample_of_blocks_finds_what_is_damaged_often(
    large: tuple[Path, ShardInfo], tmp_path: Path
) -> None:
    """A file with five of eleven blocks damaged cannot hide from eight."""
    root, record = large
    shutil.copy(root / "s.bin", tmp_path / "s.bin")
    open_shard(tmp_path, record, BYTES, verify="sample")
    damage(tmp_path / "s.bin", *(n * BLOCK + 9000 for n in range(0, 10, 2)))
    with pytest.raises(ConfigError, match="damaged block"):
        open_shard(tmp_path, record, BYTES, verify="sample")


def test_verify_reads_as_it_was_written() -> None:
    for value in (True, False, "full", "sample", "header"):
        data = {"kind": "shards", "path": "x", "verify": value}
        assert structure(StreamConfig, data).verify == value  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"verify: unknown .some.*Known: full, header, sample"):
        structure(StreamConfig, {"kind": "shards", "path": "x", "verify": "some"})
