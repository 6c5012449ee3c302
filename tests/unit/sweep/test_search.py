"""A search improves its goal, goes on after a kill, and says which trial was best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nl.sweep.search import Trials, first_values
from nl.sweep.spec import Goal, Range, Search

pytest.importorskip("optuna")
SPACE = {
    "x": Range(low=-4.0, high=4.0),
    "n": Range(low=1, high=3, integer=True),
    "kind": Range(choices=("good", "bad")),
}


def rows(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Two seeds around (x - 1)^2 + n, worse for the bad kind."""
    loss = (values["x"] - 1) ** 2 + values["n"] + 5 * (values["kind"] == "bad")
    return [{"metrics": {"val/loss": loss + off}} for off in (-0.5, 0.5)]


def search_in(root: Path, trials: int = 40) -> Trials:
    return Trials(root, Search(trials=trials, space=SPACE), Goal(), {"train.steps": 3})


def test_it_finds_the_valley(tmp_path: Path) -> None:
    trials = search_in(tmp_path)
    while asked := trials.ask(2):
        for one in asked:
            assert one.overrides == {"train.steps": 3, **one.columns}
            trials.tell(one, rows(one.columns))
    assert len(trials.asked()) == 40
    best = trials.best()
    assert best is not None
    assert best["params"]["kind"] == "good"
    assert abs(best["params"]["x"] - 1) < 0.7
    first = [trials.study.trials[n].value or 0.0 for n in range(10)]
    assert best["val/loss"] <= min(first)


def test_a_killed_search_finishes_what_was_open_first(tmp_path: Path) -> None:
    open_one = search_in(tmp_path).ask(1)[0]
    again = search_in(tmp_path)
    found = again.ask(2)
    assert found[0] == open_one
    assert [one.name for one in found] == ["trial_0000", "trial_0001"]
    again.tell(found[0], rows(found[0].columns))
    assert [one.name for one in search_in(tmp_path).ask(1)] == ["trial_0001"]


def test_a_failed_run_fails_its_trial_only(tmp_path: Path) -> None:
    trials = search_in(tmp_path, trials=2)
    first, second = trials.ask(2)
    assert trials.tell(first, [*rows(first.columns), {"status": "failed"}]) is None
    assert trials.best() is None
    value = trials.tell(second, rows(second.columns))
    best = trials.best()
    assert best is not None
    assert (best["trial"], best["val/loss"]) == ("trial_0001", value)
    assert trials.ask(1) == []


def test_one_combination_is_known_before_the_start() -> None:
    assert first_values(Search(trials=1, space=SPACE)) == {"x": -4.0, "n": 1, "kind": "good"}
