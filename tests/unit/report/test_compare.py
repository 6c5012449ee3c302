"""Runs side by side: differences worked out by hand, what is paired and what is not, the page."""

from __future__ import annotations

import csv
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from nl.config import ConfigError
from nl.report.compare import as_markdown, differences, markdown, tables, verdict, warnings
from nl.report.paired import direction, interval, paired, unpaired, wilson
from nl.report.sides import Side, aligned, read_side, short_names
from nl.report.summary import flattened, summary
from nl.report.tables import table_csv
from nl.run.student import t_95
from tests.unit import test_cli_model

data = test_cli_model.data
trained = test_cli_model.trained
FEW = test_cli_model.FEW

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts" / "eval"


def row(task: str, metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    base = {"task": task, "metric": metric, "memorize": "off", "value": value}
    return base | {"stderr": 0.1, "n": 4, "chance": 0.25, "note": ""} | more


def result(path: Path, rows: list[dict[str, Any]], samples: dict[str, Any], **facts: Any) -> Path:
    """A result file with samples {name: {metric: value}} of task t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"suite": path.stem, "step": 3, "rows": rows, "samples": f"{path.stem}/samples.jsonl"}
    path.write_text(json.dumps(record | facts))
    lines = [
        {"task": "t", "memorize": "off", "sample": name, "values": values}
        for name, values in samples.items()
    ]
    (path.parent / path.stem).mkdir()
    (path.parent / path.stem / "samples.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    return path


def test_quantiles_are_students() -> None:
    for freedom in (1, 2, 7, 30, 31, 40, 99, 1000):
        assert t_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_paired_means_by_hand() -> None:
    first = {"a": (1.0, 1.0), "b": (0.0, 1.0), "c": (1.0, 1.0), "only": (0.0, 1.0)}
    second = {"a": (1.0, 1.0), "b": (1.0, 1.0), "c": (0.0, 1.0), "d": (1.0, 1.0)}
    second["b"] = (1.0, 1.0)
    found = paired(first, second, "acc")
    assert found is not None
    assert (found.n, found.better, found.worse) == (3, 1, 1)
    assert found.value == pytest.approx(0)
    # differences 0, 1, -1: standard deviation 1, error 1 / sqrt(3), quantile for two degrees 4.303
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert not found.clear
    assert found.method == "paired t"
    rng = [0.3, 0.1, 0.8, 0.4, 0.6]
    other = [0.5, 0.4, 0.9, 0.9, 0.5]
    pairs = [{str(i): (x, 1.0) for i, x in enumerate(side)} for side in (rng, other)]
    found = paired(pairs[0], pairs[1], "answer_logprob")
    wanted = stats.ttest_rel(other, rng).confidence_interval(0.95)
    assert found is not None
    assert found.value - (found.half or 0) == pytest.approx(wanted.low, abs=1e-3)
    assert found.value + (found.half or 0) == pytest.approx(wanted.high, abs=1e-3)


def test_paired_sums_over_sums_by_hand() -> None:
    first = {"x": (20.0, 10.0), "y": (30.0, 30.0)}  # 50 nats over 40 tokens: 1.25
    second = {"x": (15.0, 10.0), "y": (45.0, 30.0)}  # 60 over 40: 1.5
    found = paired(first, second, "nats_per_token")
    assert found is not None
    assert found.value == pytest.approx(0.25)
    # what each adds: (15 - 1.5 * 10 - 20 + 1.25 * 10) / 40 = -7.5 / 40, and +7.5 / 40 for y
    assert found.half == pytest.approx(12.706 * math.sqrt(2 * (7.5 / 40) ** 2 * 2))
    assert (found.better, found.worse) == (1, 1)
    assert paired({"x": (1.0, 1.0)}, {"x": (1.0, 1.0)}, "acc") is None
    assert paired({"x": (1.0, 1.0)}, {"y": (1.0, 1.0)}, "acc") is None


def test_unpaired_and_intervals() -> None:
    found = unpaired(row("t", "acc", 0.5), row("t", "acc", 0.9))
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(0.4), 0)
    assert found.half == pytest.approx(1.96 * math.sqrt(0.02), rel=1e-4)
    assert unpaired(row("t", "acc", None), row("t", "acc", 0.9)) is None
    ends = interval(row("t", "nats_per_token", 2.0))
    assert ends == pytest.approx((2 - 3.182 * 0.1, 2 + 3.182 * 0.1))
    wanted = stats.binomtest(3, 17).proportion_ci(method="wilson")
    assert wilson(3 / 17, 17) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert interval(row("t", "exact_match", 0.0, n=8)) == pytest.approx((0, 0.3244), abs=1e-4)
    signs = {"acc": 1, "acc_norm": 1, "nats_per_token": -1, "bits_per_byte": -1, "memory/x": 0}
    assert {metric: direction(metric) for metric in signs} == signs
    assert direction("word_perplexity") == direction("answer_nats") == -1
    assert direction("memory/loss_after") == -1


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    good = {str(n): {"acc": 1.0, "nats_per_token": [10.0, 5]} for n in range(6)}
    bad = {str(n): {"acc": float(n == 0), "nats_per_token": [10.0 + n, 5]} for n in range(6)}
    rows = [row("t", "acc", 1 / 6, n=6), row("t", "nats_per_token", 2.5, chance=7.0)]
    rows += [row("t", "memory/writes/level0", 3.0), row("gone", "acc", None)]
    a = result(tmp_path / "a" / "one.json", rows, bad, tokenizer={"sha256": "x"})
    rows = [row("t", "acc", 1.0, n=6), row("t", "nats_per_token", 2.0, chance=7.0)]
    rows += [row("t", "memory/writes/level0", 4.0)]
    b = result(tmp_path / "b" / "two.json", rows, good, tokenizer={"sha256": "y"})
    return [a, b]


def test_sides_and_verdicts(two: list[Path]) -> None:
    sides = aligned([read_side(path, path.stem) for path in two])
    found = differences(sides)
    (accuracy,) = found["one", "t", "acc", "off"]
    assert accuracy is not None
    assert (accuracy.n, accuracy.better, accuracy.worse) == (6, 5, 0)
    assert accuracy.value == pytest.approx(5 / 6)
    assert verdict(accuracy, "acc") == "better"
    (nats,) = found["one", "t", "nats_per_token", "off"]
    assert nats is not None
    assert nats.value == pytest.approx(-0.5)
    assert verdict(nats, "nats_per_token") == "better"
    assert found["one", "gone", "acc", "off"] == [None]
    (same,) = differences([sides[0], sides[0]])["one", "t", "acc", "off"]
    assert verdict(same, "acc") == "no sample differs"
    assert short_names([Path("/a/x.json"), Path("/b/x.json")]) == ["a-x", "b-x"]
    (writes,) = found["one", "t", "memory/writes/level0", "off"]
    assert writes is not None
    assert (writes.method, verdict(writes, "memory/writes/level0")) == ("unpaired normal", "")
    assert warnings(sides) == ["one: tokenizers differ: numbers per token are not comparable."]
    shown = tables(sides)
    assert [table.title for table in shown] == ["one", "one (what memories wrote)"]
    lines = list(csv.DictReader(table_csv(shown[0]).splitlines()))
    assert lines[1]["side"] == "two"
    assert float(lines[1]["low"]) <= float(lines[1]["difference"]) <= float(lines[1]["high"])
    assert lines[0]["difference"] == ""
    assert as_markdown(shown[0])[1].startswith("| --- | --- |")
    swapped = markdown([sides[1], sides[0]])
    assert "| worse |" in swapped
    assert "**one: tokenizers differ" in swapped


def test_a_row_over_all_domains_is_paired_on_their_samples() -> None:
    def side(shift: float, kept: tuple[str, ...] = ("v/a", "v/b")) -> Side:
        names = ("v/a", "v/b", "v/all")
        rows = {("s", name, "nats_per_token", "off"): {"n": 4, "value": 1.0} for name in names[:2]}
        rows["s", "v/all", "nats_per_token", "off"] = {"n": 8, "value": 1.0, "stderr": 9.0}
        samples = {
            ("s", name, "nats_per_token", "off"): {
                str(i): (10.0 * i + shift * i, 10.0) for i in range(1, 5)
            }
            for name in kept
        }
        return Side("x", Path(), rows, samples)

    key = ("s", "v/all", "nats_per_token", "off")
    (pooled,) = differences([side(0.0), side(1.0)])[key]
    assert pooled is not None
    assert (pooled.n, pooled.method, pooled.clear) == (8, "paired t", True)
    assert pooled.value == pytest.approx(0.25)
    (lone,) = differences([side(0.0), side(1.0, ("v/a",))])[key]
    assert lone is not None
    assert lone.method == "unpaired normal"


def test_perplexities_are_paired_on_their_logarithms() -> None:
    nats, ppl = (("s", "v/a", metric, "off") for metric in ("nats_per_token", "perplexity"))

    def side(*sums: float) -> Side:
        samples = {nats: {str(i): (total, 10.0) for i, total in enumerate(sums)}}
        value = math.exp(sum(sums) / 10 / len(sums))
        return Side("x", Path(), {ppl: {"n": len(sums), "value": value, "stderr": 9.0}}, samples)

    first, second = side(10.0, 30.0, 50.0), side(9.0, 29.5, 47.0)
    (found,) = differences([first, second])[ppl]
    assert found is not None
    assert (found.method, found.n, found.better, found.worse) == ("paired t", 3, 3, 0)
    a, b = math.exp(3.0), math.exp(2.85)
    assert found.value == pytest.approx(b - a)
    # what each document moves either perplexity by, to first order
    pairs = [(9.0, 10.0), (29.5, 30.0), (47.0, 50.0)]
    moved = [(b * (y - 28.5) - a * (x - 30)) / 30 for y, x in pairs]
    assert found.half == pytest.approx(4.303 * math.sqrt(sum(m * m for m in moved) * 3 / 2))
    assert "| paired t, 3 samples |" in markdown([first, second])
    vast, small = (dict.fromkeys("xy", (total, 1.0)) for total in (1e4, 1.0))
    assert paired(vast, small, "perplexity") is None


def test_sides_that_are_measured_name_their_input_and_hold_what_was_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "c.html"
    result(tmp_path / "c" / "a" / "stale.json", [row("t", "acc", 0.5)], {})
    flags = ["--inputs", trained, trained, "--names", "a", "b", "--output", page]
    flags += ["--suite", "perplexity", "--set", *FEW]
    assert script(monkeypatch, "compare", *flags) == 0
    lines = page.with_suffix(".md").read_text().splitlines()
    assert f"- a: `{trained}, step 4`" in lines
    assert "## stale" not in lines
    assert str(tmp_path) not in "".join(line for line in lines if str(trained) not in line)
    rows = [line for line in lines if line.startswith("| val/")]
    plain = [line for line in rows if "| memory/" not in line]
    assert {line.split(" | ")[1] for line in plain} == {
        "nats_per_token",
        "perplexity",
        "bits_per_byte",
    }
    assert all("| paired t, " in line for line in plain)


def test_a_run_and_a_folder(full_run: Path, two: list[Path]) -> None:
    side = read_side(full_run, "run")
    assert side.rows["perplexity", "val/prose", "nats_per_token", "off"]["value"] > 0
    folder = read_side(two[0].parent, "folder")
    assert folder.samples["one", "t", "acc", "off"]["0"] == (1.0, 1.0)
    assert aligned([side, folder]) == [side, folder]
    with pytest.raises(ConfigError, match="does not exist"):
        read_side(full_run / "nowhere", "x")
    with pytest.raises(ConfigError, match="holds no evaluation; run nl eval"):
        read_side(full_run / "artifacts", "x")
    two[0].write_text("{")
    with pytest.raises(ConfigError, match=r"one\.json: not JSON"):
        read_side(two[0], "x")


def script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    path = str(SCRIPTS / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    return int(stop.value.code or 0)


def test_compare_command(
    two: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out" / "c.html"
    assert script(monkeypatch, "compare", "--inputs", *two, "--output", out) == 0
    printed = capsys.readouterr().out
    assert "| difference | verdict |" in printed
    assert "warning: one: tokenizers differ" in printed
    html = out.read_text()
    assert "http" not in html.replace("http-equiv", "")
    assert html.count('<table class="sortable">') == 2
    assert out.with_suffix(".md").read_text().startswith("# Runs side by side")
    for arguments, words in (
        (["--inputs", two[0]], "--inputs: 1; name at least two"),
        (["--inputs", *two, "--names", "a"], "--names: ['a']; one different name"),
        (["--inputs", *two, "--output", "x.txt"], "must end in .html"),
        (["--inputs", *two, "--set", "needle.samples=1"], "--set: settings of evaluators"),
        (["--a-config", "x", "--inputs", *two], "--a-config: give --a-checkpoint"),
        (["--a-checkpoint", "no", "--b-checkpoint", two[0]], "no: does not exist"),
    ):
        assert script(monkeypatch, "compare", *arguments) == 2
        assert words in capsys.readouterr().err


def test_summarize(
    two: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert flattened({"a": {"b": 1, "c": "x", "d": [2.5, True]}}) == {"a.b": 1, "a.d.0": 2.5}
    assert summary(two, ["step"]).splitlines()[2:] == ["| step | 3 | 3 |"]
    out = tmp_path / "s" / "summary.md"
    inputs = ["--inputs", two[0], "--inputs", two[1]]
    flags = [*inputs, "--keys", "t.*", "step", "--output", out]
    assert script(monkeypatch, "summarize", *flags) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "| key | one | two |"
    assert "| t.acc.off | 0.1667 | 1 |" in lines
    assert "| step | 3 | 3 |" in lines
    assert not any(line.startswith("| gone") for line in lines)
    assert script(monkeypatch, "summarize", *inputs, "--keys", "nothing.*") == 2
    assert "no number matches 'nothing.*'; there are step" in capsys.readouterr().err
