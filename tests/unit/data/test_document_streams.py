"""Streams that know where documents begin, and rows that go on where they stood."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import nl
import nl.assembly
from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.config.run import RunConfig
from nl.core.batch import IGNORE, Batch
from nl.data.manifest import data_tokenizer
from nl.data.phases import PhaseConfig, PhaseStreamConfig
from nl.data.shard_stream import ShardStreamConfig


def config(tiny: Path, **more: Any) -> ShardStreamConfig:
    return ShardStreamConfig(path=str(tiny), **({"seq_len": 32, "batch_size": 4} | more))


def check_row(inputs: list[int], targets: list[int], starts: tuple[int, ...], eos: int) -> None:
    """Documents end with EOS and nowhere else: what follows one begins the next."""
    after = [t + 1 for t, token in enumerate(inputs[:-1]) if token == eos]
    assert [s for s in starts if s] == after
    for t, (token, target) in enumerate(zip(inputs, targets, strict=True)):
        assert (target == IGNORE) == (token == eos), t
        if target != IGNORE and t + 1 < len(inputs):
            assert target == inputs[t + 1]


@pytest.mark.parametrize("split", ["train", "val/code"])
@pytest.mark.parametrize("seq_len", [9, 64])
def test_boundaries_are_where_a_document_ended(tiny: Path, split: str, seq_len: int) -> None:
    eos = data_tokenizer(tiny).eos_id
    plain = config(tiny, seq_len=seq_len).build(split, seed=1, rank=0, world=1)
    apart = config(tiny, seq_len=seq_len, documents="reset").build(split, seed=1, rank=0, world=1)
    seen = 0
    for one, two in islice(zip(plain, apart, strict=False), 40):
        assert torch.equal(one.inputs, two.inputs)
        assert one.starts is None
        assert two.starts is not None
        assert two.weight == int((two.targets != IGNORE).sum())
        for row, starts in enumerate(two.starts):
            if bool((one.targets[row] != IGNORE).all()):
                check_row(two.inputs[row].tolist(), two.targets[row].tolist(), starts, eos)
                seen += sum(1 for s in starts if s)
    assert seen > 0


def test_phases_know_boundaries_too(tiny: Path) -> None:
    eos = data_tokenizer(tiny).eos_id
    phases = (PhaseConfig(domain="code", steps=3), PhaseConfig(domain="prose", steps=3))
    chosen = PhaseStreamConfig(path=str(tiny), phases=phases, seq_len=50, documents="reset")
    for batch in islice(chosen.build("train", seed=0, rank=0, world=1), 6):
        for row, starts in enumerate(batch.starts or ()):
            check_row(batch.inputs[row].tolist(), batch.targets[row].tolist(), starts, eos)


def lanes(stream: Any, count: int) -> list[Batch]:
    return list(islice(stream, count))


@pytest.mark.parametrize("split", ["train", "val/prose"])
def test_rows_go_on_where_they_stood(tiny: Path, split: str) -> None:
    chosen = config(tiny, order="contiguous", documents="reset", domains=("prose",))
    batches = lanes(chosen.build(split, seed=0, rank=0, world=1), 6)
    assert len(batches) == 6
    assert all(starts[:1] == (0,) for starts in batches[0].starts or ())
    for before, after in pairwise(batches):
        for row in range(4):
            target = int(before.targets[row, -1])
            begins = 0 in (after.starts or ())[row]
            assert (target == IGNORE) if begins else (target == int(after.inputs[row, 0]))


def test_lanes_are_cut_from_the_text_in_order_and_begin_anew(tiny: Path) -> None:
    chosen = config(tiny, order="contiguous", domains=("code",), seq_len=128)
    stream = chosen.build("train", seed=0, rank=0, world=1)
    length = stream.plan.length
    batches = lanes(stream, length + 1)
    whole = config(tiny, domains=("code",), seq_len=128)
    windows = [tuple(t.tolist()) for b in lanes_in_order(whole) for t in b.inputs]
    read = [tuple(b.inputs[row].tolist()) for row in range(4) for b in batches[:length]]
    assert read == windows[: 4 * length]
    assert torch.equal(batches[length].inputs, batches[0].inputs)
    assert [b.tags["epoch"] for b in (batches[0], batches[length])] == [0, 1]
    assert len(set(read)) > len(read) / 2


def lanes_in_order(chosen: ShardStreamConfig) -> list[Batch]:
    """Every training window once, in the order of the data."""
    from nl.data.order import SequentialPlan
    from nl.data.stream import RowStream
    from nl.data.windows import TokenWindows

    windows = TokenWindows(chosen.path, "train", chosen.domains, chosen.seq_len, False)
    plan = SequentialPlan(windows.sizes)
    return list(RowStream(plan, windows, batch_size=1, rank=0, world=1, identity="all"))


def test_the_order_does_not_depend_on_ranks_and_resumes(tiny: Path) -> None:
    chosen = config(tiny, order="contiguous", documents="reset")
    one = chosen.build("train", seed=0, rank=0, world=1)
    two = [chosen.build("train", seed=0, rank=rank, world=2) for rank in (0, 1)]
    whole = lanes(one, 5)
    parts = [lanes(stream, 5) for stream in two]
    for n, batch in enumerate(whole):
        assert torch.equal(torch.cat([parts[0][n].inputs, parts[1][n].inputs]), batch.inputs)
        assert (parts[0][n].starts or ()) + (parts[1][n].starts or ()) == batch.starts
    again = chosen.build("train", seed=0, rank=0, world=1)
    again.load_state_dict({**one.state_dict(), "row": 12})
    assert torch.equal(lanes(again, 1)[0].inputs, whole[3].inputs)


def test_settings_that_contradict_are_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="weights"):
        config(tiny, order="contiguous", domains=("code",), weights=(1.0,))
    with pytest.raises(ConfigError, match=r"stream\.batch_size"):
        config(tiny, order="contiguous", batch_size=512, seq_len=2048).build(
            "train", seed=0, rank=0, world=1
        )
    with pytest.raises(ConfigError, match="documents"):
        structure(StreamConfig, {"kind": "shards", "path": str(tiny), "documents": "both"})


def small_run(tiny: Path, tmp_path: Path, **stream: Any) -> RunConfig:
    data = {
        "name": "documents",
        "model": {
            "kind": "language",
            "vocab_size": 260,
            "dim": 16,
            "layers": 1,
            "block": "hope_attention",
            "attention": {"heads": 2},
            "cms": {"periods": [16, 32]},
        },
        "stream": {"kind": "shards", "path": str(tiny), "seq_len": 48, "batch_size": 4, **stream},
        "objective": {"kind": "next_token"},
        "optim": {"kind": "adamw", "lr": 0.01},
        "schedule": {"kind": "cosine", "warmup": 1},
        "train": {"steps": 3, "carry": True, "device": "cpu", "validate_batches": 2},
        "run": {"root": str(tmp_path)},
    }
    return structure(RunConfig, data)


def test_carry_needs_rows_that_go_on(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.carry.*stream\.order=contiguous"):
        nl.launch(small_run(tiny, tmp_path))
    path = nl.launch(small_run(tiny, tmp_path, order="contiguous", documents="reset"))
    assert (path / "summary.json").is_file()


def test_rows_that_share_a_memory_cannot_begin_documents(tiny: Path, tmp_path: Path) -> None:
    run = small_run(tiny, tmp_path, order="contiguous", documents="reset")
    model: Any = run.model
    shared = replace(run, model=replace(model, cms=replace(model.cms, scope="batch")))
    with pytest.raises(ConfigError, match=r"stream\.documents.*model\.cms\.scope=row"):
        nl.launch(shared)


def test_carried_rows_are_read_as_whole_documents(tiny: Path, tmp_path: Path) -> None:
    """The objective over carried segments gives the loss of every document read by itself."""
    torch.set_default_dtype(torch.float64)
    try:
        run = small_run(tiny, tmp_path, order="contiguous", documents="reset")
        objective: Any = nl.assembly.build_objective(run)
        stream: Any = run.stream
        state, total, documents = None, 0.0, [[[]] for _ in range(4)]
        for batch in lanes(stream.build("train", seed=0, rank=0, world=1), 4):
            step = objective(batch.to("cpu"), state, None)
            state, total = step.state, total + float(step.loss.detach())
            for row, starts in enumerate(batch.starts or ()):
                for t, token in enumerate(batch.inputs[row].tolist()):
                    if t in starts:
                        documents[row].append([])
                    documents[row][-1].append((token, int(batch.targets[row, t])))
        alone, position = 0.0, 0
        for row in documents:
            position = 0
            for document in row:
                if document:
                    x, y = torch.tensor(document).T[:, None]
                    fresh = objective.model.init_state(1, position=position)
                    alone += float(objective.model.nll(x, y, fresh)[0].detach().sum())
                    position += len(document)
        assert position == 4 * 48
        assert sum(len(row) for row in documents) > 8
        assert abs(alone - total) < 1e-9 * total
    finally:
        torch.set_default_dtype(torch.float32)


def shards_of(root: Path, parts: list[list[str]]) -> tuple[Path, list[list[int]]]:
    """A data directory with one shard per part in every split, and its documents as ids."""
    from nl.config import unstructure
    from nl.data.documents import SCHEMA, CorpusManifest, Document, TextFile, encode_jsonl
    from nl.data.files import sha256_file, write_json
    from nl.data.prep.shard import shard_corpus

    files = []
    for number, part in enumerate(parts):
        path = root / "corpus" / f"part_{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jsonl([Document(t, "") for t in part]))
        size = sum(len(t) for t in part)
        info = TextFile(file=path.name, documents=len(part), bytes=size, sha256=sha256_file(path))
        files.append(info)
    splits = {split: {"text": tuple(files)} for split in ("train", "val", "test")}
    manifest = CorpusManifest(schema=SCHEMA, name="made", splits=splits)
    write_json(root / "corpus" / "manifest.json", unstructure(manifest))
    shard_corpus(root / "corpus", "bytes", root / "data")
    return root / "data", [[*t.encode(), 258] for part in parts for t in part]


LONG = [
    ["a" * 70, "b" * 3, "c" * 200],
    ["d" * 31, "e" * 31, "f" * 95],
    ["g" * 15],
    ["h", "", "i" * 64, "j" * 5],
]
"""Documents longer than a window, as long as one, empty; shards that end inside a document."""


@pytest.mark.parametrize("split", ["train", "val", "val/text", "test", "test/text"])
@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
@pytest.mark.parametrize("seq_len", [1, 16, 32])
def test_boundaries_over_documents_and_shards(
    tmp_path: Path, split: str, order: str, seq_len: int
) -> None:
    """Every window is what a walk over the documents of its shard gives, under every split."""
    root, documents = shards_of(tmp_path, LONG)
    wanted: dict[tuple[int, ...], tuple[list[int], tuple[int, ...]]] = {}
    ids = iter(documents)
    for part in LONG:
        tokens: list[int] = []
        begins: set[int] = set()
        for _ in part:
            begins.add(len(tokens))
            tokens += next(ids)
        for at in range(0, len(tokens) - seq_len, seq_len):
            targets = [
                IGNORE if i + 1 in begins else tokens[i + 1] for i in range(at, at + seq_len)
            ]
            starts = tuple(i - at for i in range(at, at + seq_len) if i in begins)
            key = (*tokens[at : at + seq_len], *targets, *starts)
            wanted[key] = (targets, starts)
    chosen: Any = ShardStreamConfig(
        path=str(root),
        seq_len=seq_len,
        batch_size=2,
        documents="reset",
        order=order,  # type: ignore[arg-type]
    )
    stream = chosen.build(split, seed=0, rank=0, world=1)
    seen: set[tuple[int, ...]] = set()
    for number, batch in enumerate(islice(stream, 400)):
        assert batch.starts is not None
        begins_lane = order == "contiguous" and (number % stream.plan.length == 0)
        for row, starts in enumerate(batch.starts):
            targets = batch.targets[row].tolist()
            if set(targets) == {IGNORE} and not starts:
                continue  # filled up
            inputs = batch.inputs[row].tolist()
            keys = [(*inputs, *targets, *starts)]
            if begins_lane:
                assert starts[:1] == (0,)
                keys.append((*inputs, *targets, *starts[1:]))
            assert any(key in wanted for key in keys)
            seen.update(key for key in keys if key in wanted)
    if order == "shuffled":
        assert {k for k, (targets, _) in wanted.items() if set(targets) != {IGNORE}} <= seen
