"""HDF5 out and in again; what the analysis of components says, and what it finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from nl.config import ConfigError
from nl.data.components import open_components
from nl.data.manifest import read_manifest
from nl.data.prep.analysis import analyse, analyse_hdf5, table
from nl.data.prep.export_hdf5 import export_hdf5
from nl.data.prep.import_shards import ImportOptions, import_shards
from nl.data.readers import parse_input

ROOT = Path(__file__).parents[4]
W = 20


def texts(root: Path, split: str) -> dict[str, list[list[int]]]:
    names = tuple(read_manifest(root).splits[split])
    data = open_components(root, split, names, "full")
    return {
        name: [data.text(c, d).tolist() for d in range(data.documents[c].length.size)]
        for c, name in enumerate(names)
    }


def test_hdf5_out_and_in_again(tiny: Path, tmp_path: Path) -> None:
    files = {s: export_hdf5(tiny, tmp_path / "old", s, (), W)[0] for s in ("train", "val")}
    with h5py.File(files["train"]) as file:
        assert file["token_chunks"].dtype == np.int32
        assert file["category_code"].dtype == np.uint8
        assert int(file.attrs["total_chunks"]) == len(file["token_chunks"])
        assert file["token_chunks"].shape[1] == int(file.attrs["chunk_size"]) == W
        assert list(file.attrs["selected_categories_in_file"]) == ["code", "prose"]
        labels = [name.decode() for name in file["category_for_chunk"]]
        least = file.attrs["reference_chunk_budget_smallest_top_category"]
        assert least == min(labels.count("code"), labels.count("prose"))
        assert [["code", "prose"][code] for code in file["category_code"]] == labels
    renamed = files["val"].rename(tmp_path / "no_hint.hdf5")  # the attribute says its split
    inputs = [parse_input(str(f), "hdf5") for f in (files["train"], renamed)]
    import_shards(inputs, tmp_path / "new", ImportOptions(tokenizer_path="bytes"))
    for split in ("train", "val"):
        whole, back = texts(tiny, split), texts(tmp_path / "new", split)
        for name in ("code", "prose"):
            cut = [ids[: len(ids) // W * W] for ids in whole[name]]
            assert back[name] == [ids for ids in cut if ids]


def test_what_cannot_be_exported(tiny: Path, tmp_path: Path) -> None:
    for split, names, window, message in (
        ("all", (), W, "no split 'all'. Known: train, val, test"),
        ("val", ("cs.XX",), W, r"components: 'cs.XX'; split 'val' .* has code \(\d+ documents"),
        ("val", (), 10**6, "no document of val .* holds one"),
        ("val", (), 0, "--window: 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_hdf5(tiny, tmp_path / "x", split, names, window)
    assert not list(tmp_path.iterdir())


def test_analysis(tiny: Path) -> None:
    report = analyse(tiny, W, 13)
    rows = {(row["split"], row["component"]): row for row in report["rows"]}
    for (split, name), row in rows.items():
        mine = texts(tiny, split)[name]
        assert row["documents"] == len(mine)
        assert row["tokens"] == row["bytes"] == sum(map(len, mine))
        assert row["windows"] == sum((len(ids) - 1) // W for ids in mine)
        assert row["dropped_tokens"] == row["tokens"] - W * row["windows"]
        assert row["too_short"] == sum(len(ids) <= W for ids in mine)
        assert row["bytes_per_token"] == 1
        assert (split == "train") == ("ngrams_in_train" not in row)
        if split != "train":
            train = {tuple(ids[i : i + 13]) for group in texts(tiny, "train").values()
                     for ids in group for i in range(len(ids) - 12)}  # fmt: skip
            runs = [tuple(ids[i : i + 13]) for ids in mine for i in range(len(ids) - 12)]
            share = sum(run in train for run in runs) / len(runs)
            assert row["ngrams_in_train"] == pytest.approx(share)
    least = min(row["windows"] for (split, _), row in rows.items() if split == "train")
    assert report["budget"] == least
    assert report["checksums"] == "as in the manifest"
    assert any("val/prose" in line for line in table(report))


def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/data" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_analysis_ends_with_a_code_where_something_is_wrong(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    shard = next((data / "val/prose").iterdir())
    raw = bytearray(shard.read_bytes())
    raw[200] ^= 1
    shard.write_bytes(bytes(raw))
    found = script("analyze_components.py", str(data), "--json", str(tmp_path / "r.json"))
    assert found.returncode == 1, found.stderr
    assert "digests differ" in found.stdout
    assert "damaged block" in json.loads((tmp_path / "r.json").read_text())["problems"][0]
    missing = script("analyze_components.py", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert "manifest.json: no such file" in missing.stderr


def test_analysis_of_hdf5(tiny: Path, tmp_path: Path) -> None:
    file, rows = export_hdf5(tiny, tmp_path / "x", "val", (), W)
    report = analyse_hdf5(file)
    assert {row["component"]: row["windows"] for row in report["rows"]} == rows
    assert report["attributes"]["split"] == "val"
    assert not report["problems"]
    with h5py.File(file, "a") as wrong:
        del wrong.attrs["chunk_size"]
        wrong.attrs["token_chunk_size"] = W + 1
    assert "chunk_size: 21" in analyse_hdf5(file)["problems"][0]
    file.write_bytes(b"no")
    with pytest.raises(ConfigError, match="not an HDF5 file"):
        analyse_hdf5(file)
