"""Sampling is by hash and bounded; training takes corpora and sources alike."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.prep.sources_spec import Source
from nl.data.prep.train_tokenizer import (
    Domain,
    TokenizerOptions,
    lowest,
    source_domains,
    train_on,
)
from nl.data.tokenizer import load_tokenizer


def naive(documents: list[Document], limit: int) -> list[str]:
    chosen = []
    for document in sorted(documents, key=lambda d: d.id):
        limit -= len(document.text.encode())
        if limit < 0:
            break
        chosen.append(document.text)
    return chosen


def test_lowest_hashes_are_chosen_whatever_the_order() -> None:
    for limit in (0, 1, 50, 400, 10**6):
        documents = [Document("x" * random.randint(1, 60) + str(i), "") for i in range(60)]
        expected = naive(documents, limit)
        for _ in range(4):
            random.shuffle(documents)
            assert lowest(documents, limit) == (expected, 60)


def test_memory_of_sampling_is_bounded() -> None:
    import tracemalloc

    def stream(count: int) -> int:
        tracemalloc.start()
        lowest((Document(f"{i} " + "y" * 10_000, "") for i in range(count)), 100_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert stream(2000) < 1.2 * stream(200)


def test_training_on_sources(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"text": f"{name} {topics[t]}"} for t in sorted(topics)[: 12 + (name == "b")]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    fields: dict[str, Any] = {"dataset": "json"}
    sources = [
        (Source(name=name, data_files=str(tmp_path / f"{name}.jsonl"), **fields), 10)
        for name in ("a", "b")
    ]
    options = TokenizerOptions(vocab_size=500, sample_mb=0.05)
    record, written = train_on(source_domains(sources), tmp_path, options, tmp_path / "log.json")
    assert written
    assert [row["read"] for row in record["datasets"]] == [10, 10]
    assert all(0 < row["bytes"] <= 25_000 for row in record["datasets"])
    assert json.loads((tmp_path / "log.json").read_text()) == record
    assert train_on(source_domains(sources), tmp_path, options, tmp_path / "log.json") == (
        record,
        False,
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": topics["assert"] * 3}) + "\n")
    assert train_on(source_domains(sources), tmp_path, options, tmp_path / "log.json")[1]


def test_a_place_that_cannot_be_written_is_refused_before_the_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = Source(name="d", dataset="json", data_files=str(tmp_path / "none.jsonl"))
    domain = Domain("d", lambda: pytest.fail("the text was read"), [asdict(source)])
    with pytest.raises(ConfigError, match="file is a file, not a directory"):
        train_on([domain], tmp_path / "file", TokenizerOptions(vocab_size=300))
    with pytest.raises(ConfigError, match="/dev/full: is no regular file"):
        train_on([domain], tmp_path, TokenizerOptions(vocab_size=300), Path("/dev/full"))


def test_soft_limit_of_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(["a b c"] * 50))
    source = Source(name="a", dataset="text", data_files=str(tmp_path / "a.txt"))
    with pytest.raises(ConfigError, match="--no-hard-vocab-limit"):
        train_on(source_domains([(source, 50)]), tmp_path, TokenizerOptions(vocab_size=500))
    soft = TokenizerOptions(vocab_size=500, hard_vocab_limit=False)
    train_on(source_domains([(source, 50)]), tmp_path, soft)
    assert 260 <= load_tokenizer(tmp_path / "tokenizer.model").vocab_size < 500
