"""stream=ergodic: rows by number, held-out windows that do not depend on the run, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nl.assembly  # noqa: F401 - registers every part
from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.core.batch import Batch
from nl.data.ergodic import ErgodicConfig
from nl.data.stream import check_carry


def stream(**fields: Any) -> ErgodicConfig:
    found = structure(StreamConfig, {"kind": "ergodic", "window": 12, "batch_size": 8, **fields})
    assert isinstance(found, ErgodicConfig)
    return found


def batches(config: ErgodicConfig, split: str, count: int, **place: Any) -> list[Batch]:
    where = {"seed": 3, "rank": 0, "world": 1, **place}
    rows = iter(config.build(split, **where))
    return [next(rows) for _ in range(count)]


def test_a_window_begins_with_a_mark_and_predicts_every_symbol() -> None:
    batch = batches(stream(), "train", 1)[0]
    assert batch.inputs.shape == batch.targets.shape == (8, 12)
    assert (batch.inputs[:, 0] == 3).all()
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    assert batch.targets.max() <= 2
    assert batch.weight == 96
    assert stream().vocab_size() == 4
    plain = stream(bos=False)
    other = batches(plain, "train", 1)[0]
    assert (plain.vocab_size(), other.weight) == (3, 88)
    assert (other.inputs[:, 1:] == other.targets[:, :-1]).all()
    assert (other.inputs[:, 0] == batch.targets[:, 0]).all(), "the same sequences"


def test_alphabets_grow_to_that_of_the_library() -> None:
    config = stream(components=["coin:0.3"], library=["coin:0.3", "chain:3:1:1:0@+2"])
    assert config.vocab_size() == 6
    assert batches(config, "train", 1)[0].inputs[0, 0] == 5


@pytest.mark.parametrize(
    "fields",
    [{}, {"order": "switching", "hazard": 0.1}, {"order": "sequential", "phase_steps": 2}],
)
def test_rows_are_functions_of_seed_and_number(fields: dict[str, Any]) -> None:
    config = stream(**fields)
    whole = batches(config, "train", 5)
    again = config.build("train", seed=3, rank=0, world=1)
    again.load_state_dict({**again.state_dict(), "row": 24})
    assert (next(iter(again)).inputs == whole[3].inputs).all()
    for rank in (0, 1):
        part = batches(config, "train", 5, rank=rank, world=2)
        for one, all_of_it in zip(part, whole, strict=True):
            assert (one.inputs == all_of_it.inputs[4 * rank : 4 * rank + 4]).all()
    assert not (batches(config, "train", 1, seed=4)[0].inputs == whole[0].inputs).all()
    held = batches(config, "val", 2)
    assert all((a.inputs == b.inputs).all() for a, b in
               zip(held, batches(config, "val", 2, seed=9), strict=True))  # fmt: skip
    assert not (batches(config, "test", 1)[0].inputs == held[0].inputs).all()


def test_held_out_windows_are_the_same_whatever_is_trained_on() -> None:
    names = ["chain:5:1:0.5:3@p0..3"]
    whole = stream(components=names, test_size=6)
    few = stream(components=["chain:5:1:0.5:3@p2"], library=names, test_size=6, batch_size=16)
    one, other = whole.windows("test"), few.windows("test")
    assert one.names == other.names
    for a, b in zip(one[:4], other[:4], strict=True):
        assert np.array_equal(a, b)
    assert one.component[:, 0].tolist() == [c for c in range(4) for _ in range(6)]
    assert np.array_equal(few.windows("test", few.names).tokens, one.tokens[12:18])
    assert np.array_equal(whole.windows("test", count=2).tokens[2:4], one.tokens[6:8])
    moved = stream(components=names, test_size=6, environment=1)
    assert not np.array_equal(moved.windows("test").tokens, one.tokens)
    flat = batches(whole, "test", 3)
    turns = np.concatenate([batch.targets.numpy() for batch in flat])
    assert np.array_equal(turns[:4], one.tokens[[0, 6, 12, 18]])


def test_no_training_row_is_a_held_out_one() -> None:
    config = stream(window=40, test_size=200, val_size=200)
    seen = {row.tobytes() for split in ("val", "test") for row in config.windows(split).tokens}
    assert len(seen) == 800
    train = np.concatenate([batch.targets.numpy() for batch in batches(config, "train", 100)])
    assert not seen & {row.tobytes() for row in train}
    assert len({row.tobytes() for row in train}) == 800


def test_a_mixture_has_its_weights() -> None:
    config = stream(components=["coin:0.01", "coin:0.99"],
                    weights=[0.25, 0.75])  # fmt: skip
    rows = np.concatenate([batch.targets.numpy() for batch in batches(config, "train", 250)])
    assert (rows.mean(1) > 0.5).mean() == pytest.approx(0.75, abs=0.035)


def test_switching_switches_and_says_where() -> None:
    config = stream(components=["coin:0.01", "coin:0.99"], order="switching", hazard=0.2,
                    window=200, test_size=20)  # fmt: skip
    found = config.windows("test")
    assert found.tokens.shape == (40, 200)
    assert ((found.tokens == 1) == (found.component == 1)).mean() > 0.98
    changes = (np.diff(found.component, axis=1) != 0).mean()
    assert changes == pytest.approx(0.1, abs=0.015), "half of the redraws change the component"


def test_sequential_trains_on_one_component_after_the_other() -> None:
    config = stream(components=["coin:0.01", "coin:0.99"], order="sequential", phase_steps=3)
    found = batches(config, "train", 7)
    assert [batch.tags["phase"] for batch in found] == [0, 0, 0, 1, 1, 1, 2]
    means = [float(batch.targets.float().mean()) for batch in found]
    assert [round(mean) for mean in means] == [0, 0, 0, 1, 1, 1, 0]
    rows = {row.tobytes() for batch in found for row in batch.targets.numpy()}
    assert len(rows) < 56, "coins repeat"
    assert [phase.steps for phase in config.phases] == [3, 3]
    told = config.examples("test", 0)
    assert told.slices["phase"][::128, 0].tolist() == [0, 1]
    floors = config.floors("test")
    assert floors["entropy"] == pytest.approx([0.056, 0.056], abs=1e-3)
    assert floors["paired"] == pytest.approx([0.056, 0.056], abs=0.03)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"components": ["mess4"]}, "components: mess4: no source of that name"),
        ({"components": []}, "components: empty"),
        ({"components": ["z1r", "z1r"]}, "components: z1r: named twice"),
        ({"components": ["mess3:0:0.9"]}, "components: mess3 x 0: reducible"),
        ({"library": ["mess3:0.05:0.85"]}, "library: .* lacks the component"),
        ({"weights": [1.0]}, "weights: 1 for 2 components"),
        ({"weights": [0.5, 0.6]}, "add up to 1"),
        ({"hazard": 0.1}, "hazard: 0.1; has no effect without order=switching"),
        ({"order": "switching"}, "hazard: 0.0; order=switching needs one above 0"),
        ({"order": "switching", "hazard": 0.1, "library": ["z1r"]}, "library: has no effect"),
        ({"order": "sequential"}, "phase_steps: missing; order=sequential needs 1 or more"),
        ({"phase_steps": 5}, "phase_steps: 5; has no effect"),
        ({"order": "sequential", "phase_steps": 5, "weights": [0.5, 0.5]}, "weights: .* turns"),
        ({"window": 1}, "window: 1; must be >= 2"),
        ({"order": "shuffled"}, "order"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], text: str) -> None:
    if fields.get("components") == ["mess3:0:0.9"]:
        text = "components: .*reducible"
    with pytest.raises(ConfigError, match=text):
        stream(**fields)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="split 'dev' of ergodic: use train, val or test"):
        stream().build("dev", seed=0, rank=0, world=1)
    with pytest.raises(ConfigError, match="held out of val, test"):
        stream().windows("train")
    with pytest.raises(ConfigError, match="component 'z1r': the stream has"):
        stream().windows("test", ("z1r",))
    with pytest.raises(ConfigError, match="choose stream=shards, contiguous"):
        check_carry(stream(), carry=True)
