"""decode(encode(text)) == text, whatever the text; digests are checked."""

from __future__ import annotations

import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from nl.config import ConfigError
from nl.data.prep.train_tokenizer import TokenizerOptions, fit
from nl.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

SAMPLE = [topics[name] for name in sorted(topics)[:12]]
HARD = [
    "",
    " ",
    "   two  and   three ",
    "\n\n\t\r\n",
    "caf\u00e9 \u6f22\u5b57 \U0001f600 e\u0301",
    "\u2581 the mark itself \u2581\u2581",
    "<s></s><pad><unk><0x0A>",
    "\0 zero and \x7f",
    "    indented\n        twice",
    "\u00a0\u3000\ufeff",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    path.write_bytes(fit(SAMPLE, TokenizerOptions(vocab_size=600)))
    return path


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, model: Path) -> Tokenizer:
    return load_tokenizer("bytes" if request.param == "bytes" else model)


def random_texts(count: int) -> list[str]:
    pools = ["ab \n", " \u2581<>/s", "".join(map(chr, range(1, 0x300))), "\u6f22\U0001f600\u0301x "]
    return ["".join(random.choices(random.choice(pools), k=40)) for _ in range(count)]


def test_round_trip(tokenizer: Tokenizer) -> None:
    texts = HARD + SAMPLE[:3] + random_texts(300)
    rows = tokenizer.encode(texts)
    for text, ids in zip(texts, rows, strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    specials = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert len(specials) == 3
    assert not specials.intersection(i for ids in rows for i in ids)


def test_special_tokens_are_silent(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("a b"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "a b"
    assert tokenizer.decode([]) == ""


def test_pieces_of_a_text_decode_to_its_parts(tokenizer: Tokenizer) -> None:
    """No piece is hidden or added at the start: a continuation keeps its leading blank."""
    ids = tokenizer.encode("The area of it")
    parts = [tokenizer.decode(ids[:2]), tokenizer.decode(ids[2:])]
    assert "".join(parts) == "The area of it"


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside_the_vocabulary(tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(ValueError, match=f"token id {bad} is outside"):
        tokenizer.decode([1, bad])


def test_pieces_are_shorter_than_bytes(model: Path) -> None:
    text = "\n".join(SAMPLE)
    pieces = load_tokenizer(model)
    assert pieces.vocab_size == 600
    assert len(pieces.encode(text)) < 0.5 * len(ByteTokenizer().encode(text))
    assert len(pieces.encode("        ")) <= 4, "a run of blanks can be one piece"


def test_digest_is_checked(model: Path) -> None:
    digest = load_tokenizer(model).sha256
    assert load_tokenizer(model, sha256=digest).sha256 == digest
    with pytest.raises(ConfigError, match=r"tokenizer.model: tokenizer sha256 is .* expected 0000"):
        load_tokenizer(model, sha256="0" * 64)
    with pytest.raises(ConfigError, match="bytes: tokenizer sha256"):
        load_tokenizer("bytes", sha256=digest)


def test_bad_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"none.model: no such file.*train_tokenizer.py"):
        load_tokenizer(tmp_path / "none.model")
    with pytest.raises(ConfigError, match=r"is a directory; name the tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "text.model").write_text("this is no model")
    with pytest.raises(ConfigError, match=r"text.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "text.model")
    capfd.readouterr()
