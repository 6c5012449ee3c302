"""Splits by hash of the group; what leaks between them is measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nl.config import ConfigError
from nl.data.documents import SPLITS, Document, read_corpus, read_jsonl
from nl.data.prep import divide
from nl.data.prep.dedup_leak import leak
from nl.data.prep.dedup_signatures import jaccard, shingles
from nl.data.prep.divide import DivideOptions, divide_corpus, split_of
from nl.data.prep.engine import Executor
from tests.unit.data.prep.corpora import write_parts
from tests.unit.data.prep.test_dedup import changed, text_of

ONE = Executor()


def divided(root: Path) -> dict[str, list[Document]]:
    manifest = read_corpus(root)
    return {
        split: [
            document
            for files in manifest.splits[split].values()
            for file in files
            for document in read_jsonl(root / file.file)
        ]
        for split in SPLITS
    }


def pieces(count: int) -> list[Document]:
    return [
        Document(f"text {n} piece {p}", f"{n}", group=f"f{n}") for n in range(count) for p in "ab"
    ]


def test_groups_stay_together_and_nothing_is_lost(tmp_path: Path) -> None:
    singles = [Document(f"single {n}", f"s{n}") for n in range(200)]
    source = write_parts(tmp_path / "in", {"x": pieces(200), "y": singles}, per_part=64)
    log, _ = divide_corpus(source, tmp_path / "out", DivideOptions(val=0.2, test=0.1), ONE)
    assert log["counts"]["documents_in"] == log["counts"]["documents_out"] == 600
    splits = divided(tmp_path / "out")
    groups = {name: {d.group or d.text for d in found} for name, found in splits.items()}
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    for name, share in (("val", 0.2), ("test", 0.1)):
        error = math.sqrt(share * (1 - share) / 400)
        assert abs(len(groups[name]) / 400 - share) < 4 * error
    everything = sorted(d.text for found in splits.values() for d in found)
    assert everything == sorted(d.text for d in [*pieces(200), *singles])
    files = [f.file for f in read_corpus(tmp_path / "out").splits["val"]["x"]]
    assert files == sorted(files)
    with pytest.raises(ConfigError, match="has splits train, val, test; it is divided"):
        divide_corpus(tmp_path / "out", tmp_path / "again", DivideOptions(), ONE)


def test_a_document_stays_where_it_is() -> None:
    documents = [Document(f"text {n}", "s") for n in range(500)]
    before = {d.text: split_of(d, DivideOptions(val=0.1, test=0.1)) for d in documents}
    wider = {d.text: split_of(d, DivideOptions(val=0.3, test=0.1)) for d in documents}
    for text, split in before.items():
        assert wider[text] == split or (split, wider[text]) == ("train", "val")
    none = {split_of(d, DivideOptions(val=0, test=0)) for d in documents}
    assert none == {"train"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"val": -0.1}, "--val: -0.1; allowed: >= 0 and < 1"),
        ({"test": 1.0}, "--test: 1.0"),
        ({"val": 0.5, "test": 0.5}, "together below 1"),
        ({"apart": 1.1}, "--apart: 1.1; allowed: 0 to 1"),
    ],
)
def test_bad_shares(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DivideOptions(**fields)


def related() -> list[Document]:
    """In groups of their own: equal texts, near-duplicates, half quotations, passages."""
    documents = []
    for n in range(60):
        text = text_of(n, 120)
        documents.append(Document(text, f"t{n}", group=f"one{n}"))
        copy = {0: text, 1: changed(text, 0.04), 2: changed(text, 0.5)}.get(n % 6)
        if copy:
            documents.append(Document(copy, f"c{n}", group=f"two{n}"))
    for n in range(60, 72):
        text = text_of(n, 120)
        documents.append(Document(text, f"t{n}", group=f"one{n}"))
        documents.append(Document(" ".join(text.split()[30:90]), f"p{n}", group=f"two{n}"))
    short = [Document("too short", f"s{n}", group=f"s{n}") for n in range(9)]
    return [*documents, *short]


def contained(one: np.ndarray, other: np.ndarray) -> float:
    return len({*one.tolist()} & {*other.tolist()}) / max(1, len(one))


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])
def test_what_is_near_to_train_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(divide, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(divide, "TOGETHER", 3)
    source = write_parts(tmp_path / "in", {"x": related()[:50], "y": related()[50:]}, per_part=7)
    log, _ = divide_corpus(source, tmp_path / "out", DivideOptions(val=0.3, test=0.2), ONE)
    plain = DivideOptions(val=0.3, test=0.2, apart=0)
    divide_corpus(source, tmp_path / "plain", plain, ONE)
    left, before = divided(tmp_path / "out"), divided(tmp_path / "plain")
    assert left["train"] == before["train"]
    train = [shingles(d.text, 5) for d in left["train"]]
    texts = {d.text for d in left["train"]}
    for split in ("val", "test"):
        expected = [
            d
            for d in before[split]
            if d.text not in texts
            and max(contained(shingles(d.text, 5), other) for other in train) < 0.8
        ]
        assert left[split] == expected
        assert len(expected) < len(before[split])
        found = leak(tmp_path / "out", split)
        assert (found["exact"], found["near"], found["contained"]) == (0, 0, 0)
    counts = log["counts"]
    assert log["reasons"] == {"near_train": counts["documents_in"] - counts["documents_out"]}


def test_leaks_are_found_against_a_naive_search(tmp_path: Path) -> None:
    documents = related()
    source = write_parts(tmp_path / "in", {"x": documents})
    shares = DivideOptions(val=0.3, test=0.2, apart=0)
    divide_corpus(source, tmp_path / "out", shares, ONE)
    splits = divided(tmp_path / "out")
    train = [shingles(d.text, 5) for d in splits["train"]]
    texts = {d.text for d in splits["train"]}
    for split in ("val", "test"):
        best = [max(jaccard(shingles(d.text, 5), other) for other in train) for d in splits[split]]
        found = leak(tmp_path / "out", split, threshold=0.8)
        assert found["tested"] == found["held_out"] == len(splits[split])
        assert found["train"] == len(train)
        assert found["exact"] == sum(d.text in texts for d in splits[split]) > 0
        near = [b >= 0.8 or d.text in texts for b, d in zip(best, splits[split], strict=True)]
        assert found["near"] == sum(near) > found["exact"]
        assert found["highest"] == pytest.approx(max(best), abs=1e-4)
        assert found["nearest"][0]["held_out"][1:] == found["nearest"][0]["train"][1:]
    few = leak(tmp_path / "out", "val", limit=5)
    assert (few["tested"], few["held_out"]) == (5, len(splits["val"]))
