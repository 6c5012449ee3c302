"""Byte-level BPE: nothing is lost, the training split alone is read, the digest is repeatable."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.train_tokenizer import TokenizerOptions, train_tokenizer
from nl.data.token_bytes import token_bytes
from nl.data.tokenizer import load_tokenizer, losses


def corpus(root: Path) -> Path:
    works = [
        Work(
            (Document(f"def function_{n}(x):\n    return {n} * x  # caf\u00e9 {n}\n" * 5, str(n)),)
        )
        for n in range(80)
    ]
    write_corpus(root, "code", {"code": works}, limit_bytes=10**9, recipe={})
    return root


OPTIONS = TokenizerOptions(model_type="byte_bpe", vocab_size=320)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bpe")
    train_tokenizer(corpus(root / "corpus"), root, OPTIONS)
    return root


def test_every_byte_and_any_text_comes_back(made: Path) -> None:
    tokenizer = load_tokenizer(made / "tokenizer.json")
    assert tokenizer.vocab_size == 320
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    pieces = [tokenizer.piece(i) for i in range(3, 259)]
    assert len(set(pieces)) == 256
    assert all(len(piece) == 1 for piece in pieces)
    assert not losses(tokenizer)
    rng = random.Random(0)
    texts = [bytes([b]).decode("latin-1") for b in range(256)]
    for _ in range(300):
        codes = [rng.choice((rng.randrange(0x80), rng.randrange(0x110000))) for _ in range(30)]
        texts.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    texts += ["", " ", "  x", "\r\n", "<|eos|> is text", "a<|bos|>b"]
    sizes = token_bytes(tokenizer)
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())
        assert not {0, 1, 2} & set(ids)
    assert sizes[[0, 1, 2]].tolist() == [0, 0, 0]
    assert len(tokenizer.encode("def function_7(x):\n")) < len("def function_7(x):\n") / 2


def test_a_killed_training_is_done_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt(path, len(data))

    with monkeypatch.context() as patch:
        patch.setattr("nl.data.prep.train_tokenizer.write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(made / "corpus", tmp_path, OPTIONS)
    assert train_tokenizer(made / "corpus", tmp_path, OPTIONS)[1]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_held_out_text_is_not_read_and_the_digest_is_the_same(made: Path, tmp_path: Path) -> None:
    """Without the files of val and test; recorded, and not trained again."""
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    for split in ("val", "test"):
        shutil.rmtree(tmp_path / "corpus" / split)
    first, trained = train_tokenizer(tmp_path / "corpus", tmp_path, OPTIONS)
    assert trained
    before = json.loads((made / "tokenizer_log.json").read_text())
    assert first["sha256"] == before["sha256"] == load_tokenizer(made / "tokenizer.json").sha256
    assert before["model"] == "tokenizer.json"
    assert not train_tokenizer(tmp_path / "corpus", tmp_path, OPTIONS)[1]


def test_bytes_of_other_tokenizers(made: Path, tmp_path: Path) -> None:
    options = TokenizerOptions(vocab_size=340, hard_vocab_limit=False)
    train_tokenizer(made / "corpus", tmp_path, options)
    text = "def f(caf\u00e9):  # \U0001f600 \u2581 x\n"
    for tokenizer in (load_tokenizer(tmp_path / "tokenizer.model"), load_tokenizer("bytes")):
        assert token_bytes(tokenizer)[np.asarray(tokenizer.encode(text))].sum() == len(
            text.encode()
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"character_coverage": 0.9}, "--character-coverage: 0.9; --model-type byte_bpe does not"),
        ({"num_threads": 2}, "--num-threads: 2; --model-type byte_bpe does not"),
    ],
)
def test_options_that_it_does_not_use(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizerOptions(model_type="byte_bpe", **fields)


def test_a_vocabulary_that_the_text_does_not_fill(made: Path, tmp_path: Path) -> None:
    large = TokenizerOptions(model_type="byte_bpe", vocab_size=9000)
    with pytest.raises(ConfigError, match=r"--vocab-size: 9000; this sample has pairs for \d+ "):
        train_tokenizer(made / "corpus", tmp_path, large)
    soft = TokenizerOptions(model_type="byte_bpe", vocab_size=9000, hard_vocab_limit=False)
    train_tokenizer(made / "corpus", tmp_path, soft)
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size < 9000
