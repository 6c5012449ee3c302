"""State as a value, seed streams, batches."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch

from nl.core import state as states
from nl.core.batch import Batch
from nl.core.seeds import SeedBook, seed_everything


@states.state_type
class Pair(NamedTuple):
    left: Any
    right: Any


class Stranger(NamedTuple):
    value: Any


def sample() -> Pair:
    return Pair((torch.arange(6.0).view(3, 2), 7, None), Pair(torch.ones(3, 1), ()))


def test_flatten_and_back_through_json() -> None:
    named, skeleton = states.flatten(sample())
    again = states.unflatten(named, json.loads(json.dumps(skeleton)))
    assert type(again) is Pair
    assert again.left[1:] == (7, None)
    assert torch.equal(again.left[0], sample().left[0])
    assert torch.equal(again.right.left, torch.ones(3, 1))


@pytest.mark.parametrize(
    ("skeleton", "words"),
    [
        ({"type": "os.system", "items": []}, "unknown state type 'os.system'"),
        ({"tensor": "nowhere"}, "'nowhere' is missing"),
    ],
)
def test_unknown_things_are_refused(skeleton: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        states.unflatten({}, skeleton)


@pytest.mark.parametrize("bad", [Stranger(1), {"a": 1}, "text", [1]])
def test_only_known_types_are_state(bad: Any) -> None:
    with pytest.raises(TypeError):
        states.flatten(bad)


def test_a_name_belongs_to_one_module() -> None:
    other = type("Pair", (tuple,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match="already defined"):
        states.state_type(other)


def test_rows_forks_and_size() -> None:
    state = sample()
    picked = states.select_rows(state, [2, 0, 2])
    assert picked.left[0].tolist() == [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]
    fork = states.clone(state)
    fork.left[0].zero_()
    assert state.left[0].sum() == 15
    assert states.num_bytes(state) == (6 + 3) * 4
    grad = torch.ones(1, requires_grad=True) * 2
    assert not states.detach(Pair(grad, None)).left.requires_grad


def test_seed_streams_are_named_and_independent() -> None:
    book = SeedBook(3)
    seeds = {book.seed(*name) for name in (("model",), ("data",), ("train", 0), ("train", 1))}
    assert len(seeds) == 4
    assert book.seed("data") == SeedBook(3).seed("data") != SeedBook(4).seed("data")
    draws = [torch.rand(2, generator=book.generator("eval")) for _ in range(2)]
    assert torch.equal(*draws)
    seed_everything(book.seed("model"))
    first = torch.rand(3)
    seed_everything(book.seed("model"))
    assert torch.equal(first, torch.rand(3))


def test_a_batch_widens_its_integers() -> None:
    narrow = torch.zeros(1, 2, dtype=torch.int32)
    batch = Batch(narrow, narrow, 2).to("cpu")
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    floats = Batch(torch.zeros(1, 2), torch.zeros(1), 1).to("cpu")
    assert floats.inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([True, False], r"rows: \[True, False\]; the State has rows 0 to 1"),
        ([2], r"rows: \[2\]; the State has rows 0 to 1"),
        (torch.tensor([0]), r"rows: torch\.int64 \(1,\); a tensor of rows is \(2,\) bool"),
        (torch.tensor([True]), r"rows: torch\.bool \(1,\); a tensor of rows is \(2,\) bool"),
    ],
)
def test_rows_that_are_none_are_refused(rows: Any, words: str) -> None:
    state = torch.ones(2, 3), 4
    with pytest.raises(ValueError, match=words):
        states.reset_rows(state, (torch.zeros(1, 3), 0), rows)
    one = states.reset_rows(state, (torch.zeros(1, 3), 0), torch.tensor([False, True]))
    assert one[0].tolist() == [[1] * 3, [0] * 3]
    assert one[1] == 4


def test_the_first_part_of_another_model_is_named() -> None:
    fresh = Pair(torch.zeros(1, 3), None)
    states.check_fits(Pair(torch.ones(5, 3), torch.ones(5, 2)), fresh)
    with pytest.raises(ValueError, match=r"state\.\w+: \(4,\) per row, not \(3,\)"):
        states.check_fits(Pair(torch.ones(5, 4), None), fresh)
    with pytest.raises(ValueError, match=r"state: tuple, not Pair"):
        states.check_fits((torch.ones(5, 3), None), fresh)
    with pytest.raises(ValueError, match=r"state: 1 parts, not 2"):
        states.check_fits((1,), (1, 2))


def test_what_all_rows_share_is_kept_once() -> None:
    state = Pair(torch.ones(1, 3).expand(4, 3), torch.ones(4, 2))
    fork = states.clone(state)
    fork.left[0, 1] = 5
    assert state.left.max() == 1
    assert fork.left[:, 1].tolist() == [5] * 4
    assert states.num_bytes(state) == states.num_bytes(fork) == (3 + 8) * 4
    named, skeleton = states.flatten(fork)
    assert [len(t) for t in named.values()] == [1, 4]
    back = states.unflatten(named, json.loads(json.dumps(skeleton)))
    assert states.num_bytes(back) == 44
    assert torch.equal(back.left, fork.left)
    with pytest.raises(ValueError, match=r"'state\.0' is not one row for all"):
        states.unflatten({**named, "state.0": torch.ones(2, 3)}, skeleton)
