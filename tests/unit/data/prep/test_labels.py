"""Rows with labels become components; official splits stay what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.documents import read_jsonl
from nl.data.manifest import read_manifest
from nl.data.prep.mixture import Mixture, read_mixture
from nl.data.prep.mixture_run import RunOptions, run_mixture
from nl.data.prep.sources import Tally, read_source
from nl.data.prep.sources_spec import Source

NAMES = ["math.AC", "cs.CV\n", "cs.AI"]
"""As an old loading script of the data set has them: one with the end of its line."""


def rows(split: str, count: int = 12) -> list[dict[str, Any]]:
    """Articles as the columns ``text`` and ``label``; numbers count through ``NAMES``."""
    return [
        {"text": f"{split} {n} " + f"word{n} " * 30, "label": n % len(NAMES)} for n in range(count)
    ]


def parquet(folder: Path) -> Path:
    """A directory of three splits, as ``datasets`` writes it."""
    import datasets

    label = datasets.ClassLabel(names=NAMES)
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    folder.mkdir()
    for split in ("train", "validation", "test"):
        table = datasets.Dataset.from_list(rows(split), features=features)
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def jsonl(folder: Path, names: bool = False) -> Path:
    """The same as lines; labels as names, or as numbers with a description beside them."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = [r | {"label": NAMES[r["label"]]} if names else r for r in rows(split)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    if not names:
        info = {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def source(folder: Path, **more: Any) -> Source:
    fields = {"name": "cs.CV", "dataset": "ccdv/arxiv-classification", "local": str(folder)}
    return Source(**fields | {"label_column": "label"} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["parquet", "numbers", "names"])
def test_a_component_is_the_rows_of_its_label(tmp_path: Path, kind: str) -> None:
    where = tmp_path / "raw"
    folder = parquet(where) if kind == "parquet" else jsonl(where, names=kind == "names")
    tally = Tally()
    found = list(read_source(source(folder), tally))
    assert [d.text for d in found] == [r["text"] for r in rows("train") if r["label"] == 1]
    assert tally.reasons == {"other_label": 8}
    assert tally.labels == {"cs.CV": 4, "math.AC": 4, "cs.AI": 4}
    assert tally.read == 12
    assert not any(d.split for d in found)
    every = list(read_source(source(folder, split="all")))
    assert {(d.text.split()[0], d.split) for d in every} == {
        ("train", "train"),
        ("validation", "val"),
        ("test", "test"),
    }
    assert len(every) == 12
    other = source(folder, name="vision", label="cs.CV ")
    assert [d.text for d in read_source(other)] == [d.text for d in found]


def test_the_hub_says_names_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` loads a local directory of parquet in place of the hub's."""
    import datasets

    folder, real = parquet(tmp_path / "raw"), datasets.load_dataset

    def fake(dataset: str, subset: str | None, **options: Any) -> Any:
        assert (dataset, subset) == ("ccdv/arxiv-classification", "no_ref")
        return real("parquet", data_dir=str(folder), streaming=options["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    hub = source(tmp_path / "none", local=None, subset="no_ref")
    expected = [(d.text, d.split) for d in read_source(source(folder, split="all"))]
    assert sorted((d.text, d.split) for d in read_source(source(tmp_path, local=None,
                  subset="no_ref", split="all"))) == sorted(expected)  # fmt: skip
    assert len(list(read_source(hub))) == 4


def test_an_unknown_label_is_told_with_the_known_ones(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"cs.XX: label: 'cs.XX' in column 'label'; none of 12"):
        list(read_source(source(folder, name="cs.XX")))
    with pytest.raises(ConfigError, match=r"Known: cs.AI \(4\), cs.CV \(4\), math.AC \(4\)"):
        list(read_source(source(folder, name="cs.XX")))
    with pytest.raises(ConfigError, match=r"none of 12 records has a text.*Columns that exist: "):
        list(read_source(source(folder, label_column="category")))
    (tmp_path / "odd").mkdir()
    lines = [{"text": "a", "label": None}, {"text": "b", "label": True}, {"text": "c", "label": 7}]
    text = "".join(json.dumps(r) + "\n" for r in lines)
    (tmp_path / "odd/train.jsonl").write_text(text)
    tally = Tally()
    numbered = source(tmp_path / "odd", name="7", dataset="json", data_files=str(tmp_path / "odd"))
    assert [d.text for d in read_source(numbered, tally)] == ["c"]
    assert tally.reasons == {"no_label": 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_column": None, "label": "x"}, "label_column: missing"),
        ({"dataset": "text", "data_files": "x", "local": None}, "'text' has no columns"),
    ],
)
def test_bad_labels(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(tmp_path, **fields)


def test_files_that_do_not_say_their_split(tmp_path: Path) -> None:
    folder = jsonl(tmp_path / "raw", names=True)
    (folder / "more.jsonl").write_text(json.dumps(rows("train")[0]) + "\n")
    with pytest.raises(ConfigError, match=r"split: all, but more.jsonl does not say its split"):
        list(read_source(source(folder, split="all")))


def test_from_labelled_rows_to_components(tmp_path: Path) -> None:
    """The manifest of the shipped file, on a local mirror, with a tokenizer for bytes."""
    folder = parquet(tmp_path / "raw")
    shipped = read_mixture(Path(__file__).parents[4] / "configs/data/arxiv_components.yaml")
    assert len(shipped.datasets) == 11
    entries = tuple(one for one in shipped.datasets if one.name in {name.strip() for name in NAMES})
    fields = {k: getattr(shipped, k) for k in ("name", "held_out", "apart")}
    from dataclasses import replace

    entries = tuple(replace(entry, local=str(folder)) for entry in entries)
    mixture = Mixture(**fields, output_dir=str(tmp_path / "out"), datasets=entries)
    list(run_mixture(mixture, RunOptions(tokenizer_path="bytes")))
    manifest = read_manifest(tmp_path / "out")
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert set(manifest.splits[split]) == {"cs.AI", "cs.CV", "math.AC"}
        [info] = manifest.splits[split]["cs.CV"].texts
        texts = [d.text for d in read_jsonl(tmp_path / "out" / info.file)]
        assert texts == [r["text"] for r in rows(name) if r["label"] == 1]


def test_packages_of_the_standard_library() -> None:
    found = list(read_source(Source(name="xml", dataset="stdlib", subset="xml")))
    assert len(found) > 10
    assert {d.group for d in found} == {d.source.partition("#")[0] for d in found}
    assert all(d.group.startswith("xml/") for d in found)
    with pytest.raises(ConfigError, match=r"subset: cs.XX; .* packages \(modules\): .*email \(\d+"):
        list(read_source(Source(name="x", dataset="stdlib", subset="cs.XX")))
