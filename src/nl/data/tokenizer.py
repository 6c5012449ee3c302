"""Text <-> token ids behind one interface: SentencePiece, tokenizer.json or bytes. Floor 1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, overload

from nl.config import ConfigError
from nl.data.files import sha256_file, write_atomic
from nl.data.tokenizer_hf import FILE as HF_FILE
from nl.data.tokenizer_hf import load_hf, save_hf

SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character, so the character itself goes as bytes."""
PROBES = (
    " two  blanks ",
    "line\n\n\tindented\r\n",
    "caf\u00e9 e\u0301 \u6f22\u5b57 \U0001f600",
    "\ufb01 \u2460 \u00a0\u3000 \u2581",
    "<s></s><pad><unk><|endoftext|>[SEP]",
    "\x00\x7f\ufeff",
    "It's 1234567 don't",
)
"""Texts that a lossy tokenizer changes: blanks, lines, composed forms, names of tokens."""


class Tokenizer(Protocol):
    """What turns text into ids and back.

    Bytes and SentencePiece models that were trained here are lossless: ``decode(encode(text)) ==
    text`` for every text that UTF-8 can hold. Others may not be; ``losses`` says on which texts.
    """

    kind: str
    vocab_size: int
    eos_id: int
    bos_id: int
    pad_id: int
    sha256: str

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def piece(self, index: int) -> str: ...


class ByteTokenizer:
    """One token per UTF-8 byte; pad, bos and eos follow the 256 bytes."""

    kind = "bytes"
    vocab_size = 259
    pad_id, bos_id, eos_id = 256, 257, 258
    sha256 = hashlib.sha256(b"nl bytes 259").hexdigest()

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Ids of one text, or of each text of a list; no special tokens are added."""
        if isinstance(text, str):
            return list(text.encode())
        return [list(t.encode()) for t in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens are silent, broken UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(ids, self.vocab_size)
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def piece(self, index: int) -> str:
        """The name of an id: ``<0x41>``, or that of a special token."""
        special = {self.pad_id: "<pad>", self.bos_id: "<s>", self.eos_id: "</s>"}
        return special.get(index, f"<0x{index:02X}>")


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback."""

    kind = "sentencepiece"

    def __init__(self, processor: Any, sha256: str) -> None:
        self.processor = processor
        self.sha256 = sha256
        self.vocab_size = int(processor.get_piece_size())
        self.eos_id = int(processor.eos_id())
        self.bos_id = int(processor.bos_id())
        self.pad_id = int(processor.pad_id())
        self._unknown = int(processor.unk_id())  # in no text: it is spelled in bytes
        self._mark = [int(processor.piece_to_id(f"<0x{b:02X}>")) for b in SPACE_MARK.encode()]

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Ids of one text, or of each text of a list (faster); no special tokens are added."""
        if isinstance(text, str):
            return self.encode([text])[0]
        rows: list[list[int]] = self.processor.encode(text, num_threads=1)
        for i, t in enumerate(text):
            if SPACE_MARK in t:
                rows[i] = self._encode_marked(t)
        return rows

    def _encode_marked(self, text: str) -> list[int]:
        parts: list[list[int]] = self.processor.encode(text.split(SPACE_MARK), num_threads=1)
        ids = parts[0]
        for part in parts[1:]:
            ids = ids + self._mark + part
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens are silent.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(ids, self.vocab_size)
        return str(self.processor.decode([int(i) for i in ids if i != self._unknown]))

    def piece(self, index: int) -> str:
        """The piece of an id, blanks written as the mark."""
        return str(self.processor.id_to_piece(int(index)))


def _check_ids(ids: Sequence[int], vocab_size: int) -> None:
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocab_size):
        bad = next(int(i) for i in ids if not 0 <= i < vocab_size)
        raise ValueError(f"token id {bad} is outside the vocabulary of {vocab_size}")


def load_tokenizer(path: str | Path, sha256: str | None = None) -> Tokenizer:
    """Load ``bytes``, a SentencePiece ``.model`` or a ``tokenizer.json``.

    Args:
        path: the word ``bytes``, or a file; what ends in ``.json`` is of the `tokenizers` package.
        sha256: the digest the tokenizer must have, if known.

    Raises:
        ConfigError: no such file, not a tokenizer, special tokens missing, or another digest.
    """
    tokenizer = _load(Path(path))
    if sha256 is not None and tokenizer.sha256 != sha256:
        raise ConfigError(
            f"{path}: tokenizer sha256 is {tokenizer.sha256[:12]}, expected {sha256[:12]}; "
            "use the tokenizer the data was made with, or shard the data again."
        )
    return tokenizer


def losses(tokenizer: Tokenizer) -> list[str]:
    """The texts of ``PROBES`` that do not come back as they were."""
    return [t for t in PROBES if tokenizer.decode(tokenizer.encode(t)) != t]


def tokenizer_file(tokenizer: Tokenizer) -> str | None:
    """Name of the tokenizer's file in a data directory; None for bytes, which have none."""
    return {"sentencepiece": "tokenizer.model", "hf": HF_FILE}.get(tokenizer.kind)


def copy_tokenizer(path: str | Path, output: Path) -> None:
    """Put a tokenizer into a data directory, with all that ``load_tokenizer`` needs there."""
    name = tokenizer_file(load_tokenizer(path))
    if name is None or ((output / name).exists() and Path(path).samefile(output / name)):
        return
    write_atomic(output / name, Path(path).read_bytes())
    if name == HF_FILE:
        save_hf(Path(path), output)


def _load(path: Path) -> Tokenizer:
    if str(path) == "bytes":
        return ByteTokenizer()
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name the tokenizer.json or .model in it.")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file. Train a tokenizer with scripts/data/train_tokenizer.py."
        )
    return load_hf(path) if path.suffix == ".json" else _load_sentencepiece(path)


def _load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError as error:
        raise ConfigError(f"{path}: not a SentencePiece model.") from error
    tokenizer = SentencePieceTokenizer(processor, sha256_file(path))
    if min(tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) < 0:
        raise ConfigError(f"{path}: needs pad, bos and eos pieces; train it with pad_id=0.")
    return tokenizer
