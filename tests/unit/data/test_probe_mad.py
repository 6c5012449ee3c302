"""MAD's tasks: what the definitions say, beyond what holds for every probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nl.assembly  # noqa: F401 - registers every part
from nl.config import structure
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.data.probe import ProbeConfig, Row, score
from nl.data.probe_mad import earlier


def probe(kind: str, **more: Any) -> ProbeConfig:
    fields = {"kind": kind, "test_size": 300, "val_size": 20, **more}
    return structure(StreamConfig, fields)  # type: ignore[return-value]


def test_earlier_by_hand() -> None:
    before, times = earlier(np.asarray([4, 1, 4, 4, 2, 1]))
    assert before.tolist() == [-1, -1, 0, 2, -1, 1]
    assert times.tolist() == [0, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("kind", ["mad_recall", "mad_noisy_recall"])
def test_every_key_seen_before_is_asked_and_the_last_pair_is(kind: str) -> None:
    config = probe(kind)
    found = config.examples("test", 0)
    for line, targets in zip(found.inputs.tolist(), found.targets.tolist(), strict=True):
        known: dict[int, int] = {}
        for key, value, label in zip(line[::2], line[1::2], targets[::2], strict=True):
            if key < 8:
                assert label == known.get(key, IGNORE)
                assert known.setdefault(key, value) == value
            else:
                assert label == IGNORE
        assert targets[-2] != IGNORE
    if kind == "mad_noisy_recall":
        share = float((found.inputs[:, ::2] >= 16).mean())
        assert share == pytest.approx(0.2 * 62 / 64, abs=0.02)


def test_motifs_have_no_token_twice_and_the_last_key_is_long() -> None:
    found = probe("mad_fuzzy_recall", keys=4).examples("test", 0)
    lengths = set()
    for line, targets in zip(found.inputs, found.targets, strict=True):
        filled = int((line == 0).sum())
        assert (line[:filled] == 0).all()
        runs = np.split(line[filled:], np.flatnonzero(np.diff(line[filled:] > 7)) + 1)
        assert all(len(set(run.tolist())) == len(run) <= 3 for run in runs)
        assert len(runs[-2]) == 3
        assert targets[-len(runs[-1]) - 1] == runs[-1][0]
        lengths |= {len(run) for run in runs}
        assert len({tuple(run.tolist()) for run in runs[::2]}) <= 4
    assert lengths == {1, 2, 3}


def test_one_map_is_in_all_rows_and_splits_and_comes_from_its_seed() -> None:
    config = probe("mad_memorization", vocab=17)
    maps = []
    for split in ("train", "val", "test"):
        found = config.examples(split, 0)
        pairs = {*zip(found.inputs[:, ::2].flat, found.targets[:, 1::2].flat, strict=True)}
        maps.append(dict(pairs))
        assert len(pairs) == len(maps[-1]) == 8, "one value per key"
        assert (found.inputs[:, 1::2] == 0).all(), "no value is ever shown"
    assert maps[0] == maps[1] == maps[2]
    assert config.shared
    other = probe("mad_memorization", vocab=17, map_seed=1).examples("test", 0)
    assert dict(zip(other.inputs[:, ::2].flat, other.targets[:, 1::2].flat, strict=True)) != maps[0]


def test_dense_targets_are_for_training_only_and_move_no_row() -> None:
    plain, dense = probe("mad_recall", length=32), probe("mad_recall", length=32, dense=True)
    for split in ("train", "test"):
        one, two = plain.examples(split, 0), dense.examples(split, 0)
        assert (one.inputs == two.inputs).all()
        assert ((one.targets == IGNORE) | (one.targets == two.targets)).all()
        if split == "test":
            assert (one.targets == two.targets).all()
        else:
            assert (two.targets[:, :-1] == two.inputs[:, 1:]).all()
    assert score(plain.oracle(two.inputs), two.targets)["accuracy"] == 1


def test_blanks_of_selective_copy_are_anywhere_also_behind_the_last_token() -> None:
    found = probe("selective_copy", length=32, copied=4, test_size=400).examples("test", 0)
    there = found.inputs[:, :32] > 1
    share = there.mean(axis=0)
    assert np.abs(share - 4 / 32).max() < 0.08, "every place is as likely"
    assert (~there[:, -1]).mean() > 0.8, "blanks behind the last token"
    first = probe("selective_copy").rows("test", 0, np.arange(3))
    again = probe("selective_copy").rows("test", 0, np.arange(3))
    assert all((a.inputs == b.inputs).all() for a, b in zip(first, again, strict=True))


def test_compression_asks_for_every_place_once() -> None:
    for shuffled in (False, True):
        found = probe("mad_compression", shuffled=shuffled).examples("test", 0)
        assert (found.inputs[:, 31] == 16).all()
        asked = found.inputs[:, 32:] - 17
        assert (np.sort(asked, axis=1) == np.arange(31)).all()
        assert ((asked == np.arange(31)).all()) != shuffled


def test_rows_are_shown_with_what_was_said() -> None:
    config = probe("mad_recall")
    row = Row(np.asarray([1, 9, 1, 9]), np.asarray([IGNORE, IGNORE, 9, IGNORE]))
    assert config.render(row) == "k1 v1 k1[v1] v1"
    assert config.render(row, np.asarray([0, 0, 10, 0])) == "k1 v1 k1[v1, not v2] v1"
    assert config.render(row, np.asarray([0, 0, 9, 0])) == "k1 v1 k1[v1] v1"
    formal = probe("formal")
    row = Row(np.asarray([0, 1, 2]), np.asarray([3, 5, IGNORE]))
    assert formal.render(row) == "([{()}] )[{($}] ."


def test_wrong_answers_are_told_apart() -> None:
    config = probe("mqar_update", pairs=2, updates=1, vocab=8)
    line = np.asarray([[1, 4, 2, 5, 1, 6, 1, 2]])
    said = {name: {} for name in ("right", "stale", "other", "outside")}
    for name, token in (("right", 6), ("stale", 4), ("other", 5), ("outside", 7)):
        guess = np.full_like(line, token)
        said[name] = {k: int(v[0, 6]) for k, v in config.errors(line, guess).items()}
    kinds = ("stale value", "value of another key", "out of context")
    assert said["right"] == dict.fromkeys(kinds, 0)
    assert [said[n][k] for n, k in zip(("stale", "other", "outside"), kinds, strict=True)] == [
        1
    ] * 3
    assert all(sum(found.values()) <= 1 for found in said.values())
