"""No text in two splits, none twice; what is written depends on nothing but the input."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from nl.config import ConfigError
from nl.data.documents import SPLITS, Document, read_corpus, read_jsonl, total_documents
from nl.data.files import sha256_file
from nl.data.prep.corpus import Work, limited, split_of, write_corpus


def works(count: int, pieces: int = 2) -> list[Work]:
    return [
        Work(tuple(Document(f"text {i} piece {p}", f"{i}") for p in range(pieces)))
        for i in range(count)
    ]


def write(root: Path, domains: dict[str, list[Work]], limit: int = 10**9) -> dict[str, set[str]]:
    manifest = write_corpus(root, "t", domains, limit_bytes=limit, recipe={"a": "b"})
    texts: dict[str, set[str]] = {}
    for split in SPLITS:
        found = [
            document.text
            for domain in domains
            for document in read_jsonl(root / manifest.splits[split][domain][0].file)
        ]
        assert len(found) == len(set(found))
        texts[split] = set(found)
    return texts


def test_splits_are_disjoint_and_pieces_stay_together(tmp_path: Path) -> None:
    texts = write(tmp_path, {"one": works(400)})
    for a, b in itertools.combinations(SPLITS, 2):
        assert not {t.split(" piece")[0] for t in texts[a]} & {
            t.split(" piece")[0] for t in texts[b]
        }
    assert set.union(*texts.values()) == {d.text for w in works(400) for d in w.documents}
    assert 0.74 < len(texts["train"]) / 800 < 0.86
    assert min(len(texts["val"]), len(texts["test"])) > 0.05 * 800


def test_exact_duplicates_go_within_and_across_domains(tmp_path: Path) -> None:
    twice = [*works(30), *works(30)]
    texts = write(tmp_path, {"one": twice, "two": works(35)})
    assert sum(map(len, texts.values())) == 70
    manifest = read_corpus(tmp_path)
    assert sum(total_documents(manifest.splits[s]["two"]) for s in SPLITS) == 10


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"one": works(50), "two": works(60, pieces=1)})
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.json*"))
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_manifest_says_what_the_files_hold(tmp_path: Path) -> None:
    write(tmp_path, {"one": works(50)})
    manifest = read_corpus(tmp_path)
    for split in SPLITS:
        (info,) = manifest.splits[split]["one"]
        rows = list(read_jsonl(tmp_path / info.file))
        assert info.documents == len(rows)
        assert info.bytes == sum(len(d.text.encode()) for d in rows)
        assert info.sha256 == sha256_file(tmp_path / info.file)


def test_limit_keeps_a_part_that_does_not_depend_on_order(tmp_path: Path) -> None:
    every = works(100)
    kept = limited(every, 1000)
    assert 900 < sum(w.bytes for w in kept) <= 1000
    assert {w.key for w in limited(every[::-1], 1000)} == {w.key for w in kept}
    assert [w.key for w in kept] == [w.key for w in every if w in kept]
    assert {w.key for w in limited(every, 500)} < {w.key for w in kept}
    texts = write(tmp_path, {"one": every}, limit=1000)
    assert sum(map(len, texts.values())) == 2 * len(kept)


def test_split_of_a_digest() -> None:
    shares = {"train": 0, "val": 0, "test": 0}
    for place in range(100):
        shares[split_of(f"{place:016x}")] += 1
    assert shares == {"train": 80, "val": 10, "test": 10}


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"one": works(20)})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.json*")}

    def fail(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nl.data.prep.corpus.sha256_file", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, {"one": works(40)})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.json*")} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/corpus: cannot be written"):
        write_corpus(tmp_path / "file" / "corpus", "t", {}, limit_bytes=1, recipe={})
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 - names only
