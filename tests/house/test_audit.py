"""The audit tells the truth: code and tests exist, options are keys, the page is up to date."""

from __future__ import annotations

import ast
import functools
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.cli import main
from nl.cli_audit import PAGE, page
from nl.config import table, unstructure
from nl.config.hydra import compose, run_config
from nl.models.audit import MECHANISMS, used_by, value_at
from nl.models.mechanism import Mechanism

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def functions_in(path: Path) -> set[str]:
    """Names of the test functions of a file; empty if there is no such file."""
    if not path.is_file():
        return set()
    return {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}


@functools.cache
def resolved(*overrides: str) -> dict[str, Any]:
    data: dict[str, Any] = unstructure(run_config(compose("pilot_smoke", overrides)))
    return data


def run_with(mechanism: Mechanism) -> dict[str, Any]:
    """A configuration in which the mechanism is at work."""
    texts = {
        "model.block": "model.block={}",
        "optim.kind": "optim={}",
        "model.cms.inner.kind": "model.cms.inner={{kind:{}}}",
        "model.cms.signal": "model.cms.signal={}",
        "model.cms.write_gradient": "model.cms.write_gradient={}",
        "model.cms.scope": "model.cms.scope={}",
        "model.cms.arrangement": "model.cms.arrangement={}",
        "model.cms.activation": "model.cms.activation={}",
        "model.experts.form": "model.experts={{form:{},count:16,rank:4}}",
        "model.experts.router": "model.experts.router={}",
        "model.head_memory.period": "model.head_memory.period=8",
        "model.cms.surprise.gate": "model.cms.surprise={{gate:{},quantile:0.5}}",
    }
    chosen = [texts[key].format(values[0]) for key, values in mechanism.where.items()]
    if mechanism.where.get("model.cms.signal") == ("self",):
        chosen.append("model.cms.write_gradient=through")
    groups = {"group_limited": "2", "hierarchical": "null"}
    for router in groups.keys() & set(mechanism.where.get("model.experts.router", ())):
        chosen += ["model.experts.groups=4", f"model.experts.group_limit={groups[router]}"]
    if any("titan" in kind for kind in mechanism.where.get("model.block", ())):
        chosen.append("model.titan.head_size=32")
    return resolved(*chosen)


def complaints(mechanism: Mechanism) -> list[str]:
    """What a row claims and is not there."""
    found = []
    for test in mechanism.tests:
        file, _, name = test.partition("::")
        if not name.startswith("test_") or name not in functions_in(ROOT / file):
            found.append(f"no test {test}")
    module, _, names = mechanism.code.partition(":")
    here: Any = importlib.import_module(module)
    for name in names.split("."):
        here = getattr(here, name, None)
    if here is None:
        found.append(f"no code {mechanism.code}")
    run = run_with(mechanism)
    if mechanism not in used_by(run):
        found.append("no run uses it")
    for key in mechanism.options:
        parent, _, last = key.rpartition(".")
        if last not in (value_at(run, parent) or {}):
            found.append(f"no option {key}")
    return found


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m.part.replace(" ", "_"))
def test_rows_name_what_exists(mechanism: Mechanism) -> None:
    assert complaints(mechanism) == []
    assert mechanism.tests
    assert mechanism.equation.isascii()


def test_the_check_finds_planted_claims() -> None:
    planted = Mechanism(
        part="planted",
        source="nowhere",
        equation="0 = 1",
        code="nl.ops.losses:no_such_function",
        tests=("tests/nowhere.py::test_it", "tests/house/test_audit.py::test_that_is_missing"),
        where={"optim.kind": ("muon",)},
        options=("optim.no_such_option",),
    )
    assert complaints(planted) == [
        "no test tests/nowhere.py::test_it",
        "no test tests/house/test_audit.py::test_that_is_missing",
        "no code nl.ops.losses:no_such_function",
        "no run uses it",
        "no option optim.no_such_option",
    ]


@pytest.mark.parametrize(
    ("key", "group"),
    [("model.block", "block"), ("optim.kind", "optim"), ("model.cms.inner.kind", "inner")],
)
def test_every_kind_is_audited(key: str, group: str) -> None:
    named = {kind for m in MECHANISMS for kind in m.where.get(key, ())}
    own = {k for k, c in table(group).items() if c.__module__.startswith("nl.") and k != "tiny"}
    assert named == own


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / PAGE).read_text() == page(), "run: nl audit --write-docs"


def test_the_command_shows_what_a_run_chose(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["audit", "--config-name", "pilot_smoke", "model.cms.periods=[16,48]"]
    assert main([*arguments, "--json"]) == 0
    rows = {row["part"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["continuum memory: chain"]["options"]["model.cms.periods"] == [16, 48]
    assert "inner optimizer sgd" in rows
    assert "outer optimizer adamw" in rows
    assert not {"outer optimizer muon", "Titans memory: write"} & rows.keys()
    assert main([*arguments, "optim=m3", "optim.literal=true"]) == 0
    text = capsys.readouterr().out
    assert "chosen    optim.literal=true" in text
    assert "Algorithm 1 (M3)" in text


def test_the_command_shows_what_the_literal_rule_sets(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["model.block=hope_selfmod", "model.selfmod.compat=literal", "--json"]
    assert main(["audit", "--config-name", "pilot_smoke", *more]) == 0
    found = {
        key: v for row in json.loads(capsys.readouterr().out) for key, v in row["options"].items()
    }
    own = {
        key.rpartition(".")[2]: v for key, v in found.items() if key.startswith("model.selfmod.")
    }
    assert (own["compat"], own["retention"], own["output_rule"]) == ("literal", "zero", "decay")
    assert (own["target"], own["skip"], own["direct_gates"]) == ("self", True, False)


def test_the_command_refuses_what_training_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--config-name", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
