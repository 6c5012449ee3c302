"""Training and sharding: repeatable, nothing done twice, bad inputs named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from nl.config import ConfigError
from nl.data.documents import Document, read_jsonl
from nl.data.files import sha256_file
from nl.data.manifest import data_tokenizer, documents, read_manifest
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus
from nl.data.prep.train_tokenizer import (
    MAX_SENTENCE,
    TokenizerOptions,
    sample,
    sentences_of,
    train_tokenizer,
)
from tests.unit.data.prep.corpora import write_parts

OPTIONS = TokenizerOptions(vocab_size=500, sample_mb=0.1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("topics")
    works = [Work((Document(topics[name], name),)) for name in sorted(topics)]
    domains = {"a": works[::2], "b": works[1::2]}
    write_corpus(root, "topics", domains, limit_bytes=10**9, recipe={})
    return root


def test_train_then_shard_then_nothing_to_do(corpus: Path, tmp_path: Path) -> None:
    record, written = train_tokenizer(corpus, tmp_path, OPTIONS)
    model = tmp_path / "tokenizer.model"
    assert written
    assert record["sha256"] == sha256_file(model)
    assert record["options"]["num_threads"] == 1
    assert 50_000 < record["sample_bytes"] <= 100_000
    assert train_tokenizer(corpus, tmp_path, OPTIONS) == (record, False)
    again, _ = train_tokenizer(corpus, tmp_path / "again", OPTIONS)
    assert again["sha256"] == record["sha256"], "the same inputs give the same model"
    (tmp_path / "again" / "tokenizer_log.json").write_text('{"options"')
    assert train_tokenizer(corpus, tmp_path / "again", OPTIONS)[1], "a torn record is none"

    manifest, written = shard_corpus(corpus, str(model), tmp_path / "data", shard_tokens=9000)
    assert written
    assert manifest == read_manifest(tmp_path / "data")
    tokenizer = data_tokenizer(tmp_path / "data")
    assert (tokenizer.vocab_size, tokenizer.sha256) == (500, record["sha256"])
    counted = sum(
        len(ids) + 1
        for ids in tokenizer.encode([d.text for d in documents(tmp_path / "data", "train", "a")])
    )
    assert manifest.splits["train"]["a"].tokens == counted
    assert len(manifest.splits["train"]["a"].shards) > 1
    before = sha256_file(tmp_path / "data/manifest.json")
    assert shard_corpus(corpus, str(model), tmp_path / "data", shard_tokens=9000) == (
        manifest,
        False,
    )
    shard = tmp_path / "data" / manifest.splits["val"]["b"].shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard_corpus(corpus, str(model), tmp_path / "data", shard_tokens=9000) == (
        manifest,
        True,
    )
    assert sha256_file(tmp_path / "data/manifest.json") == before
    assert shard_corpus(corpus, str(model), tmp_path / "data")[1], "other settings, other shards"


def test_training_sees_the_train_split_only(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    for split in ("val", "test"):
        shutil.rmtree(copy / split)
    assert train_tokenizer(copy, tmp_path, OPTIONS)[1]


def test_a_model_of_another_origin_is_not_replaced(corpus: Path, tmp_path: Path) -> None:
    model, log = tmp_path / "tokenizer.model", tmp_path / "tokenizer_log.json"
    model.write_bytes(b"somebody's work")
    with pytest.raises(ConfigError, match=r"tokenizer\.model: is there and .*_log\.json does not"):
        train_tokenizer(corpus, tmp_path, OPTIONS)
    assert model.read_bytes() == b"somebody's work"
    assert not log.exists()
    model.unlink()
    assert train_tokenizer(corpus, tmp_path, OPTIONS)[1]
    changed = model.read_bytes() + b"\n"
    model.write_bytes(changed)
    with pytest.raises(ConfigError, match="move it away"):
        train_tokenizer(corpus, tmp_path, OPTIONS)
    assert model.read_bytes() == changed


def test_sample_takes_whole_documents_equally_from_each_domain(corpus: Path) -> None:
    paths = [corpus / "train/a.jsonl", corpus / "train/b.jsonl"]
    texts = ["".join(sentences_of(d.text)) for p in paths for d in read_jsonl(p)]
    got = "".join(sample([[p] for p in paths], 60_000))
    assert 20_000 < len(got.encode()) <= 60_000
    rest = got
    for text in texts:
        rest = rest.replace(text, "")
    assert rest == ""


def test_sentences_join_to_the_text() -> None:
    text = "short\n" + "\u6f22" * 5000 + "\n\n" + "line of it\n" * 900 + "end"
    sentences = list(sentences_of(text))
    assert "".join(sentences) == text
    assert max(len(s.encode()) for s in sentences) <= MAX_SENTENCE
    assert all(s for s in sentences)
    assert list(sentences_of("")) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 10}, "--vocab-size: 10; allowed: 260"),
        ({"model_type": "wordy"}, "--model-type: wordy; allowed: unigram, bpe, byte_bpe"),
        ({"character_coverage": 0.0}, "--character-coverage: 0.0"),
        ({"sample_mb": 0.0}, "--sample-mb: 0.0"),
        ({"num_threads": 0}, "--num-threads: 0"),
    ],
)
def test_bad_options(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizerOptions(**fields)  # type: ignore[arg-type]


def test_bad_inputs(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--vocab-size: 60000 cannot be trained on this sample"):
        train_tokenizer(corpus, tmp_path, TokenizerOptions(vocab_size=60_000, sample_mb=0.05))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"none/manifest.json: no such file"):
        shard_corpus(tmp_path / "none", "bytes", tmp_path)
    with pytest.raises(
        ConfigError, match=r"filter_corpus.py --dataset .* --output-path"
    ) as missing:
        shard_corpus(tmp_path / "none", "bytes", tmp_path)
    assert "shard_corpus.py" not in str(missing.value), "the command that has just failed"
    empty = write_parts(tmp_path / "empty", {"x": []})
    with pytest.raises(ConfigError, match=r"empty: holds no document"):
        shard_corpus(empty, "bytes", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"x.model: no such file"):
        shard_corpus(corpus, str(tmp_path / "x.model"), tmp_path)
    with pytest.raises(ConfigError, match="--shard-tokens: 0"):
        shard_corpus(corpus, "bytes", tmp_path, shard_tokens=0)


def test_changed_text_is_not_sharded(own_tiny: Path, tmp_path: Path) -> None:
    file = own_tiny / "corpus/test/prose.jsonl"
    with file.open("a") as stream:
        stream.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(ConfigError, match=r"prose.jsonl: sha256 differs"):
        shard_corpus(own_tiny / "corpus", "bytes", tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!.]*"))
    file.unlink()
    with pytest.raises(ConfigError, match=r"prose.jsonl: no such file"):
        shard_corpus(own_tiny / "corpus", "bytes", tmp_path / "out")
