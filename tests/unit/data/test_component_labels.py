"""stream.labels=permuted: the same documents under other labels, in training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nl.assembly import launch
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.config.run import config_hash
from nl.data.component_labels import open_labelled, permuted
from nl.data.component_stream import ComponentStreamConfig
from nl.data.component_windows import ComponentWindows
from nl.data.components import ComponentData, Documents, open_components
from nl.data.documents import Document
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus
from nl.report.scaling.documents import fold
from nl.report.scaling.losses import read_losses

COUNTS = {"anise": 60, "basil": 45, "cumin": 30}
NAMES = tuple(COUNTS)
W = 12


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three components of different size; the first word of a document says which it is of."""
    root = tmp_path_factory.mktemp("three")
    works = {
        name: [Work((Document(f"{name} {n} " + f"{name[:2]}{n} " * 30, str(n)),)) for n in range(c)]
        for name, c in COUNTS.items()
    }
    write_corpus(root / "corpus", "three", works, limit_bytes=10**9, recipe={})
    shard_corpus(root / "corpus", "bytes", root, shard_tokens=2000)
    return root


def texts(data: ComponentData) -> dict[str, list[bytes]]:
    """Of every component the bytes of its documents, in their order."""
    return {
        name: [data.text(code, n).astype(np.uint8).tobytes() for n in range(docs.length.size)]
        for code, (name, docs) in enumerate(zip(data.names, data.documents, strict=True))
    }


def stream(three: Path, **more: Any) -> ComponentStreamConfig:
    fields = {"path": str(three), "window": W, "budget": 60, "batch_size": 4, "labels": "permuted"}
    return ComponentStreamConfig(**fields | more)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_texts_and_numbers_of_documents_stay(three: Path, split: str) -> None:
    own = texts(open_components(three, split, NAMES, "full"))
    drawn = texts(open_labelled(three, split, NAMES, "full", 5))
    assert {name: len(docs) for name, docs in drawn.items()} == {k: len(v) for k, v in own.items()}
    every = sorted(text for docs in own.values() for text in docs)
    assert sorted(text for docs in drawn.values() for text in docs) == every
    assert len(set(every)) == len(every)
    assert drawn != own
    assert texts(open_labelled(three, split, NAMES, "full", 5)) == drawn
    assert texts(open_labelled(three, split, NAMES, "full", None)) == own
    if split == "train":
        assert texts(open_labelled(three, split, NAMES, "full", 6)) != drawn
        for docs in drawn.values():  # of every component some, so that none is told by its text
            assert {text.split()[0].decode() for text in docs} == set(NAMES)


def test_the_label_of_a_document_does_not_depend_on_which_components_are_read(three: Path) -> None:
    whole = texts(open_labelled(three, "train", NAMES, "header", 0))
    for names in (("cumin",), ("cumin", "anise")):
        part = open_labelled(three, "train", names, "header", 0)
        assert texts(part) == {name: whole[name] for name in names}


def test_all_labellings_are_equally_likely() -> None:
    """Of four documents, two and one and one under three labels: twelve ways, by a chi-square."""
    one = np.arange(4)
    documents = [Documents(x, x, x) for x in (one[:2], one[2:3], one[3:])]
    draws = 6000
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        found = permuted(documents, seed)
        assert [len(docs.start) for docs in found] == [2, 1, 1]
        key = tuple(int(x) for docs in found for x in docs.start)
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 12
    expected = draws / 12
    assert sum((n - expected) ** 2 / expected for n in seen.values()) < 31.3  # 0.1 % at 11


def test_training_and_frozen_windows_follow_the_same_labels(three: Path) -> None:
    """A run on two components reads their documents and no other; held out as well."""
    cfg = stream(three, components=("cumin", "basil"), label_seed=3)
    built = cfg.build("train", seed=1, rank=0, world=1)
    windows = built.fetch
    assert isinstance(windows, ComponentWindows)
    drawn = texts(open_labelled(three, "train", NAMES, "header", 3))
    assert windows.sizes == [30, 30]
    rows, read = np.arange(60), set()
    source, index = built.plan.locate(rows)
    document, _, start = windows.places(source, index)
    inputs, _ = windows(source, index)
    for row in range(60):
        name = ("cumin", "basil")[source[row]]
        text = drawn[name][document[row]]
        begin = int(start[row])
        assert inputs[row].tolist() == list(text[begin : begin + W])
        read.add(text.split()[0])
    assert read == {name.encode() for name in NAMES}
    frozen = cfg.frozen("val", 8, 0)
    held = texts(open_labelled(three, "val", NAMES, "header", 3))
    assert frozen.components == NAMES
    first = np.cumsum([0, *(len(held[name]) for name in NAMES)])
    for row in range(len(frozen.component)):
        code = int(frozen.component[row])
        text = held[NAMES[code]][int(frozen.document[row]) - first[code]]
        assert bytes(frozen.inputs[row].tolist()) in text
    plain = stream(three, labels="observed").frozen("val", 8, 0)
    other = stream(three, label_seed=4).frozen("val", 8, 0)
    assert len({frozen.digest, plain.digest, other.digest}) == 3
    assert cfg.splits() == ("train", "val/cumin", "val/basil")
    batches = list(cfg.build("val/cumin", seed=0, rank=0, world=1))
    assert sum(b.weight for b in batches) == W * sum((len(t) - 1) // W for t in held["cumin"])


def test_shares_are_exact_or_refused_with_the_counts(three: Path) -> None:
    """Tokens of a component change with its documents, and so does what it can give."""
    cfg = stream(three)
    assert cfg.share_of() == dict.fromkeys(NAMES, 20)
    data = open_labelled(three, "train", NAMES, "header", 0)
    have = {
        n: int(d.windows(W, legacy=False).sum()) for n, d in zip(NAMES, data.documents, strict=True)
    }
    own = open_components(three, "train", NAMES, "header")
    assert have != {
        n: int(d.windows(W, legacy=False).sum()) for n, d in zip(NAMES, own.documents, strict=True)
    }
    least = min(have.values())
    assert stream(three, budget=3 * least).share_of() == dict.fromkeys(NAMES, least)
    with pytest.raises(ConfigError) as error:
        stream(three, budget=3 * least + 3).share_of()
    text = str(error.value)
    assert text.startswith(f"stream.labels=permuted, stream.budget: {3 * least + 3:,} windows")
    assert all(f"{name} {count:,}" in text for name, count in have.items())
    assert text.endswith("or set deficit=redistribute, or take another stream.label_seed.")
    assert (
        sum(stream(three, budget=0, components=("anise",)).share_of().values()) == least - least % 6
    )
    with pytest.raises(ConfigError, match=r"label_seed: 2; is of labels=permuted"):
        stream(three, labels="observed", label_seed=2)
    with pytest.raises(ConfigError, match=r"label_seed: -1; must be >= 0"):
        stream(three, label_seed=-1)
    with pytest.raises(ConfigError, match=r"components: 'dill'; split 'train' of .* has anise \("):
        stream(three, components=("dill",)).build("train", seed=0, rank=0, world=1)


def test_a_stream_does_not_go_on_under_other_labels(three: Path) -> None:
    state = stream(three).build("train", seed=0, rank=0, world=1).state_dict()
    for other in (stream(three, label_seed=1), stream(three, labels="observed")):
        with pytest.raises(ConfigError, match="identity"):
            other.build("train", seed=0, rank=0, world=1).load_state_dict(state)


SMALL = [
    *("experiment=ergodic/standin", "model.vocab_size=259", "model.dim=16", "model.layers=1"),
    *("model.attention.heads=2", "model.mlp_hidden=16", f"stream.window={W}", "stream.budget=60"),
    *("stream.batch_size=4", "train.steps=2", "schedule.warmup=0", "evals.windows.windows=10"),
]


def test_a_run_says_under_which_labels_it_was(three: Path, tmp_path: Path) -> None:
    """In its configuration, meta.json and the file of losses; the two kinds are not folded."""
    told = [*SMALL, f"stream.path={three}", "stream.components=[anise,basil]"]
    files = {}
    for labels in ("observed", "permuted"):
        home = launch(
            compose(
                "pilot_smoke", [*told, f"stream.labels={labels}", f"run.dir={tmp_path / labels}"]
            )
        )
        assert yaml.safe_load((home / "config.yaml").read_text())["stream"]["labels"] == labels
        seed = {"label_seed": 0} if labels == "permuted" else {}
        assert json.loads((home / "meta.json").read_text())["data"] == {"labels": labels, **seed}
        page = json.loads((home / "artifacts/evals/windows.json").read_text())["details"]
        assert {key: page.get(key) for key in ("labels", *seed)} == {"labels": labels, **seed}
        files[labels] = read_losses(home / "artifacts/evals/windows/nll.safetensors")
        assert files[labels].more["labels"] == labels
        assert ("label_seed" in files[labels].more) == (labels == "permuted")
    with pytest.raises(
        ConfigError, match=r"labels: permuted; those of .* are observed: read a control"
    ):
        fold([files["observed"], files["permuted"]])


def test_labels_of_the_data_leave_the_hash_of_a_run_as_it_was(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [*SMALL, f"stream.path={three}", "stream.components=[anise,basil]"]
    drawn = "stream.labels=permuted"
    runs = [
        run_config(compose("pilot_smoke", [*told, *more]))
        for more in ([], [drawn], [drawn, "stream.label_seed=1"])
    ]
    plain, *others = map(config_hash, runs)
    assert len({plain, *others}) == 3
    monkeypatch.setattr("nl.config.run.LATER", ())
    assert config_hash(runs[0]) != plain, "the keys would be hashed"
    assert [config_hash(run) for run in runs[1:]] != others
