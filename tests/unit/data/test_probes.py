"""Every probe: the oracle is right, shortcuts are not, splits are disjoint, rows are functions."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import nl.assembly  # noqa: F401 - registers every part
from nl.config import ConfigError, structure, table
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.data.probe import ProbeConfig, score
from nl.data.probe_recall import last_of, log_bucket, recalled
from nl.data.probe_states import LANGUAGES, accepts, initial, step

CASES: dict[str, dict[str, Any]] = {
    "mqar": {},
    "mqar even gaps": {"kind": "mqar", "power": 1.0, "length": 32},
    "mqar_update": {},
    "selective_copy": {},
    "induction": {},
    "state_tracking": {"length": 16},
    "state_tracking S3": {"kind": "state_tracking", "group_name": "S3", "test_length": 40},
    "state_tracking A5": {"kind": "state_tracking", "group_name": "A5"},
    "flipflop": {},
    **{f"formal {name}": {"kind": "formal", "language": name} for name in LANGUAGES},
    "formal_mix": {},
    "mad_recall": {"length": 64},
    "mad_recall many ids": {"vocab": 64},
    "mad_noisy_recall": {},
    "mad_noisy_recall mostly": {"noise": 0.8},
    "mad_fuzzy_recall": {},
    "mad_fuzzy_recall many ids": {"vocab": 128},
    "mad_memorization": {},
    "mad_compression": {},
    "mad_compression shuffled": {"shuffled": True, "vocab": 64},
    "cl_mqar_stream": {},
    "cl_remap": {},
    "nonstat_online": {"test_size": 64, "val_size": 32},
    "nonstat_online in turns": {"test_size": 64, "val_size": 32, "turns": 4, "test_segments": 8},
}


def probe(case: str, **more: Any) -> ProbeConfig:
    fields = {
        "kind": case.partition(" ")[0],
        "test_size": 200,
        "val_size": 50,
        **CASES[case],
        **more,
    }
    return structure(StreamConfig, fields)  # type: ignore[return-value]


def test_every_probe_is_here() -> None:
    kinds = {kind for kind, cls in table("stream").items() if issubclass(cls, ProbeConfig)}
    assert kinds == {case.partition(" ")[0] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_is_right_and_shortcuts_are_not(case: str) -> None:
    config = probe(case)
    found = config.examples("test", 0)
    assert score(config.oracle(found.inputs), found.targets) == {"accuracy": 1.0, "exact": 1.0}
    assert found.inputs.min() >= 0
    assert max(found.inputs.max(), found.targets.max()) < config.tokens() == config.vocab_size()
    assert config.shortcuts()
    for name, guess in config.shortcuts().items():
        reached = score(guess(found.inputs), found.targets)["accuracy"]
        assert reached < config.bound() < 1, name
    scored = found.targets != IGNORE
    assert scored.any(axis=1).all()
    assert 0 < config.chance() < config.bound()
    assert config.chance() <= 0.5
    for values in found.slices.values():
        assert values.shape == found.inputs.shape
        assert len(set(values[scored].tolist())) > 1, "a slice tells something apart"


@pytest.mark.parametrize("case", CASES)
def test_no_row_is_in_two_splits(case: str) -> None:
    config = probe(case)
    if not config.disjoint:
        longest = max(int((row != IGNORE).sum()) for row in config.examples("val", 0).targets)
        test = config.examples("test", 0)
        assert test.inputs.shape[1] > config.examples("val", 0).inputs.shape[1] >= longest
        return
    parts = [config.examples(split, 0) for split in ("train", "val", "test")]
    rows = [{row.tobytes() for row in part.inputs} for part in parts]
    for one, other in itertools.combinations(rows, 2):
        assert not one & other


@pytest.mark.parametrize(
    "case",
    ["mqar", "state_tracking", "flipflop", "formal dyck1", "mad_fuzzy_recall", "cl_remap"],
)
def test_a_row_is_a_function_of_its_number(case: str) -> None:
    config = probe(case)
    some = config.rows("train", 5, np.asarray([7, 3, 7, 1 << 35]))
    again = config.rows("train", 5, np.asarray([1 << 35, 3]))
    assert (some[0].inputs == some[2].inputs).all()
    assert (some[3].inputs == again[0].inputs).all()
    assert (some[1].targets == again[1].targets).all()
    assert (some[1].inputs != config.rows("train", 6, np.asarray([3]))[0].inputs).any()
    whole = probe(case, batch_size=8).build("train", seed=1, rank=0, world=1)
    halves = [probe(case, batch_size=8).build("train", seed=1, rank=r, world=2) for r in (0, 1)]
    for _ in range(3):
        batch = next(iter(whole))
        parts = [next(iter(half)) for half in halves]
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert batch.weight == sum(part.weight for part in parts)
        assert batch.weight == int((batch.targets != IGNORE).sum())


@pytest.mark.parametrize("case", ["mqar_update", "formal an_bn"])
def test_streams_resume_and_end(case: str) -> None:
    config = probe(case, batch_size=16)
    stream = config.build("train", seed=0, rank=0, world=1)
    batches = [batch.inputs for batch in itertools.islice(stream, 3)]
    other = config.build("train", seed=0, rank=0, world=1)
    other.load_state_dict({**stream.state_dict(), "row": 32})
    assert torch.equal(next(iter(other)).inputs, batches[2])
    rows = sum(
        int((b.targets != IGNORE).any(1).sum())
        for b in config.build("val", seed=0, rank=0, world=1)
    )
    assert rows == 50
    few = probe(case, train_size=5, batch_size=5).build("train", seed=0, rank=0, world=1)
    first, second = itertools.islice(few, 2)
    assert sorted(first.inputs.tolist()) == sorted(second.inputs.tolist())


GOLDEN = {
    "mqar": "5571ebb11e8d",
    "mqar_update": "a27bad04a936",
    "selective_copy": "e150738e3089",
    "induction": "61c4591c86ae",
    "state_tracking S3": "068a33c18f8d",
    "flipflop": "e6ca511a9bed",
    "formal shuffle2": "8cf04ec97c02",
    "mad_recall": "b9a5e749b3d9",
    "mad_noisy_recall": "b1d3070fcbcb",
    "mad_fuzzy_recall": "bff40fde3567",
    "mad_memorization": "c5b9b547c249",
    "mad_compression": "79c8152d1189",
    "mad_compression shuffled": "70956587752a",
    "cl_mqar_stream": "71b005aef623",
    "cl_remap": "dd2601a6b27e",
    "nonstat_online in turns": "5ea01127dd68",
}


@pytest.mark.parametrize("case", GOLDEN)
def test_rows_are_those_of_last_time(case: str) -> None:
    found = probe(case).rows("test", 0, np.arange(64))
    raw = b"".join(row.inputs.tobytes() + row.targets.tobytes() for row in found)
    assert hashlib.sha256(raw).hexdigest()[:12] == GOLDEN[case]


def test_recall_by_hand() -> None:
    line = np.asarray([[1, 9, 2, 8, 1, 7, 2, 1]])
    assert recalled(line, first=True)[0].tolist()[4:] == [9, IGNORE, 8, 9]
    assert recalled(line, first=False, reads=2)[0, -2:].tolist() == [8, 7]
    assert last_of(line, 7)[0].tolist() == [IGNORE, 9, 9, 8, 8, 7, 7, 7]
    assert log_bucket(np.asarray([0, 1, 2, 3, 4, 9])).tolist() == [0, 1, 2, 2, 4, 8]


WORDS = {
    "parity": (["", "abb", "bb"], ["b", "ab"], []),
    "aa_star": (["", "aa"], ["a"], []),
    "abab_star": (["", "abab"], ["ab", "aba"], ["b", "aa"]),
    "an_bn": (["", "aabb"], ["a", "aab"], ["b", "aba", "abb"]),
    "an_bn_cn": (["", "abc", "aabbcc"], ["a", "aab", "aabbc"], ["ac", "abca", "aabc"]),
    "dyck1": (["", "()", "(())()"], ["(", "()("], [")", "())"]),
    "shuffle2": (["", "([)]"], ["(", "[("], [")", "(]"]),
    "reset_dyck1": (["", "()", "((1", "1"], ["("], [")", "(1)"]),
}
"""Strings of each language, prefixes of some, and what begins none."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_by_hand(language: str) -> None:
    def end(word: str) -> tuple[int, ...] | None:
        state: tuple[int, ...] | None = initial(language)
        for letter in word:
            if state is None:
                return None
            state = step(language, state, LANGUAGES[language].index(letter))
        return state

    inside, prefixes, outside = WORDS[language]
    for word in inside:
        state = end(word)
        assert state is not None
        assert accepts(language, state), word
    for word in prefixes:
        state = end(word)
        assert state is not None
        assert not accepts(language, state), word
    for word in outside:
        assert end(word) is None, word


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": "mqar", "length": 10}, "length: 10; must be even and at least 4 pairs"),
        ({"kind": "mqar", "vocab": 8}, "vocab: 8; 4 pairs need more than 8"),
        ({"kind": "mqar_update", "vocab": 8, "updates": 4}, "vocab: 8; must be even, half of it"),
        ({"kind": "selective_copy", "copied": 99}, "copied: 99; must be 1 to length"),
        ({"kind": "induction", "length": 2}, "length: 2; must be at least 4"),
        ({"kind": "state_tracking", "group_name": "Z3"}, "group_name: 'Z3': no group"),
        ({"kind": "flipflop", "ignore": 1.0}, "ignore: 1.0; must be in"),
        ({"kind": "formal", "language": "dyck9"}, "language: unknown 'dyck9'"),
        ({"kind": "formal", "test_longest": 20}, "test_longest: 20; must be above longest"),
        ({"kind": "mad_recall", "length": 7}, "length: 7; must be even and at least 4"),
        ({"kind": "mad_noisy_recall", "vocab": 19}, "vocab: 19; 3 ids of keys and values, must be"),
        ({"kind": "mad_noisy_recall", "noise": 1.0}, "noise: 1.0; must be in"),
        ({"kind": "mad_fuzzy_recall", "keys": 9}, "keys: 9; must be 2 to 7"),
        ({"kind": "mad_fuzzy_recall", "motif": 1}, "motif: 1; must be >= 2"),
        ({"kind": "mad_fuzzy_recall", "length": 8}, "length: 8; must be at least 12"),
        ({"kind": "mad_memorization", "vocab": 4}, "vocab: 4; must be at least 5"),
        ({"kind": "mad_compression", "length": 2}, "length: 2; must be at least 3"),
        ({"kind": "cl_mqar_stream", "phases": 1}, "phases: 1; must be >= 2"),
        ({"kind": "cl_mqar_stream", "pairs": 40}, "length: 64; must be even and at least 4 pairs"),
        ({"kind": "cl_remap", "values": 4}, "values: 4; 5 phases need as many"),
        ({"kind": "cl_remap", "shown": 16}, "shown: 16; must be 1 to keys - 1"),
        ({"kind": "cl_remap", "val_size": 3}, "val_size: 3; 5 phases need as many"),
        ({"kind": "nonstat_online", "tau": 5}, "tau: 5; must be even and at least 4"),
        ({"kind": "nonstat_online", "val_size": 50}, "val_size: 50 streams; must be a multiple"),
        ({"kind": "mqar", "val_size": 0}, "val_size: 0; must be >= 1"),
    ],
)
def test_bad_settings(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        structure(StreamConfig, fields, "stream")


def test_a_task_with_too_few_rows_says_so() -> None:
    tiny = probe("state_tracking", length=2)
    with pytest.raises(ConfigError, match="no row of split test in 10000 draws"):
        tiny.examples("test", 0)
    with pytest.raises(ConfigError, match="split 'dev' of mqar"):
        probe("mqar").rows("dev", 0, np.arange(1))
