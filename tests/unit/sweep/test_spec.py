"""Sweep files: what they mean, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nl.config import ConfigError
from nl.config.strict_yaml import load_yaml
from nl.sweep.spec import SweepSpec, expand, override_text, read_spec, seeds_of


def read(tmp_path: Path, text: str) -> SweepSpec:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return read_spec(path)


def names(spec: SweepSpec) -> list[str]:
    return [one.name for one in expand(spec)]


def test_experiments_with_nested_and_dotted_overrides(tmp_path: Path) -> None:
    spec = read(
        tmp_path,
        """
base_config: pilot_smoke
n_seeds: 3
global_overrides: {train: {steps: 7}, optim.lr: 1e-2}
experiments:
  - {name: small, overrides: {model: {dim: 64, layers: 1}}}
  - {name: plain}
  - {name: other, overrides: {optim.lr: 0.5}}
""",
    )
    found = expand(spec)
    assert [one.name for one in found] == ["small", "plain", "other"]
    assert found[0].overrides == {
        "train.steps": 7,
        "optim.lr": 0.01,
        "model.dim": 64,
        "model.layers": 1,
    }
    assert found[2].overrides["optim.lr"] == 0.5
    assert found[2].columns == {"experiment": "other"}
    assert seeds_of(spec) == (0, 1, 2)


def test_a_grid_is_a_product_with_names_of_the_shortest_ends(tmp_path: Path) -> None:
    spec = read(
        tmp_path,
        """
base_config: pilot_smoke
seeds: [4, 2]
parameter_grid:
  optim: {lr: [1e-3, 3.0e-3]}
  model.block: [transformer, gated_delta]
  model.selfmod.period: 16
  model.titan.period: [8]
""",
    )
    assert names(spec)[:2] == [
        "lr0.001_block-transformer_selfmod.period16_titan.period8",
        "lr0.001_block-gated_delta_selfmod.period16_titan.period8",
    ]
    assert len(names(spec)) == 4
    assert seeds_of(spec) == (4, 2)


def test_axes_multiply_and_exclusions_leave_out(tmp_path: Path) -> None:
    spec = read(
        tmp_path,
        """
base_config: pilot_smoke
axes:
  task:
    - {name: a, overrides: {stream.pairs: 4}}
    - {name: b, overrides: {stream.pairs: 8}}
  model:
    - {name: x, overrides: {model.block: transformer}}
    - {name: y, overrides: {model.block: gated_delta}}
exclude:
  - {task: b, model: [x]}
""",
    )
    assert names(spec) == ["a_x", "a_y", "b_y"]
    assert expand(spec)[1].columns == {"task": "a", "model": "y"}


BASE = "base_config: pilot_smoke\n"
ONE = "experiments: [{name: a}]\n"
REFUSED = {
    "no file of keys": ("- 1", "expected keys such as base_config"),
    "not YAML": ("a: [", "not valid YAML"),
    "a key twice": (f"{BASE}{BASE}{ONE}", "key 'base_config' twice"),
    "no base": (ONE, "base_config: missing"),
    "a typo": (f"{BASE}{ONE}n_seed: 2\n", "unknown 'n_seed'. Did you mean 'n_seeds'?"),
    "a typo inside": (
        f"{BASE}experiments: [{{name: a, override: {{}}}}]",
        "unknown 'override'. Did you mean 'overrides'?",
    ),
    "one name twice": (
        f"{BASE}experiments: [{{name: a}}, {{name: a}}]",
        "experiments: a; every name once",
    ),
    "a name of a path": (f"{BASE}experiments: [{{name: ../a}}]", "name: '../a'; allowed"),
    "nothing": (BASE, "nothing to run"),
    "no seeds": (f"{BASE}{ONE}n_seeds: 0", "n_seeds: 0; must be >= 1"),
    "a seed twice": (f"{BASE}{ONE}seeds: [1, 1]", "seeds: [1, 1]; each once"),
    "an empty list": (f"{BASE}grid: {{optim.lr: []}}", "grid.optim.lr: empty list"),
    "a value twice": (f"{BASE}grid: {{optim.lr: [1, 1]}}", "each value once"),
    "an unknown column": (
        f"{BASE}{ONE}exclude: [{{task: a}}]",
        "exclude[0]: task; columns are experiment",
    ),
    "an exclusion of nothing": (
        f"{BASE}{ONE}exclude: [{{experiment: b}}]",
        "exclude[0]: no combination is like that",
    ),
    "an exclusion of all": (f"{BASE}{ONE}exclude: [{{experiment: a}}]", "leaves nothing to run"),
    "grid twice": (
        f"{BASE}grid: {{a: 1}}\nparameter_grid: {{a: 1}}",
        "parameter_grid is an old name of grid",
    ),
    "search and grid": (
        f"{BASE}{ONE}search: {{trials: 1, space: {{optim.lr: {{low: 1, high: 2}}}}}}",
        "search: given beside experiments",
    ),
    "an empty range": (
        f"{BASE}search: {{trials: 1, space: {{optim.lr: {{low: 2, high: 1}}}}}}",
        "search.space.optim.lr.high: 1.0; must be above low (2.0)",
    ),
    "no direction": (
        f"{BASE}{ONE}goal: {{direction: up}}",
        "goal.direction",
    ),
    "too many": (
        f"{BASE}grid: {{a: {list(range(400))}, b: {list(range(400))}}}",
        "160000 combinations; at most 100000 jobs",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    text, expected = REFUSED[what]
    with pytest.raises(ConfigError) as caught:
        expand(read(tmp_path, text))
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "value",
    [
        1,
        -2.5,
        1e-05,
        True,
        None,
        "plain",
        "a b",
        "it's",
        "back\\slash",
        "1e-3",
        "true",
        "",
        "x,y",
        [1, "a", None],
        {"low": 1, "name": "b c"},
        "data/stdlib",
        "a=b",
        "${oc.env:HOME}"[2:-1],
    ],
)
def test_overrides_arrive_as_they_were_given(value: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    text = override_text("some.key", value)
    parsed = OverridesParser.create().parse_override(text)
    assert parsed.key_or_group == "some.key"
    assert plain(parsed.value()) == value


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    text = getattr(value, "text", None)
    return value if text is None else text


def test_numbers_are_numbers_and_tags_build_nothing() -> None:
    assert load_yaml("[1e-3, 1.5, .5, 3, 2E+2, 1_000]") == [0.001, 1.5, 0.5, 3, 200.0, 1000]
    assert load_yaml("['1e-3', a1e3]") == ["1e-3", "a1e3"]
    assert load_yaml("{<<: {a: 1}, b: 2}") == {"a": 1, "b": 2}
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
