"""The page of the data layer says what the files say; gates that do not hold are seen."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.unit.test_study import load

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return load("data_report")


@pytest.fixture(scope="module")
def loaders() -> ModuleType:
    return load("data_loaders")


def parts() -> dict[str, Any]:
    head = {"command": "python x", "machine": {"cpu": "c", "cores": 2}}
    rate = {"row": "loader", "other": None, "unit": "Gtok/s", "min": 1.0, "max": 2.0}
    shares = {"row": "share", "other": None, "unit": "%", "min": 0.1, "max": 0.2, "below": True}
    stage = {"stage": "filter", "domain": "d", "documents_in": 9, "documents_out": 7}
    return {
        "sample": head
        | {"network": "cut off", "seconds": 19.0, "seconds_when_up_to_date": 0.4}
        | {"seconds_two_workers": 17.0, "same_bytes_with_two_workers": True}
        | {
            "rows": [
                stage
                | {"megabytes_out": 1.5, "tokens": None, "seconds": 2.0, "reasons": {"short": 2}}
            ]
        },
        "rates": head
        | {"load": [1.0, 2.0], "rounds": 3, "missing": []}
        | {
            "rows": [
                rate | {"measured": 1.5, "gate": 1.0},
                shares | {"measured": 0.15, "gate": 0.5},
                rate | {"row": "other loader", "measured": 0.5, "gate": None},
            ]
        },
    }


def test_gates_are_counted(report: ModuleType) -> None:
    text = report.page(parts())
    assert "4 of 4 gates hold." in text
    assert "| loader | >= 1 Gtok/s | 1.5 Gtok/s | yes |" in text
    assert "| filter | d | 9 | 7 | 1.5 |  | short 2 | 2 |" in text
    assert "**Not measured: kill** (`benchmarks/data_kill.py`)." in text
    bad = parts()
    bad["rates"]["rows"][0]["measured"] = 0.9
    bad["rates"]["rows"][1]["measured"] = 0.6
    bad["sample"]["seconds"] = 181.0
    text = report.page(bad)
    assert "1 of 4 gates hold." in text
    assert text.count("**no**") == 3


def test_what_was_not_measured_again_is_kept(report: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "kept.json").write_text(json.dumps(parts()))
    newer = parts()["rates"] | {"rounds": 99}
    (tmp_path / "in" / "rates.json").write_text(json.dumps(newer))
    found = report.read_parts(tmp_path / "in", tmp_path / "kept.json")
    assert list(found) == ["sample", "rates"]
    assert found["rates"]["rounds"] == 99


def test_the_committed_page_is_that_of_its_numbers(report: ModuleType) -> None:
    page = BENCHMARKS.parent / "reports" / "data.md"
    kept = json.loads(page.with_suffix(".json").read_text())
    assert page.read_text() == report.page(kept)


def test_loaders_read_the_same_tokens(loaders: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    from nl.data.manifest import read_manifest
    from nl.data.shards import open_shard

    root = loaders.write_data(tmp_path / "data", shards=1, tokens=5001)
    info = read_manifest(root)
    shard = open_shard(root, info.splits["train"]["text"].shards[0], info.tokenizer, True)
    assert int(shard.ends[-1]) == 5001
    np.save(tmp_path / "flat.npy", shard.tokens)
    rows = loaders.Rows(tmp_path / "flat.npy", 50)
    mine = loaders.ours(root, 4, 50, 25).batches
    theirs = {tuple(rows[n][0].tolist()) for n in range(len(rows))}
    got = {tuple(row.tolist()) for batch in islice(mine, 25) for row in batch.inputs}
    assert got == theirs
    ahead = loaders.ahead(loaders.ours(root, 4, 50, 25).batches)
    plain = loaders.ours(root, 4, 50, 25).batches
    for one, two in islice(zip(ahead, plain, strict=False), 9):
        assert torch.equal(one.inputs, two.inputs)
    ahead.close()
