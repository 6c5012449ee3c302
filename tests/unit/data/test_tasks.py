"""stream=tasks: which text a task reads, under which permutation, and where it ends."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError
from nl.core.batch import IGNORE, Batch
from nl.data.phases import check_phases
from nl.data.task_budget import check_budget
from nl.data.tasks import TaskPlan, TaskStreamConfig, orders
from nl.data.tokenizer import ByteTokenizer
from nl.data.windows import TokenWindows
from nl.objectives.ewc import EwcConfig


def config(path: Path, **changes: Any) -> TaskStreamConfig:
    plain: dict[str, Any] = {"tasks": 4, "steps": 5, "seq_len": 16, "batch_size": 8}
    return TaskStreamConfig(path=str(path), **{**plain, **changes})


def take(config: TaskStreamConfig, count: int, **place: int) -> list[Batch]:
    stream = config.build("train", **{"seed": 3, "rank": 0, "world": 1, **place})
    return list(itertools.islice(stream, count))


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.inputs.tolist()]


def test_domains_take_turns_and_no_window_comes_twice(
    tiny: Path, naive_windows: Callable[[Path, str, str, int], list[list[int]]]
) -> None:
    batches = take(config(tiny), 20)
    whole = {d: {tuple(w[:-1]) for w in naive_windows(tiny, "train", d, 16)}
             for d in ("code", "prose")}  # fmt: skip
    for number, batch in enumerate(batches):
        task = number // 5
        domain = ("code", "prose")[task % 2]
        assert batch.tags["phase"] == task
        assert (batch.tags["task"], batch.tags["domain"]) == (f"task_{task:02d}", domain)
        assert set(rows_of([batch])) <= whole[domain]
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert len(set(rows_of(batches))) == 160


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schedule": "blocks", "block": 2}, ["code", "code", "prose", "prose"]),
        ({"schedule": "custom", "custom": ("prose", "prose", "code")},
         ["prose", "prose", "code", "prose"]),
        ({"domains": ("prose", "code")}, ["prose", "code", "prose", "code"]),
        ({"domains": ("prose",)}, ["prose"] * 4),
    ],
)  # fmt: skip
def test_schedules(tiny: Path, changes: dict[str, Any], wanted: list[str]) -> None:
    assert [task.domains[0] for task in config(tiny, **changes).table] == wanted


def test_a_token_budget_is_rounded_up_to_batches(tiny: Path) -> None:
    assert config(tiny, steps=100, tokens=16 * 8 * 3 + 1).task_steps == 4


@pytest.mark.parametrize("vocabulary", ["unique", "repeat", "drift"])
def test_the_inverse_permutation_gives_the_plain_text(tiny: Path, vocabulary: Any) -> None:
    more = {"repeat": {"repeat": 2}, "drift": {"swaps": 7}}.get(vocabulary, {})
    cfg = config(tiny, vocabulary=vocabulary, **more)
    table = orders(cfg)
    plain = take(config(tiny), 20)
    for batch, wanted in zip(take(cfg, 20), plain, strict=True):
        order = cfg.table[batch.tags["phase"]].order
        back = torch.argsort(table[order].long())
        assert not torch.equal(batch.inputs, wanted.inputs)
        assert torch.equal(back[batch.inputs.long()], wanted.inputs.long())
        assert torch.equal(back[batch.targets.long()], wanted.targets.long())


def test_permutations_keep_special_tokens_and_are_part_of_the_environment(tiny: Path) -> None:
    unique = orders(config(tiny, vocabulary="unique"))
    names = ByteTokenizer()
    for fixed in (names.pad_id, names.bos_id, names.eos_id):
        assert (unique[:, fixed] == fixed).all()
    assert unique.shape == (4, 259)
    assert all(sorted(row) == list(range(259)) for row in unique.tolist())
    assert len({tuple(row) for row in unique.tolist()}) == 4
    assert torch.equal(unique, orders(config(tiny, vocabulary="unique")))
    other = orders(config(tiny, vocabulary="unique", environment=1))
    assert not torch.equal(unique, other)
    repeated = config(tiny, vocabulary="repeat", repeat=2)
    assert [task.order for task in repeated.table] == [0, 1, 0, 1]
    assert torch.equal(orders(repeated), unique[:2])
    drift = orders(config(tiny, vocabulary="drift", swaps=3))
    moved = [(a != b).sum().item() for a, b in itertools.pairwise(drift)]
    assert all(2 <= m <= 6 for m in moved)


def test_mixed_tasks_read_equal_shares(tiny: Path) -> None:
    cfg = config(tiny, mix=2, steps=6)
    assert {frozenset(task.domains) for task in cfg.table} == {frozenset({"code", "prose"})}
    plan = TaskPlan(cfg, ["code", "prose"], [1000, 1000], 0)
    source, index = plan.locate(np.arange(4 * 48))
    for task in range(4):
        counts = Counter(source[task * 48 : (task + 1) * 48].tolist())
        assert counts == {0: 24, 1: 24}
    assert len({*zip(source.tolist(), index.tolist(), strict=True)}) == 192


def test_a_blurred_boundary_rises_linearly_and_every_task_keeps_its_rows(tiny: Path) -> None:
    cfg = config(tiny, steps=100, blur=0.5)
    plan = TaskPlan(cfg, ["code", "prose"], [5000, 5000], 0)
    rows = np.arange(2 * 4 * 800)
    cycle, task, inside = plan.place(rows)
    for number in range(4):
        mine = inside[(cycle == 0) & (task == number)]
        assert sorted(mine.tolist()) == list(range(800))
    ramp = task[600:1000]
    shares = (ramp == 1).reshape(8, 50).mean(1)
    wanted = (np.arange(8) + 0.5) / 8
    assert np.abs(shares - wanted).max() <= 0.02
    assert set(task[:600]) == {0}
    assert set(task[1000:1400]) == {1}
    assert set(task[2800:3200]) == {3}, "the last task ends hard: nothing follows it"
    assert set(task[3200:3800]) == {0}
    _, index = plan.locate(rows[:3200])
    source = plan.locate(rows[:3200])[0]
    assert len({*zip(source.tolist(), index.tolist(), strict=True)}) == 3200


@pytest.mark.parametrize("changes", [{}, {"vocabulary": "unique", "documents": "reset"},
                                     {"blur": 0.4, "mix": 2}])  # fmt: skip
def test_ranks_share_batches_and_a_resume_changes_nothing(
    tiny: Path, changes: dict[str, Any]
) -> None:
    cfg = config(tiny, **changes)
    whole = take(cfg, 12)
    parts = [take(cfg, 12, rank=r, world=2) for r in (0, 1)]
    for one, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(one.inputs, torch.cat([s.inputs for s in shares]))
        assert torch.equal(one.targets, torch.cat([s.targets for s in shares]))
        assert one.weight == sum(s.weight for s in shares)
        assert (one.starts or ()) == tuple(s for share in shares for s in share.starts or ())
    stream = cfg.build("train", seed=3, rank=0, world=1)
    list(itertools.islice(stream, 5))
    state = json.loads(json.dumps(stream.state_dict()))
    again = cfg.build("train", seed=3, rank=0, world=1)
    again.load_state_dict(state)
    for one, two in zip(whole[5:], again, strict=False):
        assert torch.equal(one.inputs, two.inputs)
        assert one.tags == two.tags


def test_held_out_text_of_a_task_is_whole_and_permuted(
    tiny: Path, naive_windows: Callable[[Path, str, str, int], list[list[int]]]
) -> None:
    cfg = config(tiny, vocabulary="repeat", repeat=2, tasks=6)
    assert [task.name for task in cfg.distinct] == ["task_00", "task_01"]
    assert cfg.splits() == ("train", "val/task_00", "val/task_01")
    assert len(config(tiny, vocabulary="unique").splits()) == 5
    assert len(config(tiny).splits()) == 3
    back = torch.argsort(orders(cfg)[1].long())
    found = [
        row
        for batch in cfg.build("val/task_01", seed=0, rank=0, world=1)
        for row, target in zip(back[batch.inputs.long()].tolist(), batch.targets, strict=True)
        if target[0] != IGNORE
    ]
    assert found == [window[:-1] for window in naive_windows(tiny, "val", "prose", 16)]


def test_a_task_free_stream_says_nothing_and_phases_are_refused(tiny: Path) -> None:
    silent = config(tiny, announce=False)
    assert take(silent, 1)[0].tags == {"row": 0}
    with pytest.raises(ConfigError, match=r"stream\.announce: false"):
        check_phases(silent, EwcConfig())
    check_phases(config(tiny), EwcConfig())
    assert [phase.steps for phase in config(tiny).phases] == [5] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": 0}, "tasks: 0"),
        ({"blur": 1.5}, "blur: 1.5"),
        ({"swaps": 3}, "swaps: 3; has no effect without vocabulary=drift"),
        ({"repeat": 3}, "repeat: 3; has no effect"),
        ({"block": 3}, "block: 3; has no effect"),
        ({"custom": ("code",)}, r"custom: \['code'\]; has no effect"),
        ({"schedule": "custom"}, "custom: empty"),
        ({"schedule": "custom", "custom": ("code",) * 5}, "custom: 5 domains; there are 4 tasks"),
        ({"domains": ("code", "code")}, "name each once"),
        ({"tokens": 100}, "steps: 5; has no effect without tokens=0"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tiny, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": ("code", "poems")}, r"'poems' is none of \['code', 'prose'\]"),
        ({"schedule": "custom", "custom": ("poems",)}, "'poems' is none of"),
        ({"domains": ("code",), "mix": 2}, "mix: 2"),
    ],
)
def test_data_that_is_missing_is_an_error(
    tiny: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tiny, **changes).build("train", seed=0, rank=0, world=1)


def test_a_budget_beyond_the_data_is_refused_unless_text_may_come_again(tiny: Path) -> None:
    asked = config(tiny)
    windows = TokenWindows(str(tiny), "train", ("code", "prose"), 16, verify=True)
    sizes = dict(zip(windows.names, windows.sizes, strict=True))
    most = min(sizes.values()) // (2 * asked.batch_size)  # steps; a domain has two of four tasks
    check_budget(config(tiny, steps=most))
    need = 2 * (most + 1) * asked.batch_size
    name = min(sizes, key=lambda name: sizes[name])
    message = f"steps: {most + 1}; .* read {need} windows of domain '{name}', which has "
    with pytest.raises(ConfigError, match=rf"{message}{sizes[name]}: .* stream\.passes=2"):
        check_budget(config(tiny, steps=most + 1))
    check_budget(config(tiny, steps=most + 1, passes=2))
    with pytest.raises(ConfigError, match=r"tokens: 999999; "):
        check_budget(config(tiny, steps=100, tokens=999_999))
    check_budget(config(tiny, steps=most + 1, only=0))
    once, twice = (config(tiny, passes=n).build("train", seed=0, rank=0, world=1) for n in (1, 2))
    twice.load_state_dict(once.state_dict())  # permission is no part of what the tasks are


def test_another_environment_is_another_stream(tiny: Path) -> None:
    one = config(tiny, vocabulary="unique").build("train", seed=0, rank=0, world=1)
    other = config(tiny, vocabulary="unique", environment=5).build("train", seed=0, rank=0, world=1)
    with pytest.raises(ConfigError, match="identity"):
        other.load_state_dict(one.state_dict())


def test_an_unknown_split_names_the_tasks(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="task_00, task_01"):
        config(tiny).build("val", seed=0, rank=0, world=1)
    with pytest.raises(ConfigError, match="val/<task>"):
        config(tiny).build("train/task_00", seed=0, rank=0, world=1)


def test_replayed_rows_come_from_earlier_tasks_under_their_own_vocabulary(tiny: Path) -> None:
    cfg = config(tiny, vocabulary="unique", capacity=40, replay=0.25)
    plain = rows_of(take(config(tiny, vocabulary="unique"), 20))
    for number, batch in enumerate(take(cfg, 20)):
        rows = [tuple(row) for row in batch.inputs.tolist()]
        assert batch.tags["replayed"] == (2 if number >= 5 else 0)
        if number >= 5:
            earlier = plain[: number // 5 * 40]
            assert all(row in earlier for row in rows[-2:])
            assert rows[:-2] == plain[number * 8 : number * 8 + 6]


def test_the_share_can_be_turned_while_it_runs_and_is_kept(tiny: Path) -> None:
    cfg = config(tiny, capacity=40)
    stream: Any = cfg.build("train", seed=3, rank=0, world=1)
    found = []
    for number, share in enumerate([0.0] * 5 + [0.5, 0.0, 0.9, 1.0]):
        stream.adjust(share)
        found.append(next(iter(stream)).tags["replayed"])
        if number == 7:
            other: Any = cfg.build("train", seed=3, rank=0, world=1)
            other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
            assert next(iter(other)).tags["replayed"] == 7
    assert found == [0] * 5 + [4, 0, 7, 7]


def test_a_task_free_store_replays_any_older_row(tiny: Path) -> None:
    cfg = config(tiny, capacity=16, replay=0.5, memory="reservoir", announce=False)
    found = [batch.tags["replayed"] for batch in take(cfg, 4)]
    assert found == [0, 4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay": 0.5}, "replay: 0.5; has no effect"),
        ({"memory": "loss"}, "memory: loss; has no effect"),
        ({"capacity": 3}, "capacity: 3; balanced needs"),
        ({"capacity": 30, "announce": False}, "memory: balanced; needs to know"),
        ({"capacity": 30, "replay": 1.0}, "replay: 1.0"),
    ],
)
def test_replay_that_cannot_be_is_refused(
    tiny: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tiny, **changes)


def test_joint_rows_take_turns_and_are_those_of_the_tasks(tiny: Path) -> None:
    joint = take(config(tiny, joint=True, vocabulary="unique"), 20)
    wanted = rows_of(take(config(tiny, vocabulary="unique"), 20))
    assert joint[0].tags == {"row": 0}
    found = rows_of(joint)
    assert sorted(found) == sorted(wanted)
    assert [wanted.index(row) // 40 for row in found] == [0, 1, 2, 3] * 40
    with pytest.raises(ConfigError, match=r"stream\.joint"):
        check_phases(config(tiny, joint=True), EwcConfig())


def test_one_task_alone(tiny: Path) -> None:
    alone = take(config(tiny, only=2, vocabulary="unique"), 10)
    assert {(batch.tags["task"], batch.tags["domain"]) for batch in alone} == {("task_02", "code")}
    assert [batch.tags["phase"] for batch in alone] == [0] * 5 + [1] * 5
    assert len(set(rows_of(alone))) == 80
    back = torch.argsort(orders(config(tiny, vocabulary="unique"))[2].long())
    plain = take(config(tiny, only=2), 10)
    assert all(torch.equal(back[a.inputs.long()], b.inputs.long())
               for a, b in zip(alone, plain, strict=True))  # fmt: skip
    assert config(tiny, only=3).held_out(7) == "val/task_01"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": 4}, "only: 4; must be 0 to 3"),
        ({"only": 1, "joint": True}, "only, joint"),
        ({"joint": True, "blur": 0.5}, r"blur: 0\.5; has no effect"),
        ({"only": 1, "capacity": 9}, "capacity: 9; has no effect"),
    ],
)
def test_orders_that_cannot_be_are_refused(
    tiny: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tiny, **changes)
