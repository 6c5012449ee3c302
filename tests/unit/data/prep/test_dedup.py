"""Signatures estimate similarity, joins find what naive search finds, the first text stays."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus, read_jsonl
from nl.data.prep import dedup
from nl.data.prep.dedup import DedupOptions, dedup_corpus, dry_run
from nl.data.prep.dedup_join import components, components_reference, decide, equal_pairs
from nl.data.prep.dedup_signatures import (
    MinHash,
    band_keys,
    jaccard,
    shingles,
    text_key,
    write_tables,
)
from nl.data.prep.engine import Executor
from tests.unit.data.prep.corpora import contents, write_parts

ONE = Executor()
WORDS = [f"w{n}" for n in range(5000)]


def text_of(seed: int, count: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count)) + ".\n"


def changed(text: str, share: float) -> str:
    """The last ``share`` of its words are others."""
    words = text.split()
    keep = round(len(words) * (1 - share))
    return " ".join([*words[:keep], *(w + "x" for w in words[keep:])]) + ".\n"


def test_shingles_ignore_case_and_punctuation_only() -> None:
    one = shingles("The quick brown fox, jumps over", 5)
    assert np.array_equal(one, shingles("the QUICK brown\n\nfox jumps -- over!", 5))
    assert len(one) == 2
    assert len(shingles("one two three four", 5)) == 0
    assert len(shingles("a b c d e " * 50, 5)) == 5, "a set"
    assert not np.array_equal(one, shingles("over jumps fox brown quick the", 5))
    assert len(shingles("\u6211\u4eec\u4eca\u5929\u53bb\u516c\u56ed", 5)) == 3
    assert len(shingles("caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u00e9t\u00e9", 5)) == 1


def test_jaccard_against_sets() -> None:
    a, b = text_of(1), changed(text_of(1), 0.3)
    one, other = ({*shingles(t, 5).tolist()} for t in (a, b))
    expected = len(one & other) / len(one | other)
    assert jaccard(shingles(a, 5), shingles(b, 5)) == pytest.approx(expected)
    assert jaccard(shingles("", 5), shingles("", 5)) == 0.0


def test_minima_agree_as_often_as_the_sets_do() -> None:
    """An unbiased estimate: the mean error over many pairs is within four standard errors."""
    minhash = MinHash(5, 14, 8, 1)
    errors = []
    for seed in range(120):
        text = text_of(seed)
        other = changed(text, 0.1 + 0.5 * seed / 120)
        one, two = shingles(text, 5), shingles(other, 5)
        agree = (minhash.signature(one) == minhash.signature(two)).mean()
        errors.append(agree - jaccard(one, two))
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))
    assert np.std(errors) < 1.5 * 0.5 / np.sqrt(14 * 8)


def test_signatures_of_long_texts_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    minhash, found = MinHash(5, 3, 4, 7), shingles(text_of(0, 3000), 5)
    whole = minhash.signature(found)
    monkeypatch.setattr("nl.data.prep.dedup_signatures.CHUNK", 100)
    assert np.array_equal(minhash.signature(found), whole)
    assert not np.array_equal(MinHash(5, 3, 4, 8).signature(found), whole)


def test_components_and_their_reference() -> None:
    draw = random.Random(3)
    for count in (0, 1, 5, 60):
        pairs = [(draw.randrange(50), draw.randrange(50)) for _ in range(count)]
        pairs = [(a, b) for a, b in pairs if a != b]
        array = np.array(pairs, np.uint64).reshape(-1, 2)
        found = components(array)
        assert sorted(map(tuple, found.tolist())) == components_reference(pairs)
    line = np.array([(n, n + 1) for n in range(500)], np.uint64)
    assert {kept for _, kept in components(line[::-1]).tolist()} == {0}


@pytest.mark.parametrize("ranges", [1, 2, 7])
def test_equal_keys_against_a_naive_search(tmp_path: Path, ranges: int) -> None:
    draw = random.Random(0)
    rows = [
        [[(draw.randrange(9) << 60, draw.randrange(3), n) for n in range(30)] for _ in range(2)]
        for _ in range(4)
    ]
    files = []
    for part, tables in enumerate(rows):
        path = tmp_path / f"{part}.bin"
        files.append((path, write_tables(path, tables)))
    for table in range(2):
        found = sorted(
            tuple(pair)
            for number in range(ranges)
            for pair in equal_pairs(files, table, number, ranges).tolist()
        )
        seen: dict[tuple[int, int], int] = {}
        expected = []
        for part, tables in enumerate(rows):
            for a, b, n in tables[table]:
                place = part << 32 | n
                if (a, b) in seen:
                    expected.append((seen[a, b], place))
                else:
                    seen[a, b] = place
        assert found == sorted(expected)


def test_exact_duplicates_stand_for_the_first_in_near_pairs() -> None:
    exact = np.array([(1, 9), (1, 5)], np.uint64)
    near = [np.array([(5, 7), (1, 5)], np.uint64), np.array([(7, 9), (2, 3)], np.uint64)]
    rows = decide(exact, near).tolist()
    assert rows == [[3, 2, 1], [5, 1, 0], [7, 1, 1], [9, 1, 0]]
    assert decide(exact[:0], []).shape == (0, 3)


def planted() -> dict[str, list[Document]]:
    base = [text_of(n) for n in range(40)]
    copies = [changed(base[n], 0.04) for n in range(10)]
    return {
        "a": [Document(t, f"a:{n}") for n, t in enumerate(base)],
        "b": [
            *(Document(t, f"copy:{n}") for n, t in enumerate(copies)),
            *(Document(base[n], f"same:{n}") for n in range(20, 26)),
            *(Document(text_of(1000 + n), f"new:{n}") for n in range(15)),
            Document("too short", "short"),
            Document("too  short", "short as well"),
        ],
    }


def test_the_first_stays_over_all_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_parts(tmp_path / "in", planted())
    options = DedupOptions(pairs=True)
    log, done = dedup_corpus(source, tmp_path / "out", options, ONE)
    assert done
    assert log["reasons"] == {"exact_duplicate": 6, "near_duplicate": 10}
    assert log["domains"]["a"]["reasons"] == {}
    left = {
        d.source
        for f in read_corpus(tmp_path / "out").splits["all"]["b"]
        for d in read_jsonl(tmp_path / "out" / f.file)
    }
    assert left == {*(f"new:{n}" for n in range(15)), "short", "short as well"}
    rows = [
        json.loads(line)
        for path in sorted((tmp_path / "out/dropped").rglob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(rows) == 16
    for row in rows:
        number = int(row["source"].partition(":")[2])
        kept = list(read_jsonl(source / row["kept"]["file"]))[row["kept"]["line"] - 1]
        assert kept.source == f"a:{number}"
        lost = list(read_jsonl(source / row["place"]["file"]))[row["place"]["line"] - 1]
        assert lost.source == row["source"]
    assert dedup_corpus(source, tmp_path / "out", options, ONE) == (log, False)
    monkeypatch.setattr(dedup, "RANGE_ROWS", 30)
    dedup_corpus(source, tmp_path / "ranges", options, ONE)
    assert contents(tmp_path / "ranges") == contents(tmp_path / "out")


def test_one_kind_only(tmp_path: Path) -> None:
    source = write_parts(tmp_path / "in", planted())
    exact, _ = dedup_corpus(source, tmp_path / "exact", DedupOptions(near=False), ONE)
    assert exact["reasons"] == {"exact_duplicate": 6}
    near, _ = dedup_corpus(source, tmp_path / "near", DedupOptions(exact=False), ONE)
    assert near["reasons"] == {"near_duplicate": 16}


def test_dry_run_counts_and_the_real_run_goes_on(tmp_path: Path) -> None:
    source, out = write_parts(tmp_path / "in", planted()), tmp_path / "out"
    counted = dry_run(source, out, DedupOptions(), ONE)
    assert not (out / "manifest.json").exists()
    log, _ = dedup_corpus(source, out, DedupOptions(), ONE)
    for name in ("counts", "reasons", "domains"):
        assert counted[name] == log[name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exact": False, "near": False}, "--exact: off; allowed: on, or --near"),
        ({"ngram": 0}, "--ngram: 0"),
        ({"bands": 0}, "--bands: 0"),
        ({"rows": 0}, "--rows: 0"),
        ({"seed": -1}, "--seed: -1"),
    ],
)
def test_bad_options(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DedupOptions(**fields)  # type: ignore[arg-type]


def test_keys_of_128_bits() -> None:
    keys = [text_key(str(n)) for n in range(100)]
    assert len({*keys}) == 100
    bands = list(band_keys(MinHash(5, 14, 8, 1).signature(shingles(text_of(1), 5))))
    assert len({*bands}) == 14
    assert all(0 <= x < 1 << 64 for pair in itertools.chain(keys, bands) for x in pair)
