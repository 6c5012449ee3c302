"""The shard file: header, little-endian tokens, document ends; written once, read mapped. Floor 1.

Layout: 128 bytes of header; ``tokens`` ids (uint16 or uint32); zeros up to a multiple of 64;
``documents`` uint64 ends (exclusive, in tokens, the EOS of each document included).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError
from nl.data.documents import RECIPE
from nl.data.files import sha256_file, write_atomic
from nl.data.manifest import ShardInfo, TokenizerInfo

MAGIC = b"NLTOKENS"
VERSION = 1
HEADER = struct.Struct("<8sIIIIQQ32s")
HEADER_BYTES = 128
ALIGN = 64
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

_VERIFIED: dict[Path, tuple[int, int, int, str]] = {}


@dataclass(frozen=True)
class Shard:
    """An open shard.

    Attributes:
        path: the file.
        tokens: (tokens,) uint16 or uint32, memory-mapped.
        ends: (documents,) uint64, exclusive end of each document in ``tokens``.
    """

    path: Path
    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.uint64]


def dtype_for(vocab_size: int) -> str:
    """The narrowest shard dtype that holds every id of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _ends_offset(tokens: int, itemsize: int) -> int:
    size = HEADER_BYTES + tokens * itemsize
    return size + -size % ALIGN


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
    max_id = int(tokens.max()) if tokens.size else 0
    _check_vocab(path, max_id, tokenizer.vocab_size)
    header = HEADER.pack(
        MAGIC,
        VERSION,
        DTYPES[name].itemsize,
        tokenizer.vocab_size,
        max_id,
        tokens.size,
        ends.size,
        bytes.fromhex(tokenizer.sha256),
    )
    body = tokens.astype(DTYPES[name]).tobytes()
    gap = _ends_offset(tokens.size, DTYPES[name].itemsize) - HEADER_BYTES - len(body)
    data = header.ljust(HEADER_BYTES, b"\0") + body + bytes(gap) + ends.astype("<u8").tobytes()
    write_atomic(path, data)
    return ShardInfo(
        file=path.name,
        tokens=int(tokens.size),
        documents=int(ends.size),
        sha256=hashlib.sha256(data).hexdigest(),
        dtype="uint16" if name == "uint16" else "uint32",
        max_id=max_id,
    )


def open_shard(root: Path, info: ShardInfo, tokenizer: TokenizerInfo, verify: bool) -> Shard:
    """Map one shard and check it against the manifest.

    Args:
        root: data directory.
        info: its record in the manifest.
        tokenizer: the tokenizer of the manifest.
        verify: also compare the SHA-256 of the file and look at every id; once per process for
            an unchanged file. Sizes and header are always checked.

    Raises:
        ConfigError: naming the file: missing, truncated, changed, of another tokenizer, or
            holding an id outside the vocabulary.
    """
    path = root / info.file
    if Path(info.file).is_absolute() or ".." in Path(info.file).parts:
        raise ConfigError(f"{root}: the manifest names {info.file!r}, outside of it. {RECIPE}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, but the manifest lists it. {RECIPE}")
    dtype = DTYPES[info.dtype]
    offset = _ends_offset(info.tokens, dtype.itemsize)
    size, expected = path.stat().st_size, offset + 8 * info.documents
    if size != expected:
        raise ConfigError(f"{path}: {size} bytes, expected {expected} (truncated?). {RECIPE}")
    _check_header(path, info, tokenizer)
    tokens: npt.NDArray[Any] = np.empty(0, dtype)
    if info.tokens:
        tokens = np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(info.tokens,))
    if verify:
        _verify(path, info, tokens, tokenizer.vocab_size)
    with path.open("rb") as file:
        file.seek(offset)
        ends = np.frombuffer(file.read(8 * info.documents), dtype="<u8")
    return Shard(path=path, tokens=tokens, ends=ends)


def _check_vocab(path: Path, max_id: int, vocab_size: int) -> None:
    if max_id >= vocab_size:
        raise ConfigError(
            f"{path}: token id {max_id} is outside the vocabulary of {vocab_size}; "
            "shard the text again with the tokenizer of this directory."
        )


def _check_header(path: Path, info: ShardInfo, tokenizer: TokenizerInfo) -> None:
    with path.open("rb") as file:
        fields = HEADER.unpack(file.read(HEADER.size))
    magic, version, itemsize, vocab, max_id, tokens, ends, sha = fields
    if magic != MAGIC or version != VERSION:
        raise ConfigError(f"{path}: not a shard of format version {VERSION}. {RECIPE}")
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


def _verify(path: Path, info: ShardInfo, tokens: npt.NDArray[Any], vocab_size: int) -> None:
    stat = path.stat()
    key = (stat.st_size, stat.st_mtime_ns, stat.st_ino, info.sha256)
    if _VERIFIED.get(path.resolve()) == key:
        return
    digest = sha256_file(path)
    if digest != info.sha256:
        raise ConfigError(
            f"{path}: sha256 is {digest[:12]}, the manifest says {info.sha256[:12]} "
            f"(the file was changed). {RECIPE}"
        )
    _check_vocab(path, int(tokens.max()) if tokens.size else 0, vocab_size)
    _VERIFIED[path.resolve()] = key
