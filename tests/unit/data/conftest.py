"""A tiny corpus of two domains and its shards, built once per test process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nl.data.documents import Document
from nl.data.files import sha256_text
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus


def tiny_works(domain: str, count: int) -> list[Work]:
    """Documents of different lengths, no two alike."""
    works = []
    for number in range(count):
        lines = [sha256_text(f"{domain} {number} {i}")[:40] for i in range(1 + number % 9)]
        text = f"{domain} {number}\n" + "\n".join(lines)
        works.append(Work((Document(text, f"{domain}:{number}"),)))
    return works


def build_tiny(root: Path, shard_tokens: int = 4000) -> Path:
    domains = {"code": tiny_works("code", 120), "prose": tiny_works("prose", 160)}
    write_corpus(root / "corpus", "tiny", domains, limit_bytes=10**9, recipe={"maker": "test"})
    shard_corpus(root / "corpus", "bytes", root, shard_tokens=shard_tokens)
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with byte tokens and several shards per domain. Read only."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_tiny(tiny: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny`` to damage."""
    shutil.copytree(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def naive_windows() -> Callable[[Path, str, str, int], list[list[int]]]:
    """Windows of one domain, cut by hand from the bytes of its documents."""
    from nl.data.manifest import data_tokenizer, documents, read_manifest

    def cut(root: Path, split: str, domain: str, seq_len: int) -> list[list[int]]:
        tokenizer = data_tokenizer(root)
        ids: list[int] = []
        for document in documents(root, split, domain):
            ids += [*tokenizer.encode(document.text), tokenizer.eos_id]
        windows, start = [], 0
        for shard in read_manifest(root).domain(split, domain, root).shards:
            part = ids[start : start + shard.tokens]
            start += shard.tokens
            last = len(part) - seq_len
            windows += [part[i : i + seq_len + 1] for i in range(0, last, seq_len)]
        assert start == len(ids)
        return windows

    return cut
