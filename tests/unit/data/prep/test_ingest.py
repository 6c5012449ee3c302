"""Parts of a fixed size, the same after a kill and with any number of workers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus, read_jsonl
from nl.data.prep import ingest as module
from nl.data.prep.engine import Executor
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.sources_spec import Source

ONE = Executor()
OPTIONS = IngestOptions(part_mb=0.001, unit_mb=0.004)


def rows(path: Path, count: int, mark: str) -> None:
    lines = [json.dumps({"text": f"{mark} {i} " + "x" * 60}) for i in range(count)]
    lines.insert(count // 2, '{"body": 1}')
    path.write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "raw").mkdir()
    for number in range(3):
        rows(tmp_path / f"raw/{number}.jsonl", 50, str(number))
    return Source(name="web", dataset="json", data_files=str(tmp_path / "raw"))


def contents(corpus: Path) -> dict[str, bytes]:
    files = [p for p in corpus.rglob("*.jsonl") if "raw" not in p.parts]
    listed = {"manifest.json": (corpus / "manifest.json").read_bytes()}
    return listed | {p.relative_to(corpus).as_posix(): p.read_bytes() for p in files}


def test_parts(source: Source, tmp_path: Path) -> None:
    log, written = ingest(source, tmp_path / "out", OPTIONS, ONE)
    assert written
    assert log["counts"]["documents_in"] == 153
    assert log["counts"]["documents_out"] == 150
    assert log["reasons"] == {"no_column": 3}
    files = read_corpus(tmp_path / "out").splits["all"]["web"]
    assert len({Path(f.file).name.split("_")[1] for f in files}) == 3, "a unit for each file"
    assert all(f.bytes < 1000 + 70 for f in files)
    assert sum(f.bytes >= 1000 for f in files) > len(files) / 2
    texts = [d.text for f in files for d in read_jsonl(tmp_path / "out" / f.file)]
    assert texts == [f"{n} {i} " + "x" * 60 for n in range(3) for i in range(50)]
    assert ingest(source, tmp_path / "out", OPTIONS, ONE) == (log, False)
    assert ingest(source, tmp_path / "out", IngestOptions(part_mb=0.002), ONE)[1]


def test_a_kill_anywhere_changes_nothing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(source, tmp_path / "whole", OPTIONS, ONE)
    whole, real, read = contents(tmp_path / "whole"), module.read_unit, 0

    def dying(*arguments: Any) -> Iterator[Document]:
        nonlocal read
        for document in real(*arguments):
            read += 1
            if read % 37 == 0:
                raise KeyboardInterrupt
            yield document

    monkeypatch.setattr(module, "read_unit", dying)
    kills = 0
    while True:
        try:
            ingest(source, tmp_path / "killed", OPTIONS, ONE)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3
    assert read < 2.0 * 150, "what was whole is not read again"
    assert contents(tmp_path / "killed") == whole


@pytest.mark.slow
def test_two_workers_write_the_same(source: Source, tmp_path: Path) -> None:
    ingest(source, tmp_path / "one", OPTIONS, ONE)
    ingest(source, tmp_path / "two", OPTIONS, Executor(workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_where_a_source_lies_is_no_part_of_the_key(source: Source, tmp_path: Path) -> None:
    log, _ = ingest(source, tmp_path / "out", OPTIONS, ONE)
    (tmp_path / "raw").rename(tmp_path / "moved")
    moved = Source(name="web", dataset="json", data_files=str(tmp_path / "moved"))
    assert ingest(moved, tmp_path / "out", OPTIONS, ONE) == (log, False)
    rows(tmp_path / "moved/2.jsonl", 51, "2")
    assert ingest(moved, tmp_path / "out", OPTIONS, ONE)[1]


def test_limits_and_generators(tmp_path: Path) -> None:
    made = Source(name="s", dataset="synthetic", subset="3", max_records=40)
    log, _ = ingest(made, tmp_path / "s", IngestOptions(part_mb=0.02), ONE)
    assert log["counts"]["documents_out"] == 40
    assert len(read_corpus(tmp_path / "s").splits["all"]["s"]) > 2


def test_pieces_of_a_library_file_are_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nl.data.prep import stdlib
    from nl.data.prep.corpus import Work

    works = [Work((Document("a" * 90, "a.py"), Document("b" * 90, "a.py")))]
    monkeypatch.setattr(stdlib, "_works", lambda _: ([], works))
    source = Source(name="code", dataset="stdlib", subset="code")
    ingest(source, tmp_path / "out", IngestOptions(), ONE)
    (file,) = read_corpus(tmp_path / "out").splits["all"]["code"]
    found = list(read_jsonl(tmp_path / "out" / file.file))
    assert [(d.source, d.group) for d in found] == [("a.py#0", "a.py"), ("a.py#1", "a.py")]


def test_nothing_usable(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text('{"body": "x", "id": 3}\n')
    source = Source(name="web", dataset="json", data_files=str(tmp_path))
    with pytest.raises(ConfigError, match=r"web: none of 3 records.*exist: body, id\."):
        ingest(source, tmp_path / "out", IngestOptions(unit_mb=1e-5), ONE)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("name", ["part_mb", "unit_mb"])
def test_bad_options(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: 0.0"):
        IngestOptions(**{name: 0.0})


PEAK = """
import resource, sys
from pathlib import Path
from nl.data.prep.engine import Executor
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.sources_spec import Source
raw, out = sys.argv[1:]
source = Source(name="a", dataset="files", local=raw)
ingest(source, Path(out), IngestOptions(part_mb=4), Executor())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def peak(groups: int) -> int:
        """Kilobytes at most, in a process of its own."""
        raw = tmp_path / f"{groups}.{kind}"
        texts = [f"{i} " + f"{i % 97} words of it " * 60 for i in range(1000 * groups)]
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), raw, row_group_size=1000)
        else:
            raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        command = [sys.executable, "-c", PEAK, str(raw), str(tmp_path / f"out{groups}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert peak(60) < 1.2 * peak(6)
