"""How many bytes of text each token stands for. Floor 1."""

from __future__ import annotations

import re

import numpy as np

from nl.data.order import Ints
from nl.data.tokenizer import SPACE_MARK, Tokenizer

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def token_bytes(tokenizer: Tokenizer) -> Ints:
    """(vocab,) Bytes of UTF-8 of every id; special tokens have none.

    Of bytes, SentencePiece and byte-level BPE they add up to the size of the text, wherever it is
    cut; of other kinds each token is decoded by itself.
    """
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    sizes = [0 if i in special else _size(tokenizer, i) for i in range(tokenizer.vocab_size)]
    return np.asarray(sizes, dtype=np.int64)


def _size(tokenizer: Tokenizer, index: int) -> int:
    piece = tokenizer.piece(index)
    if tokenizer.kind in ("bytes", "sentencepiece"):
        return 1 if BYTE.fullmatch(piece) else len(piece.replace(SPACE_MARK, " ").encode())
    inner = getattr(tokenizer, "inner", None)
    if type(getattr(inner, "decoder", None)).__name__ == "ByteLevel":
        return len(piece)  # one character of its alphabet per byte
    return len(tokenizer.decode([index]).encode())
