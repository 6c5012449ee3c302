"""nl probe: lists, shows, samples and verifies; what a task breaks is found; the page is true."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import nl.assembly  # noqa: F401 - registers every part
from nl.cli import main
from nl.cli_probe import PAGE, line_of, names, page
from nl.config.hydra import compose, config_dir, run_config
from nl.core.batch import IGNORE
from nl.data.probe import Guess, Ints, Probes, Row
from nl.data.probe_recall import MqarConfig
from nl.data.probe_registry import load
from nl.data.probe_verify import DIGESTS, blind, digest, leaks, lookup, verify


def test_the_page_is_up_to_date() -> None:
    assert (config_dir().parent / "docs" / PAGE).read_text() == page(), (
        "run: nl probe list --write-docs"
    )


def test_every_task_has_a_digest_and_keeps_its_rows() -> None:
    assert set(DIGESTS) == set(names())
    assert {name: digest(load(name, "smoke"), 0) for name in names()} == DIGESTS


def test_a_task_without_hydra_is_the_stream_of_its_experiment() -> None:
    for name in ("mad_memorization", "nonstat_online"):
        run = run_config(compose("pilot_smoke", [f"experiment=probes/small/{name}"]))
        assert load(name, "small") == run.stream


def test_list_show_and_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(names())
    assert "smoke small medium paper" in lines[1]
    assert main(["probe", "show", "mqar", "pairs=2", "length=8"]) == 0
    text = capsys.readouterr().out
    assert "pairs=2 " in text
    assert "chance 0.500" in text
    assert "slices: gap" in text
    assert main(["probe", "sample", "mqar_update", "-n", "3", "--shortcut", "first value"]) == 0
    rows = capsys.readouterr().out
    assert len([line for line in rows.splitlines() if not line.startswith("  ")]) == 3
    assert ", not v" in rows
    assert main(["probe", "sample", "mqar", "-n", "1", "--split", "train", "--seed", "4"]) == 0
    assert "[v" in capsys.readouterr().out


def test_verify_writes_what_splits_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["probe", "verify", "mqar_update", "mad_memorization", "--output", str(tmp_path / "v")]
    assert main(told) == 0
    out = capsys.readouterr().out
    assert out.count("  ok  ") == 2
    found = json.loads((tmp_path / "v/leakage.json").read_text())["tasks"]
    assert found["mqar_update"]["leakage"]["overlap"] == 0
    assert found["mqar_update"]["leakage"]["lookup"]["3"] < 0.2
    memorized = found["mad_memorization"]["leakage"]
    assert memorized["overlap"] == 0
    assert memorized["lookup"]["2"] == 1, "the map is in the weights of whoever learned it"
    assert "map" in memorized["shared"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "mqra"], "probe: unknown 'mqra'. Did you mean 'mqar'"),
        (["verify", "mqar", "--preset", "tiny"], "--preset: unknown 'tiny'"),
        (["sample", "mqar", "pairz=2"], "mqar: unknown 'pairz'. Did you mean 'pairs'"),
        (["sample", "mqar", "pairs"], "pairs: expected <field>=<value>"),
        (["sample", "mqar", "-n", "0"], "-n: 0; must be >= 1"),
        (["sample", "mqar", "--split", "dev"], "split 'dev' of mqar: use train, val, test"),
        (["sample", "mqar", "--shortcut", "luck"], "--shortcut: unknown 'luck'; mqar has last"),
    ],
)
def test_what_is_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", *arguments]) == 2
    assert text in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Broken(MqarConfig):
    """A task that breaks what probes promise."""

    kind = "mqar"
    calls = 0

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """Five rows only, in all splits, the next one another each time it is asked for."""
        Broken.calls += 1
        inputs = np.full(8, Broken.calls % 5)
        targets = np.full(8, IGNORE)
        targets[-1] = 1
        return Row(inputs, targets)

    def fact(self, row: Row) -> bytes:
        """In every split."""
        return b"a"

    def oracle(self, inputs: Ints) -> Ints:
        """Wrong most of the time."""
        return inputs

    def shortcuts(self) -> dict[str, Guess]:
        """Always right."""
        return {"ones": np.ones_like}


class Boast(MqarConfig):
    """Chance is said to be twice what it is."""

    kind = "mqar"

    def chance(self) -> float:
        """Too much."""
        return 0.5

    def bound(self) -> float:
        """Above it."""
        return 0.6


def test_broken_promises_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nl.data.probe_verify.fewer", lambda config: config)
    monkeypatch.setattr("nl.data.probe.belongs", lambda fact, split: True)
    small = Broken(test_size=20, val_size=4, batch_size=6)
    verdict = verify("broken", small, golden="0123")
    text = line_of(verdict, 6)
    assert "FAILED" in text
    for part in (
        "the oracle is right in 0.2",
        "shortcut 'ones' reaches 1.000, bound 0.350",
        "20 test rows were in training",
        "depends on the rows it is asked for with",
        "depends on the number of ranks",
        "rows depend on the size of the batch",
        "not 0123",
    ):
        assert part in text, part


def test_blind_answers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nl.data.probe_verify.fewer", lambda config: config)
    rows = np.tile(np.asarray([3, 3, IGNORE, 4]), (500, 1))
    assert blind(rows, 0)["accuracy"] == pytest.approx(5 / 9, abs=0.04)
    single = np.where(np.arange(3) == 1, np.arange(400)[:, None] % 2, IGNORE)
    assert blind(single, 0)["accuracy"] == pytest.approx(0.5, abs=0.1)
    found = verify("boast", Boast(test_size=64, vocab=64))
    assert found.failed == ("chance 0.500, but blind answers score less than that",)


def test_tables_of_the_last_tokens_by_hand() -> None:
    def part(inputs: list[list[int]], targets: list[list[int]]) -> Probes:
        return Probes(np.asarray(inputs), np.asarray(targets), {})

    train = part([[1, 2, 1, 3]], [[5, IGNORE, 6, 6]])
    test = part([[4, 2, 1, 2], [1, 2, 1, 3]], [[6, IGNORE, 6, 9], [IGNORE, 7, IGNORE, IGNORE]])
    assert lookup(train, test, 1) == pytest.approx(1 / 4)
    assert lookup(train, test, 2) == pytest.approx(2 / 4)
    found = leaks({"train": train, "val": train, "test": test})
    assert (found["overlap"], found["overlap_val"]) == (1, 1)
    assert found["unique"] == {"train": 1, "val": 1, "test": 2}
