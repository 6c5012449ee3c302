"""Windows are what a slice of the token list is; splits and domains are checked."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.data.manifest import read_manifest
from nl.data.phases import PhaseConfig, PhaseStreamConfig
from nl.data.shard_stream import ShardStreamConfig

Windows = Callable[[Path, str, str, int], list[list[int]]]


@pytest.mark.parametrize("domain", ["prose", "code"])
@pytest.mark.parametrize("seq_len", [7, 32])
def test_validation_is_every_window_once_in_order(
    tiny: Path, naive_windows: Windows, domain: str, seq_len: int
) -> None:
    cfg = ShardStreamConfig(path=str(tiny), seq_len=seq_len, batch_size=4)
    wanted = naive_windows(tiny, "val", domain, seq_len)
    got = []
    for batch in cfg.build(f"val/{domain}", seed=0, rank=0, world=1):
        assert batch.inputs.dtype == torch.int32
        for row, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
            if targets[0] != IGNORE:
                got.append([*inputs.tolist(), int(targets[-1])])
                assert targets[:-1].tolist() == inputs[1:].tolist(), row
    assert got == wanted
    assert len(got) > 4


def test_training_epoch_is_every_window_once(tiny: Path, naive_windows: Windows) -> None:
    """Several shards per domain, both domains by size: one epoch of each."""
    assert len(read_manifest(tiny).domain("train", "prose", tiny).shards) > 1
    cfg = ShardStreamConfig(path=str(tiny), seq_len=32, batch_size=1, domains=("prose",))
    wanted = naive_windows(tiny, "train", "prose", 32)
    stream = cfg.build("train", seed=0, rank=0, world=1)
    got = [
        [*batch.inputs[0].tolist(), int(batch.targets[0, -1])]
        for batch in itertools.islice(stream, len(wanted))
    ]
    assert Counter(map(tuple, got)) == Counter(map(tuple, wanted))
    assert got != wanted


def test_weights_decide_the_share_of_rows(tiny: Path, naive_windows: Windows) -> None:
    cfg = ShardStreamConfig(
        path=str(tiny), seq_len=32, batch_size=10, domains=("code", "prose"), weights=(0.3, 0.7)
    )
    code = {tuple(w[:-1]) for w in naive_windows(tiny, "train", "code", 32)}
    prose = {tuple(w[:-1]) for w in naive_windows(tiny, "train", "prose", 32)}
    assert not code & prose
    for batch in itertools.islice(cfg.build("train", seed=0, rank=0, world=1), 12):
        assert sum(tuple(row) in code for row in batch.inputs.tolist()) == 3


def test_splits_and_vocabulary(tiny: Path) -> None:
    cfg = ShardStreamConfig(path=str(tiny))
    assert cfg.splits() == ("train", "val/code", "val/prose")
    assert cfg.vocab_size() == 259
    whole = sum(b.weight for b in cfg.build("val", seed=0, rank=0, world=1))
    parts = [cfg.build(s, seed=0, rank=0, world=1) for s in cfg.splits()[1:]]
    assert whole == sum(b.weight for p in parts for b in p) > 0
    assert sum(b.weight for b in cfg.build("test/code", seed=0, rank=0, world=1)) > 0


def test_one_domain_only(tiny: Path) -> None:
    cfg = ShardStreamConfig(path=str(tiny), domains=("code",))
    assert cfg.splits() == ("train", "val/code")


def test_phases_read_one_domain_at_a_time(tiny: Path, naive_windows: Windows) -> None:
    steps = {"prose": 3, "code": 2}
    phases = tuple(PhaseConfig(domain=d, steps=s) for d, s in (*steps.items(), ("prose", 1)))
    cfg = PhaseStreamConfig(path=str(tiny), phases=phases, seq_len=32, batch_size=4)
    known = {d: {tuple(w[:-1]) for w in naive_windows(tiny, "train", d, 32)} for d in steps}
    plan = [("prose", 0)] * 3 + [("code", 1)] * 2 + [("prose", 2)]
    plan += [(domain, phase + 3) for domain, phase in plan]
    seen: dict[str, list[tuple[int, ...]]] = {"prose": [], "code": []}
    stream = cfg.build("train", seed=1, rank=0, world=1)
    for (domain, phase), batch in zip(plan, stream, strict=False):
        assert (batch.tags["domain"], batch.tags["phase"]) == (domain, phase)
        rows = [tuple(row) for row in batch.inputs.tolist()]
        assert known[domain].issuperset(rows)
        seen[domain] += rows
    for domain, rows in seen.items():
        count = len(naive_windows(tiny, "train", domain, 32))
        assert len(set(rows)) == min(count, len(rows)), "a phase goes on where the last one stopped"
    assert cfg.splits() == ("train", "val/prose", "val/code")
    assert cfg.vocab_size() == 259


def data(path: Path, **fields: object) -> dict[str, object]:
    return {"kind": "shards", "path": str(path), **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_len": 0}, "stream.seq_len: 0; must be >= 1"),
        ({"batch_size": -1}, "stream.batch_size: -1"),
        ({"seq_len": "many"}, "stream.seq_len: expected int, got 'many'"),
        ({"weights": [1.0]}, "stream.weights: 1 numbers for 0 domains"),
        ({"domains": ["a", "b"], "weights": [1.0, 0.0]}, r"stream.weights: \[1.0, 0.0\]; must be"),
        ({"domains": ["a", "a"]}, "stream.domains: .* name each once"),
        ({"sequence": 5}, "stream: unknown 'sequence'. Did you mean 'seq_len'"),
        ({"kind": "phases", "phases": []}, "stream.phases: empty"),
        ({"kind": "phases", "phases": [{"domain": "a", "steps": 0}]}, r"phases\[0\].steps: 0"),
        ({"kind": "phases"}, "stream.phases: missing"),
    ],
)
def test_bad_settings(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(StreamConfig, data(tmp_path, **fields), "stream")


@pytest.mark.parametrize(
    ("split", "fields", "message"),
    [
        (
            "train",
            {"domains": ("verse",)},
            "no domain 'verse' in split 'train'. Known: code, prose",
        ),
        ("val/verse", {}, "no domain 'verse' in split 'val'"),
        ("validation", {}, "split 'validation' .* use train, val, test"),
        ("train", {"seq_len": 10**6}, "not one window .* lower stream.seq_len"),
    ],
)
def test_bad_splits(tiny: Path, split: str, fields: dict[str, object], message: str) -> None:
    cfg = ShardStreamConfig(path=str(tiny), **fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        cfg.build(split, seed=0, rank=0, world=1)


def test_missing_data_names_the_recipe(tmp_path: Path) -> None:
    cfg = ShardStreamConfig(path=str(tmp_path / "none"))
    for ask in (cfg.splits, cfg.vocab_size, lambda: cfg.build("train", seed=0, rank=0, world=1)):
        with pytest.raises(ConfigError, match=r"none/manifest.json: no such file.*run_sample.sh"):
            ask()
