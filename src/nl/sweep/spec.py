"""A sweep file: what is run, checked and spelled out before anything starts. Floor 1.

    base_config: pilot_smoke
    n_seeds: 3
    experiments:
      - {name: small, overrides: {model: {dim: 64}}}
      - {name: large, overrides: {model.dim: 128}}
    grid: {optim.lr: [1e-3, 3e-3]}

Overrides may be nested or dotted; a grid is the product of its lists; axes are named lists of
variants whose product is taken; whatever is given is combined with every seed. An axis may say
``{subsets_of: [a, b, c], key: stream.components}`` and is then the subsets of a list.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from nl.config import ConfigError, flat, require, structure
from nl.config.strict_yaml import load_yaml
from nl.sweep.subsets import spelled_out

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,149}")
SHORT = {"learning_rate": "lr", "hidden_dim": "h", "batch_size": "bs", "n_freqs": "f"}
MOST_JOBS = 100_000
RENAMED = {"parameter_grid": "grid"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One named change."""

    name: str
    """Directory of its runs; letters, digits and . _ + - ."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the configuration, nested or dotted."""

    def __post_init__(self) -> None:
        require(
            bool(NAME.fullmatch(self.name)),
            f"name: {self.name!r}; allowed: letters, digits and . _ + -, at most 150.",
        )


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The number that a search improves and that a summary shows first."""

    name: str = "val/loss"
    """<split>/<metric> of the last row, or eval/<suite>/<task>/<metric>."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """minimize or maximize."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a search may choose for one key."""

    low: float | None = None
    """Least value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Uniform in the logarithm."""
    integer: bool = False
    """Whole numbers only."""
    choices: tuple[Any, ...] = ()
    """A list instead of low and high."""

    def __post_init__(self) -> None:
        if self.choices:
            bounds = self.low is None and self.high is None
            require(bounds, "choices: given beside low and high; give one of the two.")
            return
        low, high = self.low, self.high
        require(low is not None and high is not None, "low: give low and high, or choices.")
        if low is not None and high is not None:
            require(low < high, f"high: {high}; must be above low ({low}).")
            require(not self.log or low > 0, f"low: {low}; must be > 0 with log=true.")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A hyper-parameter search (Optuna) instead of a grid."""

    trials: int
    """Combinations to try; each is run with every seed."""
    space: dict[str, Range]
    """Keys and what may be chosen for them."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe or random."""
    seed: int = 0
    """Of the sampler; with one slot the trials follow from it."""

    def __post_init__(self) -> None:
        require(self.trials >= 1, f"trials: {self.trials}; must be >= 1.")
        require(bool(self.space), "space: empty; name at least one key.")


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """The file as read."""

    base_config: str
    """What --config-name of the launcher is."""
    launcher: str = "train.py"
    """Command of a job: a launcher, or torchrun with its options and a launcher."""
    n_seeds: int = 1
    """Seeds 0 to n_seeds - 1."""
    seeds: tuple[int, ...] = ()
    """Seeds by name instead of n_seeds."""
    global_overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of every job."""
    experiments: tuple[Variant, ...] = ()
    """Named changes, one experiment each."""
    axes: dict[str, tuple[Variant, ...]] = field(default_factory=dict)
    """Named lists of variants; their product is run."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Keys and lists of values; their product is run."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: columns (axis, grid key or experiment) and a value or a list."""
    search: Search | None = None
    """Let Optuna choose values."""
    goal: Goal = field(default_factory=Goal)
    """The number that counts."""
    retries: int = 1
    """Further attempts after a failure that is not the configuration's."""

    def __post_init__(self) -> None:
        require(self.n_seeds >= 1, f"n_seeds: {self.n_seeds}; must be >= 1.")
        require(self.retries >= 0, f"retries: {self.retries}; must be >= 0.")
        twice = len(set(self.seeds)) < len(self.seeds)
        require(not twice, f"seeds: {list(self.seeds)}; each once.")
        require(bool(self.launcher.split()), "launcher: empty; for example train.py.")
        for where, variants in (("experiments", self.experiments), *self.axes.items()):
            names = [variant.name for variant in variants]
            double = sorted({name for name in names if names.count(name) > 1})
            place = where if where == "experiments" else f"axes.{where}"
            require(not double, f"{place}: {', '.join(double)}; every name once.")
            require(bool(names) or where == "experiments", f"{place}: empty list.")
        if self.search is not None:
            kinds = self.experiments or self.axes or self.grid
            require(not kinds, "search: given beside experiments, axes or grid; give one of them.")


@dataclass(frozen=True)
class Experiment:
    """One point of the sweep, before seeds.

    Attributes:
        name: of its directory.
        overrides: dotted keys and values, in the order they are told.
        columns: what tells it from the others: axis or grid key -> value.
    """

    name: str
    overrides: dict[str, Any]
    columns: dict[str, Any]


def read_spec(path: Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        ConfigError: not there, not YAML, unknown keys, values that do not fit; names the file.
    """
    try:
        data = load_yaml(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys such as base_config and experiments.")
    for old, new in RENAMED.items():
        if old in data:
            if new in data:
                raise ConfigError(f"{path}: {old} is an old name of {new}; give one of them.")
            data[new] = data.pop(old)
    try:
        if "axes" in data:
            data["axes"] = spelled_out(data["axes"])
        return structure(SweepSpec, data)
    except ConfigError as error:
        lines = "\n".join(f"{path}: {line}" for line in str(error).splitlines())
        raise ConfigError(lines) from error


def seeds_of(spec: SweepSpec) -> tuple[int, ...]:
    """The seeds, in order."""
    return spec.seeds or tuple(range(spec.n_seeds))


def expand(spec: SweepSpec) -> list[Experiment]:
    """All experiments of a sweep that is not a search, in the order of the file.

    Raises:
        ConfigError: nothing to run, too many, two of one name, an exclusion that meets nothing.
    """
    shared = flat(spec.global_overrides) if spec.global_overrides else {}
    lists: list[tuple[str, list[tuple[str, Any, dict[str, Any]]]]] = []
    if spec.experiments:
        lists.append(("experiment", _named(spec.experiments)))
    lists += [(axis, _named(variants)) for axis, variants in spec.axes.items()]
    lists += _grid(spec.grid)
    if not lists:
        raise ConfigError("experiments: nothing to run; give experiments, axes, grid or search.")
    total = functools.reduce(lambda count, pair: count * len(pair[1]), lists, 1)
    if total * len(seeds_of(spec)) > MOST_JOBS:
        raise ConfigError(f"grid: {total} combinations; at most {MOST_JOBS} jobs.")
    found, used = [], [False] * len(spec.exclude)
    columns = {name for name, _ in lists}
    for number, pattern in enumerate(spec.exclude):
        if unknown := set(pattern) - columns:
            raise ConfigError(
                f"exclude[{number}]: {', '.join(sorted(unknown))}; columns are "
                f"{', '.join(sorted(columns))}."
            )
    for combination in itertools.product(*(values for _, values in lists)):
        point = {axis: value for (axis, _), (_, value, _) in zip(lists, combination, strict=True)}
        hits = [_matches(pattern, point) for pattern in spec.exclude]
        used = [a or b for a, b in zip(used, hits, strict=True)]
        if any(hits):
            continue
        overrides = dict(shared)
        for _, _, change in combination:
            overrides |= change
        found.append(Experiment("_".join(name for name, _, _ in combination), overrides, point))
    if not all(used):
        raise ConfigError(f"exclude[{used.index(False)}]: no combination is like that.")
    return _checked(found)


def _checked(found: list[Experiment]) -> list[Experiment]:
    """Experiments with names that are fit for directories and differ."""
    if not found:
        raise ConfigError("exclude: leaves nothing to run.")
    names = [one.name for one in found]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ConfigError(f"experiments: {double[0]!r} twice; every name once.")
    bad = [name for name in names if not NAME.fullmatch(name)]
    if bad:
        raise ConfigError(
            f"grid: {bad[0]!r} is no name for a directory; use axes, whose variants have names."
        )
    return found


def _named(variants: Iterable[Variant]) -> list[tuple[str, Any, dict[str, Any]]]:
    def changes(variant: Variant) -> dict[str, Any]:
        return flat(variant.overrides) if variant.overrides else {}

    return [(variant.name, variant.name, changes(variant)) for variant in variants]


def _grid(grid: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any, dict[str, Any]]]]]:
    """Axes of a grid: (key, values with names); a scalar is a list of one."""
    if not grid:
        return []
    axes = {key: value if isinstance(value, list) else [value] for key, value in flat(grid).items()}
    labels = _labels(list(axes))
    found = []
    for key, values in axes.items():
        if not values:
            raise ConfigError(f"grid.{key}: empty list.")
        texts = [_text(value) for value in values]
        if len(set(texts)) < len(texts):
            raise ConfigError(f"grid.{key}: {values}; each value once.")
        found.append(
            (key, [(_name(labels[key], value), value, {key: value}) for value in values]),
        )
    return found


def _labels(keys: list[str]) -> dict[str, str]:
    """The shortest ends of dotted keys that differ; common names are abbreviated."""
    parts = {key: key.split(".") for key in keys}
    sizes = dict.fromkeys(keys, 1)
    while True:
        ends = {key: ".".join(parts[key][-sizes[key] :]) for key in keys}
        found = list(ends.values())
        longer = [k for k in keys if found.count(ends[k]) > 1 and sizes[k] < len(parts[k])]
        if not longer:
            return {key: SHORT.get(end, end) for key, end in ends.items()}
        for key in longer:
            sizes[key] += 1


def _name(label: str, value: Any) -> str:
    """``lr0.003``, ``block-gated_delta``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = re.sub(r"[^A-Za-z0-9.+-]+", "_", _text(value)).strip("_")
    return f"{label}{text}" if number else f"{label}-{text}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _matches(pattern: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    def allowed(wanted: Any, value: Any) -> bool:
        return value in wanted if isinstance(wanted, list) else value == wanted

    return all(allowed(wanted, point[key]) for key, wanted in pattern.items())


def override_text(key: str, value: Any) -> str:
    """``key=value`` as the launchers' command line takes it."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z0-9_./@+-]+", value)
        keyword = value.lower() in ("null", "true", "false", "nan", "inf")
        if plain and not keyword and not _numeric(value):
            return f"{key}={value}"
        # A backslash counts as one unless quotes follow it.
        safe = re.sub(r"(\\*)('|$)", lambda at: at[1] * 2 + ("\\'" if at[2] else ""), value)
        return f"{key}='{safe}'"
    if isinstance(value, (list, tuple)):
        inner = (override_text("", item)[1:] for item in value)
        return f"{key}=[{','.join(inner)}]"
    if isinstance(value, dict):
        pairs = (f"{name}:{override_text('', item)[1:]}" for name, item in value.items())
        return f"{key}={{{','.join(pairs)}}}"
    return f"{key}={json.dumps(value)}"


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
