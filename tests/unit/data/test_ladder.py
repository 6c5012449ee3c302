"""The ladder: rules against loops, disjoint honest splits, and the earlier data row by row."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.data.ladder import LadderConfig, overlap
from nl.data.ladder_tasks import EQUALS, KINDS, PLUS, TASKS, Sums, rule_of

LEGACY = {
    # task: seen in training, different rows of train and test, test accuracy of a look-up table
    "sign_of_winner": (0, 959, 953, 0.5),
    "sign_of_second_place": (0, 941, 951, 0.5),
    "has_pos_and_neg": (0, 839, 826, 0.5),
    "has_all_tokens": (690, 574, 558, 0.935),
    "any_abs_gt_one": (0, 684, 692, 0.5),
    "single_digit_sum": (799, 367, 357, 1.0),
    "single_digit_sum_swapped": (688, 486, 483, 0.998),
    "aa_bb_cc": (38, 921, 933, 0.538),
    "multi_digit_sum": (0, 948, 951, 0.5),
}
SHAPES = {
    "has_all_tokens": (5, 4),
    "single_digit_sum": (5, 12),
    "single_digit_sum_swapped": (5, 12),
    "aa_bb_cc": (8, 12),
    "multi_digit_sum": (11, 12),
}


def cfg(task: str, **fields: object) -> LadderConfig:
    return structure(StreamConfig, {"kind": "ladder", "task": task, **fields})  # type: ignore[return-value]


@pytest.mark.parametrize("task", TASKS)
def test_the_earlier_data_overlap_as_they_did(task: str) -> None:
    config = cfg(task, legacy=True)
    train, test = config.examples("train", 0), config.examples("test", 0)
    assert train.inputs.shape == (1000, *SHAPES.get(task, (5, 2)))
    assert train.labels.sum() == test.labels.sum() == 500
    found = overlap(train, test)
    assert found.total == 1000
    assert (found.seen, found.unique_train, found.unique_test, found.lookup) == LEGACY[task]


def test_the_earlier_data_are_those_of_their_own_seed_whatever_the_run_has() -> None:
    one, other = (cfg("aa_bb_cc", legacy=True).examples("train", seed) for seed in (0, 5))
    assert (one.raw == other.raw).all()
    later = cfg("aa_bb_cc", legacy=True, legacy_seed=1).examples("train", 0)
    assert (later.raw == cfg("aa_bb_cc", legacy=True).examples("test", 0).raw).all()
    with pytest.raises(ConfigError, match="legacy_seed: 1; without legacy=true"):
        cfg("aa_bb_cc", legacy_seed=1)


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_nothing(task: str) -> None:
    config = cfg(task)
    rule = config.rule()
    parts = {split: config.examples(split, 3) for split in ("train", "val", "test")}
    facts = {split: set(rule.facts(part.raw)) for split, part in parts.items()}
    for one, other in itertools.combinations(parts, 2):
        assert not facts[one] & facts[other]
        assert overlap(parts[one], parts[other]).seen == 0
    for part in parts.values():
        assert part.labels.mean() == 0.5
        assert len({row.tobytes() for row in part.raw}) == len(part.raw)
        assert (rule.label(part.raw) == part.labels).all()
    again = cfg(task).examples("val", 3)
    assert (again.raw == parts["val"].raw).all()
    other = cfg(task).examples("val", 4)
    assert other.raw.shape != again.raw.shape or (other.raw != again.raw).any()


def by_loop(task: str, row: np.ndarray) -> int:
    """The label of a raw example, said in words."""
    if task == "has_all_tokens":
        return int(set(row.tolist()) == {0, 1, 2, 3})
    if task == "any_abs_gt_one":
        return int(any(abs(x) > 1 for x in row.ravel()))
    sums = [float(sum(map(float, step))) for step in row]
    if task == "has_pos_and_neg":
        return int(max(sums) > 0 > min(sums))
    place = {"sign_of_winner": 0, "sign_of_second_place": 1}[task]
    return int(sorted(sums, key=abs, reverse=True)[place] > 0)


@pytest.mark.parametrize("task", list(TASKS)[:5])
def test_rules_against_loops(task: str) -> None:
    found = cfg(task).examples("test", 0)
    assert [by_loop(task, row) for row in found.raw] == found.labels.tolist()


@pytest.mark.parametrize("task", list(TASKS)[5:])
def test_sums_against_python(task: str) -> None:
    found = cfg(task).examples("train", 1)
    names = [*"0123456789", "+", "=="]
    for row, label, kind in zip(found.raw, found.labels, found.kinds, strict=True):
        text = "".join(names[token] for token in row)
        sides = [sum(int(n) for n in side.split("+")) for side in text.split("==")]
        assert (sides[0] == sides[1]) == bool(label)
        assert (KINDS[kind] == "right") == bool(label)
    present = set(found.kinds.tolist())
    assert present == ({1, 2, 6} if task.startswith("single") else {1, 2, 3, 4, 5, 6})


def test_how_wrong_numbers_are_wrong() -> None:
    found = cfg("aa_bb_cc").examples("train", 0)
    numbers = found.raw[:, [0, 1, 3, 4, 6, 7]].reshape(-1, 3, 2) @ np.asarray([10, 1])
    off = numbers[:, 2] - numbers[:, 0] - numbers[:, 1]
    names = np.asarray(KINDS)[found.kinds]
    assert set(np.abs(off[names == "near"])) == {1}
    assert set(np.abs(off[names == "tens"])) == {10}
    assert (off[names == "same units"] % 10 == 0).all()
    swapped = numbers[names == "swapped digits"]
    right = swapped[:, 0] + swapped[:, 1]
    assert (swapped[:, 2] == 10 * (right % 10) + right // 10).all()
    # checking the units digit alone no longer decides
    guess = off % 10 == 0
    assert (guess == (found.labels == 1)).mean() < 0.9


def test_rows_that_are_no_equation_are_wrong() -> None:
    rule = Sums(1)
    rows = [[2, PLUS, 3, EQUALS, 5], [PLUS, PLUS, 0, EQUALS, 9], [2, EQUALS, 3, PLUS, 5]]
    rows += [[5, EQUALS, 2, PLUS, 3]]
    assert rule.label(np.asarray(rows)).tolist() == [1, 0, 0, 0]
    assert Sums(1, swapped=True).label(np.asarray(rows)).tolist() == [1, 0, 0, 1]


def test_facts_do_not_depend_on_order_or_on_the_answer() -> None:
    rule = Sums(1, swapped=True)
    rows = [[2, PLUS, 3, EQUALS, 5], [3, PLUS, 2, EQUALS, 6], [5, EQUALS, 2, PLUS, 3]]
    assert len(set(rule.facts(np.asarray(rows)))) == 1
    assert len(set(rule.facts(np.asarray([[2, PLUS, 3, EQUALS, 5], [2, PLUS, 4, EQUALS, 6]])))) == 2


def test_longer_and_wider_variants() -> None:
    assert cfg("sign_of_winner", steps=9).examples("test", 0).inputs.shape == (1000, 9, 2)
    assert cfg("aa_bb_cc", digits=3).examples("test", 0).inputs.shape == (1000, 11, 12)
    assert rule_of("multi_digit_sum", digits=1).steps == 7


def test_examples_are_those_of_last_time() -> None:
    """Golden digests: a change of generator is seen."""
    digests = {
        task: hashlib.sha256(cfg(task).examples("test", 0).raw[:64].tobytes()).hexdigest()[:12]
        for task in ("sign_of_winner", "has_all_tokens", "aa_bb_cc")
    }
    assert digests == GOLDEN


GOLDEN = {
    "sign_of_winner": "e90fb4e6b5b2",
    "has_all_tokens": "88c935e1be37",
    "aa_bb_cc": "1fa82cd30382",
}


def test_the_stream_shows_every_example_once_per_pass() -> None:
    config = cfg("has_all_tokens", batch_size=16)
    found = config.examples("train", 0)
    size = len(found.labels)
    stream = config.build("train", seed=0, rank=0, world=1)
    rows = [row for batch in itertools.islice(stream, size // 16 + 1) for row in batch.inputs]
    seen = {row.numpy().tobytes() for row in rows[:size]}
    assert len(seen) == size
    (last,) = list(config.build("val", seed=0, rank=0, world=1))[-1:]
    assert isinstance(last.targets, torch.Tensor)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"task": "sign_of_winer"}, "stream.task: unknown 'sign_of_winer'"),
        ({"train_size": 3}, "train_size: 3; must be even"),
        ({"batch_size": 0}, "batch_size: 0; must be >= 1"),
        ({"digits": 9}, "digits: 9; must be 1 to 6"),
        ({"task": "aa_bb_cc", "steps": 5}, "steps: 5; aa_bb_cc follows from its digits"),
        ({"task": "single_digit_sum", "digits": 2}, "digits: 2; single_digit_sum has one"),
        ({"digits": 2}, "digits: 2; sign_of_winner has no numbers of digits"),
    ],
)
def test_bad_settings(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        structure(StreamConfig, {"kind": "ladder", **fields}, "stream")


def test_more_than_there_is_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"train_size: 1000; has_all_tokens has \d+ such"):
        cfg("has_all_tokens", train_size=1000).examples("train", 0)
    with pytest.raises(ConfigError, match="split 'dev' of ladder"):
        cfg("has_all_tokens").examples("dev", 0)
