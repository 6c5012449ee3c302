"""The shard file: header, tokens, document ends, block digests; written once, read mapped. Floor 1.

Layout: 128 bytes of header; ``tokens`` ids (little-endian uint16 or uint32); zeros up to a
multiple of 64; ``documents`` uint64 ends (exclusive, in tokens, the EOS of each document included);
the SHA-256 of every 4 MiB block of all that. Format version 1 is the same without the digests.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError
from nl.data.documents import RECIPE
from nl.data.files import sha256_file, write_atomic
from nl.data.manifest import ShardInfo, TokenizerInfo

MAGIC = b"NLTOKENS"
VERSION = 2
"""The version that is written; 1 is read, too."""
HEADER = struct.Struct("<8sIIIIQQ32s")
HEADER_BYTES = 128
ALIGN = 64
BLOCK = 1 << 22
"""Bytes per digest. SHA-256, which processors compute themselves: 1.6 GB/s here, blake2b 0.9."""
DIGEST = 32
SAMPLE = 8
"""Blocks that ``verify=sample`` reads per shard; other ones in every process."""
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
Verify = bool | Literal["full", "sample", "header"]
"""How much of a shard is read when it is opened; True is full, False is header."""
Bytes = npt.NDArray[np.uint8]

_VERIFIED: dict[tuple[Path, bool], tuple[int, int, int, str]] = {}


@dataclass(frozen=True)
class Shard:
    """An open shard.

    Attributes:
        path: the file.
        tokens: (tokens,) uint16 or uint32, memory-mapped.
        ends: (documents,) uint64, exclusive end of each document in ``tokens``, memory-mapped.
    """

    path: Path
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.uint64]


def dtype_for(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The narrowest shard dtype that holds every id of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _ends_offset(tokens: int, itemsize: int) -> int:
    size = HEADER_BYTES + tokens * itemsize
    return size + -size % ALIGN


def _body_bytes(info: ShardInfo) -> int:
    """Bytes of a shard before its block digests."""
    return _ends_offset(info.tokens, DTYPES[info.dtype].itemsize) + 8 * info.documents


def file_bytes(info: ShardInfo) -> int:
    """Bytes that the file of a shard must have."""
    body = _body_bytes(info)
    return body + (DIGEST * -(-body // BLOCK) if info.blocks else 0)


def write_shard(
    path: Path, tokens: npt.NDArray[Any], ends: npt.NDArray[Any], tokenizer: TokenizerInfo
) -> ShardInfo:
    """Write one shard atomically; the returned record names the file without its directory.

    Args:
        path: the file.
        tokens: (tokens,) integer ids, EOS after each document.
        ends: (documents,) exclusive end of each document.
        tokenizer: what made the ids.

    Raises:
        ConfigError: an id outside the vocabulary, or an unwritable directory.
    """
    name = dtype_for(tokenizer.vocab_size)
    dtype = DTYPES[name]
    lowest, max_id = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    _check_vocab(path, lowest if lowest < 0 else max_id, tokenizer.vocab_size)
    header = HEADER.pack(
        MAGIC,
        VERSION,
        dtype.itemsize,
        tokenizer.vocab_size,
        max_id,
        tokens.size,
        ends.size,
        bytes.fromhex(tokenizer.sha256),
    )
    offset = _ends_offset(tokens.size, dtype.itemsize)
    body = offset + 8 * ends.size
    data: Bytes = np.empty(body + DIGEST * -(-body // BLOCK), np.uint8)
    data[: HEADER.size] = np.frombuffer(header, np.uint8)
    data[HEADER.size : HEADER_BYTES] = 0
    stop = HEADER_BYTES + tokens.size * dtype.itemsize
    data[HEADER_BYTES:stop].view(dtype)[:] = tokens
    data[stop:offset] = 0
    data[offset:body].view("<u8")[:] = ends
    table = b"".join(_digest(data[:body], n) for n in range(-(-body // BLOCK)))
    data[body:] = np.frombuffer(table, np.uint8)
    write_atomic(path, data.data)
    return ShardInfo(
        file=path.name,
        tokens=int(tokens.size),
        documents=int(ends.size),
        sha256=hashlib.sha256(data.data).hexdigest(),
        dtype=name,
        max_id=max_id,
        blocks=hashlib.sha256(table).hexdigest(),
    )


def _digest(body: Bytes, number: int) -> bytes:
    return hashlib.sha256(body[number * BLOCK : (number + 1) * BLOCK].data).digest()


def open_shard(root: Path, info: ShardInfo, tokenizer: TokenizerInfo, verify: Verify) -> Shard:
    """Map one shard and check it against the manifest.

    Args:
        root: data directory.
        info: its record in the manifest.
        tokenizer: the tokenizer of the manifest.
        verify: ``header`` (or False): sizes and header, as always. ``sample``: also the digests
            of ``SAMPLE`` blocks, drawn anew by every process; a shard of version 1, which has no
            such digests, is read whole. ``full`` (or True): also the SHA-256 of the file and
            every id. Done once per process for an unchanged file.

    Raises:
        ConfigError: naming the file: missing, truncated, changed (and in which blocks), of
            another tokenizer, not readable, or holding an id outside the vocabulary.
    """
    path = root / info.file
    if Path(info.file).is_absolute() or ".." in Path(info.file).parts:
        raise ConfigError(f"{root}: the manifest names {info.file!r}, outside of it. {RECIPE}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, but the manifest lists it. {RECIPE}")
    size, expected = path.stat().st_size, file_bytes(info)
    if size != expected:
        raise ConfigError(f"{path}: {size} bytes, expected {expected} (truncated?). {RECIPE}")
    try:
        _check_header(path, info, tokenizer)
        data: Bytes = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as error:
        many = error.errno == errno.ENOMEM
        hint = " More shards than this system maps at once (vm.max_map_count)?" if many else ""
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).{hint}") from error
    dtype = DTYPES[info.dtype]
    offset = _ends_offset(info.tokens, dtype.itemsize)
    shard = Shard(
        path=path,
        tokens=data[HEADER_BYTES : HEADER_BYTES + info.tokens * dtype.itemsize].view(dtype),
        ends=data[offset : offset + 8 * info.documents].view("<u8"),
    )
    if verify not in (False, "header"):
        _verify(shard, info, data, tokenizer.vocab_size, whole=verify != "sample")
    return shard


def release_pages(tokens: npt.NDArray[Any]) -> None:
    """Take the pages of a mapped shard out of this process's memory; they stay readable.

    What has been read once counts as this process's until the system wants it back: reading all of
    a directory would look as large as the directory.
    """
    base: Any = tokens
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _check_vocab(path: Path, found: int, vocab_size: int) -> None:
    if not 0 <= found < vocab_size:
        raise ConfigError(
            f"{path}: token id {found} is outside the vocabulary of {vocab_size}; "
            "shard the text again with the tokenizer of this directory."
        )


def _check_header(path: Path, info: ShardInfo, tokenizer: TokenizerInfo) -> None:
    with path.open("rb") as file:
        fields = HEADER.unpack(file.read(HEADER.size))
    magic, version, itemsize, vocab, max_id, tokens, ends, sha = fields
    wanted_version = VERSION if info.blocks else 1
    if magic != MAGIC or version != wanted_version:
        raise ConfigError(f"{path}: not a shard of format version {wanted_version}. {RECIPE}")
    found = (itemsize, vocab, max_id, tokens, ends)
    itemsize_expected = DTYPES[info.dtype].itemsize
    wanted = (itemsize_expected, tokenizer.vocab_size, info.max_id, info.tokens, info.documents)
    if found != wanted:
        raise ConfigError(
            f"{path}: header says (bytes per id, vocabulary, max id, tokens, documents) = "
            f"{found}, the manifest {wanted}. {RECIPE}"
        )
    if sha.hex() != tokenizer.sha256:
        raise ConfigError(
            f"{path}: made with tokenizer {sha.hex()[:12]}, the manifest names "
            f"{tokenizer.sha256[:12]}. {RECIPE}"
        )
    _check_vocab(path, max_id, vocab)


def _verify(shard: Shard, info: ShardInfo, data: Bytes, vocab_size: int, *, whole: bool) -> None:
    path = shard.path
    stat = path.stat()
    key = (stat.st_size, stat.st_mtime_ns, stat.st_ino, info.sha256)
    place = path.resolve()
    if key in (_VERIFIED.get((place, True)), _VERIFIED.get((place, whole))):
        return
    if not whole and info.blocks:
        blocks = -(-_body_bytes(info) // BLOCK)
        draw = np.random.default_rng().permutation(blocks)[:SAMPLE]  # a check, not part of a run
        bad = damaged_blocks(info, data, sorted(draw.tolist()))
        if bad:
            raise ConfigError(f"{path}: {_where(bad)} (the file was changed). {RECIPE}")
    else:
        digest = sha256_file(path)
        if digest != info.sha256:
            bad = damaged_blocks(info, data)
            raise ConfigError(
                f"{path}: sha256 is {digest[:12]}, the manifest says {info.sha256[:12]} "
                f"({_where(bad) if bad else 'the file was changed'}). {RECIPE}"
            )
        _check_vocab(path, int(shard.tokens.max()) if info.tokens else 0, vocab_size)
    _VERIFIED[place, whole or not info.blocks] = key


def damaged_blocks(info: ShardInfo, data: Bytes, blocks: list[int] | None = None) -> list[int]:
    """Numbers of the blocks whose digest is not the one in the file; -1: the digests themselves.

    Args:
        info: its record; nothing is found in a shard of version 1.
        data: all bytes of the file.
        blocks: which to look at (default: all).
    """
    if not info.blocks:
        return []
    body = _body_bytes(info)
    table = data[body:].tobytes()
    if hashlib.sha256(table).hexdigest() != info.blocks:
        return [-1]
    chosen = range(-(-body // BLOCK)) if blocks is None else blocks
    wanted = (table[DIGEST * n : DIGEST * (n + 1)] for n in chosen)
    return [n for n, want in zip(chosen, wanted, strict=True) if _digest(data[:body], n) != want]


def _where(bad: list[int]) -> str:
    if bad == [-1]:
        return "the table of block digests was changed"
    parts = [f"{n} (bytes {n * BLOCK} to {(n + 1) * BLOCK})" for n in bad[:4]]
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    return f"damaged block{'s' * (len(bad) > 1)} {', '.join(parts)}{more}"
