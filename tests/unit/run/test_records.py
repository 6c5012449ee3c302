"""JSON lines: strict, flushed, readable after any cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nl.run import RecordWriter, cut_records, read_records
from nl.run.records import clean


def write(path: Path, steps: list[int]) -> None:
    writer = RecordWriter(path)
    for step in steps:
        writer.append({"step": step, "loss": 1 / step})
    writer.sync()
    writer.close()


def test_non_finite_numbers_become_null_and_are_listed(tmp_path: Path) -> None:
    row = {"step": 1, "loss": math.nan, "norm": math.inf, "name": "x"}
    assert clean(row) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "name": "x",
        "nonfinite": ["loss", "norm"],
    }
    path = tmp_path / "m.jsonl"
    writer = RecordWriter(path)
    writer.append(row)
    assert json.loads(path.read_text())["nonfinite"] == ["loss", "norm"]  # flushed before close
    writer.close()


def test_reading_after_a_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, [1, 2, 3])
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        assert [row["step"] for row in read_records(path)] == [1, 2, 3][:whole]
        assert cut_records(path, 10) == whole
        assert path.stat().st_size == ([0, *ends][whole])


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2, 2]), (3, [1, 2, 2, 4][:3]), (9, 4)])
def test_rows_after_the_step_are_cut(tmp_path: Path, step: int, kept: list[int] | int) -> None:
    path = tmp_path / "m.jsonl"
    write(path, [1, 2, 2, 4])
    count = cut_records(path, step)
    found = [row["step"] for row in read_records(path)]
    assert found == ([1, 2, 2, 4] if kept == 4 else kept)
    assert count == len(found)
    write(path, [5])
    assert [row["step"] for row in read_records(path)] == [*found, 5]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none") == []
    assert cut_records(tmp_path / "none", 3) == 0


def test_a_full_disk_leaves_no_torn_row_behind(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    writer = RecordWriter(path)
    writer.append({"step": 1})

    class Full:
        """Takes half of a row, then refuses."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(28, "No space left on device")
            return int(self.file.write(data[: len(data) // 2]))

    real, writer._file = writer._file, Full(writer._file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        writer.append({"step": 2})
    writer._file = real
    writer.append({"step": 3})
    writer.close()
    assert [row["step"] for row in read_records(path)] == [1, 3]
