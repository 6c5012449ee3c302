"""stream=components: exact budgets, coverage, nested subsets, orders, ranks, resume, leaks."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError
from nl.core.batch import IGNORE
from nl.data.component_stream import ComponentStreamConfig, training_windows
from nl.data.component_windows import ComponentWindows, Cut, seeded_order
from nl.data.components import common_budget, open_components, shares
from nl.data.frozen_windows import frozen_windows
from nl.data.manifest import data_tokenizer, documents, read_manifest

W = 20


def config(tiny: Path, **more: Any) -> ComponentStreamConfig:
    fields = {"path": str(tiny), "window": W, "budget": 240, "batch_size": 8}
    return ComponentStreamConfig(**fields | more)


def rows_of(stream: Any, count: int) -> list[list[int]]:
    found: list[list[int]] = []
    for batch in itertools.islice(stream, count):
        found += torch.cat([batch.inputs, batch.targets[:, -1:]], 1).tolist()
    return found


def build(stream: ComponentStreamConfig, **more: Any) -> Any:
    return stream.build("train", **{"seed": 3, "rank": 0, "world": 1} | more)


def raw(tiny: Path, split: str, name: str) -> list[list[int]]:
    """Ids of every document, from the text."""
    encode = data_tokenizer(tiny).encode
    return [encode(document.text) for document in documents(tiny, split, name)]


@pytest.mark.parametrize("legacy", [False, True])
def test_an_epoch_covers_every_document_of_the_share_once(tiny: Path, legacy: bool) -> None:
    """Windows lie in documents, at one phase per document and epoch; all but < W + 1 tokens."""
    stream = config(tiny, components=("prose",), budget=400, legacy_w=legacy)
    data = open_components(tiny, "train", ("prose",), "header")
    windows = training_windows(data, stream.cut, {"prose": 400}, 3)
    texts = raw(tiny, "train", "prose")
    assert data.documents[0].length.tolist() == [len(text) for text in texts]
    prefix = windows.prefixes[0]
    phases: set[int] = set()
    for epoch in range(3):
        index = np.arange(400) + 400 * epoch
        source = np.zeros_like(index)
        document, number, start = windows.places(source, index)
        inputs, targets = windows(source, index)
        assert len(set(zip(document.tolist(), number.tolist(), strict=True))) == 400
        per = Counter(document.tolist())
        for i, place in enumerate(prefix.documents.tolist()):
            text, mine = texts[place], np.flatnonzero(document == place)
            full = len(text) // W if legacy else (len(text) - 1) // W
            last = i == len(prefix.documents) - 1
            assert per[place] == full - (prefix.last_cut if last else 0)
            starts = start[mine]
            assert (np.diff(starts) == W).all()
            assert starts[0] >= 0
            assert starts[-1] + W + (not legacy) <= len(text)
            phases.add(int(starts[0]))
            if not last:
                assert len(text) - W * full < W + 1
        for row in range(0, 400, 7):
            text = texts[int(document[row])][int(start[row]) :]
            width = W - legacy
            assert inputs[row].tolist() == text[:width]
            assert targets[row].tolist() == text[1 : width + 1]
    assert len(phases) > 5


@pytest.mark.parametrize("mixing", ["iid", "stratified", "cyclic", "sequential"])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_epoch_has_exactly_the_shares(tiny: Path, mixing: Any, legacy: bool) -> None:
    stream = config(tiny, mixing=mixing, legacy_w=legacy)
    assert stream.names == ("code", "prose")
    made = build(stream)
    for epoch in range(3):
        rows = np.arange(240) + 240 * epoch
        source, index = made.plan.locate(rows)
        assert Counter(source.tolist()) == {0: 120, 1: 120}
        assert Counter((index // 120).tolist()) == {epoch: 240}
        assert len(set(zip(source.tolist(), index.tolist(), strict=True))) == 240
        batches = source.reshape(-1, 8)
        if mixing == "stratified":
            assert (batches.sum(1) == 4).all()
        if mixing == "cyclic":
            assert (batches == np.arange(30)[:, None] % 2).all()
        if mixing == "sequential":
            assert (np.diff(source) >= 0).all()
        assert (mixing == "iid") != (np.diff(source[::8]) >= 0).all() or mixing != "iid"
    assert next(iter(made)).inputs.shape == (8, W - legacy)


def test_a_component_is_read_for_some_epochs_before_the_next(tiny: Path) -> None:
    made = build(config(tiny, mixing="sequential", epochs=3))
    source, index = made.plan.locate(np.arange(720))
    assert source.tolist() == [0] * 360 + [1] * 360
    assert Counter((index // 120).tolist()) == {0: 240, 1: 240, 2: 240}
    assert made.plan.tags(359) == {"epoch": 1, "phase": 0, "domain": "code"}
    assert made.plan.tags(720) == {"epoch": 3, "phase": 2, "domain": "code"}


def test_smaller_shares_are_parts_of_larger_ones(tiny: Path) -> None:
    """By document, whatever the number of components and in whatever order they are named."""
    found = []
    for names, share in ((("prose",), 240), (("code", "prose"), 120), (("prose", "code"), 60)):
        data = open_components(tiny, "train", names, "header")
        windows = training_windows(data, Cut(W), dict.fromkeys(names, share), 3)
        place = names.index("prose")
        found.append(set(windows.prefixes[place].documents.tolist()))
        assert windows.sizes[place] == share
    assert found[0] > found[1] > found[2]
    other = seeded_order(128, 4, "prose").tolist()
    assert seeded_order(128, 3, "prose").tolist() != other


@pytest.mark.parametrize("mixing", ["iid", "stratified", "cyclic", "sequential"])
def test_resume_in_the_middle_of_an_epoch_and_ranks(tiny: Path, mixing: Any) -> None:
    stream = config(tiny, mixing=mixing)
    whole = rows_of(build(stream), 70)  # into the third epoch
    part = build(stream)
    rows_of(part, 37)
    state = json.loads(json.dumps(part.state_dict()))
    again = build(stream)
    again.load_state_dict(state)
    assert rows_of(again, 33) == whole[37 * 8 :]
    for world in (2, 4):
        ranks = [rows_of(build(stream, rank=r, world=world), 70) for r in range(world)]
        share = 8 // world
        dealt = [
            row
            for batch in range(70)
            for mine in ranks
            for row in mine[batch * share : (batch + 1) * share]
        ]
        assert dealt == whole
    other = build(config(tiny, mixing=mixing, components=("prose",)))
    with pytest.raises(ConfigError, match="identity"):
        other.load_state_dict(state)
    assert whole != rows_of(build(stream, seed=4), 70)


def test_bos_makes_the_first_token_a_target(tiny: Path) -> None:
    plain, begun = (next(iter(build(config(tiny, bos=bos)))) for bos in (False, True))
    assert begun.inputs.shape == begun.targets.shape == (8, W + 1)
    assert begun.inputs[:, 0].tolist() == [data_tokenizer(tiny).bos_id] * 8
    assert torch.equal(begun.targets[:, 1:], plain.targets)
    assert torch.equal(begun.inputs[:, 1:], plain.inputs)
    assert config(tiny, bos=True).cut.context.tolist() == list(range(W + 1))
    assert config(tiny, legacy_w=True).cut.context.tolist() == list(range(1, W))


def test_held_out_windows_are_all_read_once(tiny: Path) -> None:
    stream = config(tiny)
    assert stream.splits() == ("train", "val/code", "val/prose")
    batches = list(stream.build("val/prose", seed=0, rank=0, world=1))
    expected = [
        text[j * W : j * W + W + 1]
        for text in raw(tiny, "val", "prose")
        for j in range((len(text) - 1) // W)
    ]
    found = [
        [*row, int(target)]
        for b in batches
        for row, target in zip(b.inputs.tolist(), b.targets[:, -1], strict=True)
        if target != IGNORE
    ]
    assert found == expected
    assert sum(b.weight for b in batches) == W * len(expected)


def test_shares_are_exact_or_an_error_with_counts() -> None:
    have = {"a": 100, "b": 30, "c": 61}
    assert shares(have, 90, "error") == {"a": 30, "b": 30, "c": 30}
    with pytest.raises(ConfigError, match=r"40 of each of 3 .* b has 30; available: a 100, b 30"):
        shares(have, 120, "error")
    with pytest.raises(ConfigError, match=r"100; 3 components cannot .* set 99 or 102"):
        shares(have, 100, "error")
    with pytest.raises(ConfigError, match=r"budget: 2; 3 components .* set 3"):
        shares(have, 2, "error")
    assert shares(have, 120, "redistribute") == {"a": 45, "b": 30, "c": 45}
    assert shares(have, 160, "redistribute") == {"a": 69, "b": 30, "c": 61}
    for budget in range(3, 192):
        found = shares(have, budget, "redistribute")
        assert sum(found.values()) == budget
        assert all(found[name] <= have[name] for name in have)
    with pytest.raises(ConfigError, match="all components together have 191"):
        shares(have, 192, "redistribute")
    assert common_budget(have) == 30
    assert common_budget({"a": 500, "b": 130}) == 130
    with pytest.raises(ConfigError, match="no multiple of 6"):
        common_budget({"a": 9, "b": 5, "c": 5})


def test_a_budget_of_nothing_is_that_of_the_smallest_component(tiny: Path) -> None:
    both, one = (config(tiny, budget=0, components=c) for c in ((), ("prose",)))
    data = open_components(tiny, "train", ("code", "prose"), "header")
    least = min(int(d.windows(W, legacy=False).sum()) for d in data.documents)
    assert sum(both.share_of().values()) == one.share_of()["prose"] == least - least % 2
    largest = config(tiny, top=1, budget=100)
    assert largest.names == ("prose",)
    assert config(tiny, top=2, top_by="documents").names == ("prose", "code")


def test_frozen_windows_are_drawn_once_and_kept(own_tiny: Path) -> None:
    stream = config(own_tiny)
    first = stream.frozen("val", 40, 0)
    again = config(own_tiny, components=("prose",)).frozen("val", 40, 0)
    assert first.digest == again.digest
    assert torch.equal(first.inputs, again.inputs)
    assert (first.facts["trained_on"], again.facts["trained_on"]) == (("code", "prose"), ("prose",))
    assert first.components == ("code", "prose")
    texts = {name: raw(own_tiny, "val", name) for name in first.components}
    offset = {"code": 0, "prose": len(texts["code"])}
    for row in range(len(first.component)):
        name = first.components[first.component[row]]
        text = texts[name][first.document[row] - offset[name]]
        ids = [*first.inputs[row].tolist(), int(first.targets[row, -1])]
        assert any(ids == text[a : a + W + 1] for a in range(0, len(text), W))
    for code, name in enumerate(first.components):
        per = Counter(first.document[first.component == code].tolist())
        able = [i for i, text in enumerate(texts[name]) if len(text) > W]
        # None gives a second window while another that could give one has given none.
        assert max(per.values()) == 1 or len(per) == len(able)
    assert first.bytes is not None
    assert first.bytes.sum() == len(first.component) * W  # a byte per token
    assert stream.frozen("val", 40, 1).digest != first.digest
    assert replace(stream, bos=True).frozen("val", 40, 0).digest != first.digest
    [file] = [p for p in (own_tiny / "windows").iterdir() if first.digest in _about(p)]
    with np.load(file) as kept:
        columns = dict(kept)
    columns["offset"][0] += 1
    np.savez_compressed(file, **columns)
    with pytest.raises(ConfigError, match="the file was changed"):
        stream.frozen("val", 40, 0)


def _about(path: Path) -> str:
    with np.load(path) as kept:
        return str(kept["about"])


def test_held_out_documents_are_not_in_train(own_tiny: Path) -> None:
    """Digests of documents are disjoint; where one is in both, no list is drawn."""
    from nl.data.frozen_windows import digests

    parts = {
        split: set(digests(open_components(own_tiny, split, ("code", "prose"), "header")))
        for split in ("train", "val", "test")
    }
    assert not parts["train"] & parts["val"]
    assert not parts["train"] & parts["test"]
    corpus = own_tiny / "corpus"
    train, val = corpus / "train/prose.jsonl", corpus / "val/prose.jsonl"
    val.write_text(val.read_text() + train.read_text().splitlines(keepends=True)[5])
    manifest = json.loads((corpus / "manifest.json").read_text())
    from nl.data.files import sha256_file
    from nl.data.prep.shard import shard_corpus

    row = manifest["splits"]["val"]["prose"][0]
    row |= {"documents": row["documents"] + 1, "sha256": sha256_file(val)}
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    shard_corpus(corpus, "bytes", own_tiny)
    with pytest.raises(ConfigError, match=r"1 documents of split 'val' are in train.*'prose'"):
        frozen_windows(own_tiny, "val", Cut(W), 10, 0, {})
    frozen_windows(own_tiny, "test", Cut(W), 10, 0, {})


def test_a_directory_whose_splits_are_mixed_up_is_refused(own_tiny: Path) -> None:
    file = own_tiny / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["splits"]["val"]["prose"] = manifest["splits"]["train"]["prose"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="listed under split 'val', but it is of 'train'"):
        build(config(own_tiny))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"components": ("cs.DS",)},
            r"components: 'cs.DS'; split 'train' of .* has code \(\d",
        ),
        ({"components": ("prose", "prose")}, "name each once"),
        ({"components": ("prose",), "top": 1}, "top: 1; components are named"),
        ({"top": 3}, "top: 3; tiny has 2 components"),
        ({"top_by": "documents"}, "top_by: documents; is of top"),
        ({"epochs": 2}, "epochs: 2; is of mixing=sequential"),
        ({"deficit": "redistribute", "mixing": "cyclic"}, "needs equal shares"),
        ({"window": 0}, "window: 0; must be >= 1"),
        ({"window": 1, "legacy_w": True}, "window: 1; must be >= 2"),
        ({"budget": 241}, "stream.budget: 241; 2 components .* set 240 or 242"),
        ({"budget": 10**6}, r"1,000,000 windows, 500,000 of each of 2 .* available: code [\d,]+"),
        ({"mixing": "stratified", "batch_size": 7}, "use a multiple of 2"),
        ({"window": 10**5}, "0 windows|no multiple|has 0"),
    ],
)
def test_bad_settings(tiny: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config(tiny, **fields))


def test_redistributed_budgets_are_exact(tiny: Path) -> None:
    have = config(tiny, budget=2).share_of()
    data = open_components(tiny, "train", ("code", "prose"), "header")
    code, prose = (int(d.windows(W, legacy=False).sum()) for d in data.documents)
    assert have == {"code": 1, "prose": 1}
    budget = 2 * min(code, prose) + 11
    stream = config(tiny, budget=budget, deficit="redistribute")
    made = build(stream)
    assert isinstance(made.fetch, ComponentWindows)
    assert sum(made.fetch.sizes) == budget
    assert min(made.fetch.sizes) == min(code, prose)
    source, _ = made.plan.locate(np.arange(budget))
    assert Counter(source.tolist()) == dict(enumerate(made.fetch.sizes))


def test_every_subset_reads_as_many_windows(tiny: Path) -> None:
    names = tuple(read_manifest(tiny).splits["train"])
    subsets = [c for k in (1, 2) for c in itertools.combinations(names, k)]
    totals = {sum(config(tiny, components=s).share_of().values()) for s in subsets}
    assert totals == {240}
