"""Every format gives the same documents; bad records are counted by reason."""

from __future__ import annotations

import codecs
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.prep import sources_files
from nl.data.prep.engine import Executor
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.sources import Tally, read_source, read_unit, units
from nl.data.prep.sources_spec import Source

TEXTS = ["one\n  two\n", "caf\u00e9 \u6f22\u5b57", "third \U0001f600", ""]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"n": i, "text": t}) + "\n" for i, t in enumerate(texts)).encode()


def write_zst(path: Path, data: bytes) -> None:
    import zstandard

    half = len(data) // 2
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(data[:half]) + compress(data[half:]))


def write_parquet(path: Path, _: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": range(len(TEXTS)), "text": TEXTS}), path, row_group_size=2)


def write_arrow(path: Path, _: bytes) -> None:
    import pyarrow as pa

    table = pa.table({"text": TEXTS})
    opener = pa.ipc.new_file if path.stem == "file" else pa.ipc.new_stream
    with opener(path, table.schema) as sink:
        sink.write_table(table)


WRITERS: dict[str, Callable[[Path, bytes], Any]] = {
    "a.jsonl": Path.write_bytes,
    "a.json": lambda p, _: p.write_text(json.dumps([{"text": t} for t in TEXTS])),
    "a.jsonl.gz": lambda p, data: p.write_bytes(gzip.compress(data)),
    "a.jsonl.zst": write_zst,
    "a.parquet": write_parquet,
    "file.arrow": write_arrow,
    "stream.arrow": write_arrow,
}


def texts_of(source: Source, tally: Tally | None = None) -> list[str]:
    return [d.text for d in read_source(source, tally)]


@pytest.mark.parametrize("name", WRITERS)
def test_formats_of_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, jsonl(TEXTS))
    kind = sources_files.format_of(Path(name))
    assert kind is not None
    named = Source(name="d", dataset=kind, data_files=str(tmp_path / name))
    mirror = Source(name="d", dataset="some/corpus", local=str(tmp_path))
    assert texts_of(named) == texts_of(mirror) == TEXTS
    places = [d.source for d in read_source(named)]
    assert places[0].startswith(f"{name}:")
    assert len(set(places)) == len(TEXTS)


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["a", "b", "", "c", "", "", "d"]),
        ("paragraph", ["a\nb", "c", "d"]),
        ("document", ["a\nb\n\nc\n\n\nd"]),
    ],
)
def test_text(tmp_path: Path, sample_by: Any, expected: list[str]) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n\nc\n\n\nd")
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"a\nb\n\nc\n\n\nd"))
    for pattern in ("t.txt", "t.txt.gz", "*.txt"):
        path = str(tmp_path / pattern)
        assert texts_of(Source(name="t", dataset="text", data_files=path, sample_by=sample_by)) == (
            expected
        )


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(codecs.BOM_UTF8 + b"a\nb")
    for sample_by, expected in (("line", ["a", "b"]), ("document", ["a\nb"])):
        source = Source(
            name="t", dataset="text", data_files=str(tmp_path / "t.txt"), sample_by=sample_by
        )
        assert texts_of(source) == expected


WIKI = "before\n = One = \n\n text = of it \n = = Part = = \n more\n = Two = \n\n last\n"


def test_wikitext(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.tokens").write_text("\n = T = \n")
    (tmp_path / "wiki.train.tokens").write_text(WIKI)
    articles = [
        "before",
        " = One = \n\n text = of it \n = = Part = = \n more",
        " = Two = \n\n last",
    ]
    assert texts_of(Source(name="w", dataset="wikitext", data_files=str(tmp_path))) == articles
    test = Source(name="w", dataset="wikitext", data_files=str(tmp_path), split="test")
    assert texts_of(test) == [" = T = "]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(WIKI.splitlines()))
    rows = Source(
        name="w", dataset="json", data_files=str(tmp_path / "rows.jsonl"), sample_by="heading"
    )
    assert texts_of(rows) == articles


BAD = [
    b'{"text": "good"}\n',
    b'{"text": "cut \xff"}\n',
    b'{"text": "half of a pair \\ud800"}\n',
    b'{"text": \n',
    b"\n",
    b'{"body": "x"}\n',
    b'{"text": null}\n',
    b"[1]\n",
    b'{"text": "' + b"x" * 300 + b'"}\n',
    b'{"text": "also good"}',
]


def test_bad_records_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sources_files, "MAX_RECORD", 100)
    (tmp_path / "a.jsonl").write_bytes(b"".join(BAD))
    tally = Tally()
    source = Source(name="d", dataset="json", data_files=str(tmp_path / "a.jsonl"))
    assert texts_of(source, tally) == ["good", "also good"]
    assert tally.reasons == {
        "broken_utf8": 2,
        "not_json": 1,
        "no_column": 1,
        "not_a_string": 1,
        "no_object": 1,
        "record_too_long": 1,
    }
    assert tally.read == tally.documents + tally.reasons.total() == 9
    assert tally.first["broken_utf8"] == "a.jsonl:2"
    assert "a.jsonl:6: left out (no_column)" in caplog.text


def test_broken_utf8_in_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([b"good", b"cut \xff", None, b"fine"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    tally = Tally()
    source = Source(name="d", dataset="parquet", data_files=str(tmp_path))
    assert texts_of(source, tally) == ["good", "fine"]
    assert tally.reasons == {"broken_utf8": 1, "not_a_string": 1}


@pytest.mark.parametrize("name", [n for n in WRITERS if n != "a.json"])
def test_no_usable_record_names_the_columns(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, jsonl(TEXTS))
    source = Source(name="d", dataset="x/y", local=str(tmp_path), text_column="body")
    with pytest.raises(ConfigError, match=r"none of 4 records.*'body'.*exist: (n, )?text\."):
        texts_of(source)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "stream.arrow"])
def test_a_torn_file_is_an_error(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, jsonl(TEXTS))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(ConfigError, match=rf"{name}: not readable as \w+ after record \d"):
        texts_of(Source(name="d", dataset="x/y", local=str(tmp_path)))


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut off, changed in places, or with a hole."""
    out = bytearray(data)
    place = draw.randrange(len(out))
    kind = draw.randrange(3)
    if kind == 0:
        return bytes(out[:place])
    if kind == 1:
        for _ in range(8):
            out[draw.randrange(len(out))] = draw.randrange(256)
    else:
        out[place : place + 90] = draw.randbytes(40)
    return bytes(out)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_never_crash(tmp_path: Path, name: str) -> None:
    """What cannot be read is counted or refused; what is read can be written as UTF-8."""
    WRITERS[name](tmp_path / name, jsonl(TEXTS * 5))
    whole, draw = (tmp_path / name).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        (tmp_path / name).write_bytes(damaged(whole, draw))
        tally = Tally()
        try:
            texts = texts_of(Source(name="d", dataset="x/y", local=str(tmp_path)), tally)
        except ConfigError:
            refused += 1
            continue
        assert tally.read == len(texts) + tally.reasons.total()
        assert all(text.encode().decode() == text for text in texts)
    assert refused > 0


def test_an_empty_file_is_no_unit_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(b"")
    (tmp_path / "1.jsonl").write_bytes(jsonl(["a"]))
    source = Source(name="d", dataset="json", data_files=str(tmp_path))
    assert len(units(source)) == 1
    assert texts_of(source) == ["a"]
    empty = Source(name="d", dataset="json", data_files=str(tmp_path / "0.jsonl"))
    with pytest.raises(ConfigError, match=r"d: no records at all in /\S*0\.jsonl; are its files"):
        ingest(empty, tmp_path / "out", IngestOptions(), Executor())


def test_splits_of_local_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("data/test-00000.jsonl", "data/valid.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([name]))
    (tmp_path / "README.md").write_text("about train")
    fields: dict[str, Any] = {"name": "d", "dataset": "x/y", "local": str(tmp_path)}
    assert texts_of(Source(**fields, split="validation")) == ["data/valid.jsonl"]
    with pytest.raises(ConfigError, match=r"no split 'train'. Known: test, validation"):
        texts_of(Source(**fields))
    assert texts_of(Source(**fields, split_fallback="any")) == ["data/valid.jsonl"]
    assert "no split 'train'; reading 'validation' instead" in caplog.text
    assert texts_of(Source(**fields, split_fallback="test")) == ["data/test-00000.jsonl"]
    (tmp_path / "data/other.jsonl").write_bytes(jsonl(["o"]))
    assert len(texts_of(Source(**fields))) == 3, "names that tell no split: every file"


def test_limits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["abc"] * 10))
    fields: dict[str, Any] = {"name": "d", "dataset": "json", "data_files": str(tmp_path)}
    tally = Tally()
    assert len(texts_of(Source(**fields, max_records=4), tally)) == 4
    assert (tally.read, tally.documents) == (4, 4)
    tally = Tally()
    assert len(texts_of(Source(**fields, max_mb=8e-6), tally)) == 2
    assert (tally.read, tally.documents) == (2, 2)


def test_units_are_whole_files(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.jsonl").write_bytes(jsonl([f"{number} {i}" for i in range(4)]))
    source = Source(name="d", dataset="json", data_files=str(tmp_path))
    size = (tmp_path / "0.jsonl").stat().st_size
    parts = units(source, unit_bytes=2 * size)
    assert [len(u.origin) for u in parts] == [2, 2, 2, 1]
    joined = [d for unit in parts for d in read_unit(source, unit)]
    assert joined == list(read_source(source))
    (tmp_path / "7.jsonl").write_text('{"body": "no text in this file"}\n')
    assert len(list(read_source(source))) == 28, "one bad file of many is counted"
    (tmp_path / "7.jsonl").unlink()
    assert (
        len(units(Source(name="d", dataset="json", data_files=str(tmp_path), max_records=3))) == 1
    )
    before = [unit.identity() for unit in parts]
    (tmp_path / "6.jsonl").write_bytes(b'{"text": "new"}\n')
    after = [unit.identity() for unit in units(source, unit_bytes=2 * size)]
    assert before[:3] == after[:3]
    assert before[3] != after[3]


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream of ``datasets``, here of local files, in place of the hub's."""
    import datasets

    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(jsonl([f"{number} {i}" for i in range(5)]))
    real, asked = datasets.load_dataset, []

    def fake(dataset: str, subset: str | None, **options: Any) -> Any:
        asked.append((dataset, subset, options["revision"]))
        files = sorted(str(p) for p in tmp_path.glob("*.jsonl"))
        return real("json", data_files={"test": files}, streaming=options["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    source = Source(name="d", dataset="team/corpus", subset="en", revision="abc", split="test")
    assert len(units(source)) == 3
    assert sorted(texts_of(source)) == sorted(f"{n} {i}" for n in range(3) for i in range(5))
    assert texts_of(Source(name="d", dataset="team/corpus", split="test", max_records=7))[5:] == [
        "1 0",
        "1 1",
    ]
    assert asked[0] == ("team/corpus", "en", "abc")
    with pytest.raises(ConfigError, match=r"team/corpus has no split 'train'. Known: test"):
        units(Source(name="d", dataset="team/corpus"))
    assert len(units(Source(name="d", dataset="team/corpus", split_fallback="any"))) == 3


def test_no_network_is_one_line_with_the_recipe(tmp_path: Path) -> None:
    source = Source(name="web", dataset="team/corpus", subset="en", local=str(tmp_path / "none"))
    with pytest.raises(ConfigError) as error:
        units(source)
    message = str(error.value)
    assert "\n" not in message
    for part in ("team/corpus, subset en, split train", "none", "HF_HUB_OFFLINE", "local:"):
        assert part in message
    assert "--data-files" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b", "dataset": "x"}, "name: 'a/b'"),
        ({"name": "a", "dataset": ""}, "dataset: empty"),
        ({"name": "a", "dataset": "json"}, "data_files: missing"),
        ({"name": "a", "dataset": "x", "max_records": 0}, "max_records: 0"),
        ({"name": "a", "dataset": "x", "max_mb": -1.0}, "max_mb: -1.0"),
        ({"name": "a", "dataset": "stdlib"}, "subset: None; stdlib has prose, code and"),
        ({"name": "a", "dataset": "synthetic"}, "max_records: null"),
    ],
)
def test_bad_sources(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Source(**fields)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"d: no json files at .*none"):
        units(Source(name="d", dataset="json", data_files=str(tmp_path / "none")))


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets: not installed.*uv sync --extra data"):
        units(Source(name="d", dataset="team/corpus"))
