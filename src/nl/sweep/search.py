"""A search: Optuna proposes values, the sweep runs them, the mean over seeds is told. Floor 1.

Trials live in ``search.journal`` of the sweep's directory, so a killed search goes on: a trial
whose jobs had not all ended keeps its values and is finished first.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.sweep.results import Row
from nl.sweep.spec import Experiment, Goal, Range, Search


class Trials:
    """The study of one sweep.

    Args:
        root: the sweep's directory.
        search: what may be chosen.
        goal: the number that is improved.
        shared: overrides of every trial.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, root: Path, search: Search, goal: Goal, shared: dict[str, Any]) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ConfigError(
                "search: needs the package optuna; install it: uv sync --extra sweep"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        root.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(root / "search.journal")))
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self.states, self.search, self.goal, self.shared = (
            optuna.trial.TrialState,
            search,
            goal,
            shared,
        )
        self.space = {key: _distribution(optuna, told) for key, told in search.space.items()}
        self.study = optuna.create_study(
            study_name="sweep",
            storage=storage,
            load_if_exists=True,
            direction=goal.direction,
            sampler=samplers[search.sampler](seed=search.seed),
        )

    def ask(self, count: int) -> list[Experiment]:
        """Up to ``count`` trials to run: unfinished ones first, then new ones; empty at the end."""
        frozen = self.study.get_trials(deepcopy=False)
        open_trials = [trial for trial in frozen if trial.state == self.states.RUNNING]
        found = [self._experiment(trial.number, trial.params) for trial in open_trials[:count]]
        for _ in range(min(count - len(found), self.search.trials - len(frozen))):
            trial = self.study.ask(self.space)
            found.append(self._experiment(trial.number, trial.params))
        return found

    def _experiment(self, number: int, values: dict[str, Any]) -> Experiment:
        return Experiment(f"trial_{number:04d}", self.shared | values, dict(values))

    def tell(self, experiment: Experiment, rows: Sequence[Row]) -> float | None:
        """Tell what a trial came to: the mean of the goal over its runs; None if one failed."""
        number = int(experiment.name.removeprefix("trial_"))
        values = [(row.get("metrics") or {}).get(self.goal.name) for row in rows]
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
        if len(numbers) < len(rows) or not numbers:
            self.study.tell(number, state=self.states.FAIL)
            return None
        mean = statistics.fmean(numbers)
        self.study.tell(number, mean)
        return mean

    def asked(self) -> list[Experiment]:
        """Every trial, in order."""
        frozen = self.study.get_trials(deepcopy=False)
        return [self._experiment(trial.number, trial.params) for trial in frozen]

    def best(self) -> dict[str, Any] | None:
        """``{trial, value, params}`` of the best trial; None before the first success."""
        complete = self.study.get_trials(deepcopy=False, states=(self.states.COMPLETE,))
        if not complete:
            return None
        trial = self.study.best_trial
        return {
            "trial": f"trial_{trial.number:04d}",
            self.goal.name: trial.value,
            "params": dict(trial.params),
        }


def first_values(search: Search) -> dict[str, Any]:
    """One allowed combination, to check keys before anything runs."""
    return {
        key: told.choices[0] if told.choices else (int(told.low or 0) if told.integer else told.low)
        for key, told in search.space.items()
    }


def _distribution(optuna: Any, told: Range) -> Any:
    kinds = optuna.distributions
    if told.choices:
        return kinds.CategoricalDistribution(told.choices)
    if told.integer:
        return kinds.IntDistribution(int(told.low or 0), int(told.high or 0), log=told.log)
    return kinds.FloatDistribution(told.low, told.high, log=told.log)
