"""The raw text behind the shards, and files that are whole or absent."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from nl.config import ConfigError
from nl.data.documents import Document, encode_jsonl, read_corpus, read_jsonl
from nl.data.files import sha256_text, staging, write_atomic
from nl.data.manifest import data_tokenizer, documents, read_manifest
from nl.data.shards import open_shard
from nl.data.unigram import unigram_losses


def test_documents_are_what_the_shards_hold(tiny: Path) -> None:
    info = read_manifest(tiny)
    tokenizer = data_tokenizer(tiny)
    for split, domains in info.splits.items():
        for name, domain in domains.items():
            texts = [d.text for d in documents(tiny, split, name)]
            assert len(texts) == domain.documents
            assert sum(len(t.encode()) for t in texts) == domain.bytes
            found = []
            for record in domain.shards:
                shard = open_shard(tiny, record, info.tokenizer, verify=True)
                bounds = [0, *shard.ends.tolist()]
                for a, b in itertools.pairwise(bounds):
                    found.append(tokenizer.decode(shard.tokens[a:b].tolist()))
            assert found == texts


def test_changed_text_is_refused(own_tiny: Path) -> None:
    file = own_tiny / "corpus/val/code.jsonl"
    file.write_text(file.read_text().replace("code", "node"))
    with pytest.raises(ConfigError, match=r"code.jsonl: its sha256 is not the manifest's"):
        documents(own_tiny, "val", "code")
    assert "node" in next(documents(own_tiny, "val", "code", verify=False)).text
    file.unlink()
    with pytest.raises(ConfigError, match=r"code.jsonl: no such file"):
        next(documents(own_tiny, "val", "code"))
    with pytest.raises(ConfigError, match="no split 'dev'"):
        documents(own_tiny, "dev", "code")


def test_several_files_of_a_domain_and_manifests_of_schema_1(own_tiny: Path) -> None:
    path = own_tiny / "manifest.json"
    data = json.loads(path.read_text())
    before = [d.text for d in documents(own_tiny, "val", "code")]
    domain = data["splits"]["val"]["code"]
    (text,) = domain["texts"]
    domain["texts"] = [text, text]
    path.write_text(json.dumps(data))
    assert [d.text for d in documents(own_tiny, "val", "code")] == before * 2
    domain["texts"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="the text of 'code' is not here"):
        documents(own_tiny, "val", "code")
    del domain["texts"]
    domain["text"] = text
    path.write_text(json.dumps(data | {"schema": 1}))
    assert [d.text for d in documents(own_tiny, "val", "code")] == before


def test_a_corpus_of_schema_1(own_tiny: Path) -> None:
    path = own_tiny / "corpus/manifest.json"
    now = read_corpus(own_tiny / "corpus")
    data = json.loads(path.read_text())
    for domains in data["splits"].values():
        domains.update({name: files[0] for name, files in domains.items()})
    path.write_text(json.dumps(data | {"schema": 1}))
    assert read_corpus(own_tiny / "corpus") == now


def test_compressed_files_and_torn_ones(tmp_path: Path) -> None:
    rows = [Document(f"line {i}\n" * 200, f"s{i}") for i in range(50)]
    raw = encode_jsonl(rows)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(raw))
    for name in ("d.jsonl.gz", "d.jsonl.zst"):
        assert list(read_jsonl(tmp_path / name)) == rows
    whole = (tmp_path / "d.jsonl.gz").read_bytes()
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"d.jsonl.gz: not readable after line \d+"):
        list(read_jsonl(tmp_path / "d.jsonl.gz"))
    (tmp_path / "d.jsonl.zst").write_bytes(b"no zstandard frame")
    with pytest.raises(ConfigError, match=r"d.jsonl.zst: not readable after line 0"):
        list(read_jsonl(tmp_path / "d.jsonl.zst"))


def test_jsonl_round_trip(tmp_path: Path) -> None:
    rows = [Document("a\u2028b\n\u00e9", "x"), Document("", "y")]
    (tmp_path / "d.jsonl").write_bytes(encode_jsonl(rows))
    assert list(read_jsonl(tmp_path / "d.jsonl")) == rows
    assert rows[0].id == sha256_text("a\u2028b\n\u00e9")


@pytest.mark.parametrize("line", ["{", "[]", '{"texts": "a"}', '{"text": 3}', "7"])
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"d.jsonl, line 2"):
        list(read_jsonl(tmp_path / "d.jsonl"))


def test_corpus_of_another_schema(own_tiny: Path) -> None:
    path = own_tiny / "corpus/manifest.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(ConfigError, match="schema 3; this version reads schema 2"):
        read_corpus(own_tiny / "corpus")


def test_unigram_losses_against_a_count_by_hand(tiny: Path) -> None:
    tokenizer = data_tokenizer(tiny)

    def ids(split: str, domain: str) -> list[int]:
        texts = [d.text for d in documents(tiny, split, domain)]
        return [i for row in tokenizer.encode(texts) for i in [*row, tokenizer.eos_id]]

    train = {d: ids("train", d) for d in ("code", "prose")}
    for domain, loss in unigram_losses(tiny, "val").items():
        held_out = ids("val", domain)
        for tokens, value in (
            (train["code"] + train["prose"], loss.pooled),
            (train[domain], loss.own),
        ):
            p = (np.bincount(tokens, minlength=259) + 1) / (len(tokens) + 259)
            assert value == pytest.approx(-np.mean(np.log(p[held_out])), rel=1e-12)
        assert loss.tokens == len(held_out)
        assert 0 < loss.own < np.log(259)


def test_atomic_write_leaves_nothing_behind(tmp_path: Path) -> None:
    write_atomic(tmp_path / "sub/a.txt", b"one")
    write_atomic(tmp_path / "sub/a.txt", b"two")
    assert (tmp_path / "sub/a.txt").read_bytes() == b"two"
    (tmp_path / "sub/taken").mkdir()
    with pytest.raises(ConfigError, match="taken: is no regular file"):
        write_atomic(tmp_path / "sub/taken", b"x")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="file/d: cannot be written"),
        staging(tmp_path / "file/d"),
    ):
        pass
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["a.txt", "taken"]
