"""Experiments as jobs; every configuration is composed before anything runs. Floor 1.

The parts that configurations name must have been registered (``nl.assembly``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nl.config import ConfigError, flat, unstructure
from nl.config.hydra import compose, run_config
from nl.config.run import RunConfig, config_hash
from nl.sweep.job import Job
from nl.sweep.spec import Experiment, SweepSpec, override_text, seeds_of

MOST_COMPLAINTS = 20
OWN = ("seed", "run.dir", "resume")
"""Keys that the sweep sets."""


class JobMaker:
    """Makes jobs of experiments.

    Args:
        spec: the sweep.
        start: beginning of every command (``nl.sweep.backends.program``).
    """

    def __init__(self, spec: SweepSpec, start: Sequence[str]) -> None:
        self.spec, self.start = spec, tuple(start)
        self.shared = flat(spec.global_overrides) if spec.global_overrides else {}
        self._runs: dict[tuple[str, ...], RunConfig] = {}

    def check(
        self,
        experiments: Sequence[Experiment],
        fits: Callable[[RunConfig], None] | None = None,
    ) -> None:
        """Compose every experiment.

        Args:
            experiments: what will be run.
            fits: complains of a configuration whose parts do not fit each other.

        Raises:
            ConfigError: what is wrong with which experiment; the first 20 complaints,
                each once.
        """
        complaints: dict[str, list[str]] = {}
        for experiment in experiments:
            try:
                run = self.run_of(experiment)
                if fits is not None:
                    fits(run)
            except ConfigError as error:
                for line in str(error).splitlines():
                    complaints.setdefault(line, []).append(experiment.name)
        if complaints:
            lines = [f"{_few(names)}: {line}" for line, names in complaints.items()]
            more = len(lines) - MOST_COMPLAINTS
            tail = [f"and {more} more complaints"] if more > 0 else []
            raise ConfigError("\n".join([*lines[:MOST_COMPLAINTS], *tail]))

    def run_of(self, experiment: Experiment) -> RunConfig:
        """The configuration of an experiment, with the seed of the base configuration."""
        told = self.overrides(experiment)
        if told not in self._runs:
            for key in OWN:
                if key in experiment.overrides:
                    raise ConfigError(
                        f"{key}: set by the sweep; use n_seeds or seeds, and --root for the place."
                    )
            self._runs[told] = run_config(compose(self.spec.base_config, list(told)))
        return self._runs[told]

    def resolved(self, experiment: Experiment) -> Any:
        """The same as plain data."""
        return unstructure(self.run_of(experiment))

    @staticmethod
    def overrides(experiment: Experiment) -> tuple[str, ...]:
        """As typed on a command line."""
        return tuple(override_text(key, value) for key, value in experiment.overrides.items())

    def jobs(self, experiment: Experiment, root: Path) -> list[Job]:
        """One job per seed."""
        run, told = self.run_of(experiment), self.overrides(experiment)
        found = []
        for seed in seeds_of(self.spec):
            home = (root / experiment.name / f"seed_{seed}").resolve()
            own = (f"seed={seed}", override_text("run.dir", str(home)), "resume=auto")
            found.append(
                Job(
                    experiment=experiment.name,
                    seed=seed,
                    home=home,
                    command=(*self.start, "--config-name", self.spec.base_config, *told, *own),
                    config_hash=config_hash(self._seeded(run, told, seed)),
                    columns=experiment.columns,
                    overrides=told,
                )
            )
        return found

    def _seeded(self, run: RunConfig, told: tuple[str, ...], seed: int) -> RunConfig:
        """What the launcher makes of one seed; keys that follow it (``${seed}``) follow it here."""
        if any("${" in text for text in told):
            return run_config(compose(self.spec.base_config, [*told, f"seed={seed}"]))
        return dataclasses.replace(run, seed=seed)


def _few(names: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    more = len(names) - 2
    return ", ".join(names[:2]) + (f" and {more} more" if more > 0 else "")
