"""Tokenizers of the `tokenizers` package: a ``tokenizer.json`` and its special tokens. Floor 1."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from nl.config import ConfigError
from nl.data.files import read_json, sha256_file, write_json

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ROLES = {
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]"),
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<|endoftext|>", "[CLS]"),
    "pad": ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]", "<|endoftext|>"),
}
"""Names that special tokens have where ``tokenizer_config.json`` does not say."""


class HFTokenizer:
    """A ``tokenizer.json``; names of special tokens inside a text are text."""

    kind = "hf"

    def __init__(self, inner: Any, sha256: str, special: dict[str, str]) -> None:
        self.inner = inner
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self.sha256 = sha256
        self.special = special
        self.vocab_size = int(inner.get_vocab_size(with_added_tokens=True))
        self.eos_id = int(inner.token_to_id(special["eos"]))
        self.bos_id = int(inner.token_to_id(special["bos"]))
        self.pad_id = int(inner.token_to_id(special["pad"]))

    @property
    def template_prefix(self) -> tuple[int, ...]:
        """Special tokens that the file's own template puts in front of a text."""
        plain = self.inner.encode("a", add_special_tokens=False).ids
        whole = self.inner.encode("a", add_special_tokens=True).ids
        cuts = range(len(whole) - len(plain) + 1)
        at = next((i for i in cuts if whole[i : i + len(plain)] == plain), 0)
        return tuple(whole[:at])

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Ids of one text, or of each text of a list (faster); no special tokens are added."""
        if isinstance(text, str):
            return list(self.inner.encode(text, add_special_tokens=False).ids)
        rows = self.inner.encode_batch_fast(text, add_special_tokens=False)
        return [list(row.ids) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens are silent.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        plain = [int(i) for i in ids]
        bad = [i for i in plain if not 0 <= i < self.vocab_size]
        if bad:
            raise ValueError(f"token id {bad[0]} is outside the vocabulary of {self.vocab_size}")
        return str(self.inner.decode(plain, skip_special_tokens=True))

    def piece(self, index: int) -> str:
        """The token of an id, as the file has it."""
        return str(self.inner.id_to_token(index))


def load_hf(path: Path) -> HFTokenizer:
    """Load a ``tokenizer.json``; special tokens are those of ``tokenizer_config.json`` beside it.

    Raises:
        ConfigError: the package is missing, the file is none, or bos, eos or pad is not known.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            f"{path}: needs the package tokenizers; install it with: uv sync --extra hf"
        ) from error
    # Its own threads would compete with the workers of a stage, and warn after a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Looked at first, because the package raises nothing more precise than Exception.
    data = read_json(path, "Name a tokenizer.json.")
    if not (isinstance(data, dict) and isinstance(data.get("model"), dict)):
        raise ConfigError(f"{path}: not a tokenizer.json; it has no 'model'.")
    inner = tokenizers.Tokenizer.from_str(json.dumps(data))
    return HFTokenizer(inner, sha256_file(path), _special(path, inner))


def _special(path: Path, inner: Any) -> dict[str, str]:
    named = _configured(path.with_name(CONFIG))
    found, missing = {}, dict[str, str]()
    for role, usual in ROLES.items():
        names = [named[role]] if role in named else usual
        known = [name for name in names if inner.token_to_id(name) is not None]
        if known:
            found[role] = known[0]
        else:
            said = f" ({named[role]!r} is not in its vocabulary)" if role in named else ""
            missing[f"{role}_token"] = said
    if missing:
        wanted = ", ".join(role + said for role, said in missing.items())
        example = json.dumps(dict.fromkeys(missing, "<a token of its vocabulary>"))
        raise ConfigError(
            f"{path}: no {wanted} known; name them in {path.with_name(CONFIG)}: "
            f"{example}. One token may have several roles."
        )
    return found


def _configured(path: Path) -> dict[str, str]:
    """Special tokens of a ``tokenizer_config.json``, if there is one."""
    if not path.is_file():
        return {}
    data = read_json(path, "It stands beside tokenizer.json.")
    rows = {role: data.get(f"{role}_token") for role in ROLES} if isinstance(data, dict) else {}
    texts = {
        role: row.get("content") if isinstance(row, dict) else row for role, row in rows.items()
    }
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def save_hf(source: Path, output: Path) -> None:
    """Copy a ``tokenizer.json`` and write the special tokens that were found beside it."""
    special = load_hf(source).special
    write_json(output / CONFIG, {f"{role}_token": name for role, name in special.items()})
