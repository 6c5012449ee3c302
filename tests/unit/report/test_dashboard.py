"""The dashboard of a sweep: cells, states, marks, files, and the page in a real browser."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nl.cli import main
from nl.report import write_report
from nl.report.cells import family_of, lower_is_better, make_cells, shown_keys, split_of
from nl.report.legacy_csv import write_legacy
from nl.report.sweep_page import write_sweep_page

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, boards: Any) -> Path:
    root: Path = boards.board(tmp_path_factory.mktemp("board") / "sweep")
    write_sweep_page(root)
    return root


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    found: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return found


def test_no_cell_is_dropped(sweep: Path) -> None:
    cells = {(c["task"], c["model"]): c for c in data_of(sweep / "index.html")["cells"]}
    assert {place: cell["state"] for place, cell in cells.items()} == {
        ("mqar", "small"): "done",
        ("mqar", "large"): "excluded",
        ("mqar", "memory"): "done",
        ("single_digit_sum", "small"): "partial",
        ("single_digit_sum", "large"): "failed",
        ("single_digit_sum", "memory"): "running",
        ("any_abs_gt_one", "small"): "broken",
        ("any_abs_gt_one", "large"): "done",
        ("any_abs_gt_one", "memory"): "running",
    }
    assert cells["any_abs_gt_one", "memory"]["runs"][0]["step"] == "step 5 of 20"
    assert cells["single_digit_sum", "memory"]["runs"][0]["step"] == "43 %"
    assert "no</b>" in cells["single_digit_sum", "large"]["runs"][0]["error"]


def test_statistics_marks_and_links(sweep: Path) -> None:
    found = data_of(sweep / "index.html")
    cells = {(c["task"], c["model"]): c for c in found["cells"]}
    mean, half, n, low, high = cells["mqar", "small"]["values"]["test|accuracy"]
    assert (mean, n, low, high) == (pytest.approx(0.7), 3, 0.6, 0.8), "a later row replaces"
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-4)
    assert cells["mqar", "small"]["chance"]["test|accuracy"] == 0.5
    assert cells["mqar", "small"]["sizes"]["test|accuracy"] == 200
    assert "flags" not in cells["mqar", "small"]
    assert cells["mqar", "memory"]["flags"] == ["dead"]
    assert cells["single_digit_sum", "small"]["flags"] == ["seeds", "part", "overlap"]
    assert [run["page"] for run in cells["mqar", "small"]["runs"]][1] == (
        "mqar_small/seed_1/report.html"
    )
    assert [t["family"] for t in found["tasks"]] == ["recall", "sums", "single numbers"]
    assert found["overlap"][0]["rate"] == pytest.approx(0.035)
    assert found["splits"] == ["train", "test"], "a training row gives way to the evaluation"
    assert [m["name"] for m in found["measures"]] == ["accuracy", "loss"]
    text = (sweep / "index.html").read_text()
    assert "made &lt;b&gt;up" in text
    assert "<b>up" not in text
    assert text.count("</script>") == 2, "an error cannot end the data early"
    assert "http" not in text.replace("http-equiv", "")
    assert len(text) < 2_000_000


def test_names_of_numbers() -> None:
    assert split_of("eval/classification/test/accuracy") == ("classification", "test", "accuracy")
    assert split_of("eval/probe/test/slice/gap_4/accuracy") == (
        *("probe", "test/slice/gap_4", "accuracy"),
    )
    assert split_of("val/prose/loss") == ("", "val/prose", "loss")
    assert split_of("train/memory/0/writes") is None
    assert split_of("loss") is None
    assert family_of("aa_bb_cc") == "sums"
    assert family_of("whatever") == "other"
    assert lower_is_better("test_loss")
    assert not lower_is_better("accuracy")
    two = [{"column/task": "a", "metrics": {"eval/x/test/acc": 1.0, "eval/y/test/acc": 1.0}}]
    assert set(shown_keys(two, {}).values()) == {"x test|acc", "y test|acc"}
    many = {f"eval/x/slice{n}/acc": 1.0 for n in range(60)} | {"eval/x/test/acc": 1.0}
    rows = [{"column/task": "a", "metrics": many}]
    rows += [{"column/task": t, "metrics": {"eval/x/test/acc": 1.0}} for t in "bcd"]
    assert set(shown_keys(rows, {}).values()) == {"test|acc"}


def test_rules_parts_and_frozen_memories(tmp_path: Path, boards: Any) -> None:
    told = [
        *(("test", "accuracy", 0.8, 0.2), ("test/oracle", "accuracy", 1.0, 0.2)),
        *(("test/shortcut last", "accuracy", 0.5, 0.2), ("test/shortcut b", "accuracy", 0.6, 0.2)),
        *(("test/chance", "accuracy", 0.2, 0.2), ("test", "accuracy/gap=4", 0.9, None)),
        *(("test", "writes/titan", 3.0, None), ("test/frozen", "writes/titan", 0.0, None)),
        ("test/frozen", "accuracy", 0.3, 0.2),
    ]
    names = ("task", "metric", "value", "chance")
    evals = [{"suite": "probe", **dict(zip(names, one, strict=True))} for one in told]
    metrics = {f"eval/probe/{e['task']}/{e['metric']}": e["value"] for e in evals}
    row = boards.row("mqar", "small", 0, 0.1) | {"metrics": metrics}
    run = tmp_path / row["run_dir"]
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"evals": evals}))
    (cell,), _, _ = make_cells(tmp_path, {}, [row], lambda row: "")
    assert set(cell.values) == {"test|accuracy", "test/frozen|accuracy"}
    assert cell.levels["test|accuracy"] == {"oracle": 1.0, "shortcut": 0.6}
    assert "dead" not in cell.flags
    row["metrics"]["eval/probe/test/writes/titan"] = 0.0
    (cell,), _, _ = make_cells(tmp_path, {}, [row], lambda row: "")
    assert "dead" in cell.flags


def test_further_axes_are_settings(tmp_path: Path, boards: Any) -> None:
    rows = [
        {**boards.row("mqar", "small", 0, 0.5), "column/protocol": protocol}
        for protocol in ("iso-width", "iso-parameter")
    ]
    cells, tasks, models = make_cells(tmp_path, {}, rows, lambda row: "")
    assert [cell.facet for cell in cells] == ["protocol iso-width", "protocol iso-parameter"]
    assert (tasks, models) == (["mqar"], ["small"])


def test_several_sweeps_make_one_dashboard(sweep: Path, tmp_path: Path, boards: Any) -> None:
    other = boards.board(tmp_path / "other")
    rows = [boards.row("parity", "small", seed, 0.5) for seed in range(3)]
    (other / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    (other / "parity_small/seed_1").mkdir(parents=True)
    (other / "parity_small/seed_1/report.html").write_text("x")
    page = tmp_path / "all.html"
    assert main(["report", str(sweep), str(other), "--index", str(page)]) == 0
    found = data_of(page)
    assert [task["name"] for task in found["tasks"]][-1] == "parity"
    cells = {(c["task"], c["model"]): c for c in found["cells"]}
    assert cells["parity", "small"]["runs"][1]["page"] == "other/parity_small/seed_1/report.html"
    assert cells["mqar", "small"]["values"]["test|accuracy"][2] == 3
    assert cells["parity", "large"]["state"] == "missing"


def test_pages_and_files_by_the_command(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["report", str(sweep), "--output", str(out), "--legacy-csv"]) == 0
    assert capsys.readouterr().out.split() == [
        str(out / name) for name in ("index.html", "benchmarking.csv", "overlap.csv")
    ]
    lines = list(csv.DictReader((out / "benchmarking.csv").read_text().splitlines()))
    assert {"model": "small", "task": "mqar", "accuracy": "0.750000", "loss": "0.300000"} in lines
    assert {line["task"] for line in lines} >= {"mqar (test)", "any_abs_gt_one (test)"}
    assert (out / "overlap.csv").read_text() == "task,overlap_count,test_total,overlap_rate\n"
    assert main(["report", str(sweep / "mqar_small/seed_0"), "--pages"]) == 2
    assert "is no sweep" in capsys.readouterr().err


def test_a_sweep_without_tasks_has_no_earlier_files_and_nothing_is_written(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "sweep", tmp_path / "out"
    shutil.copytree(sweep, other)
    rows = [json.loads(line) for line in (other / "results.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k != "column/task"} for row in rows]
    (other / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert main(["report", str(other), "--output", str(out), "--legacy-csv"]) == 2
    assert "no accuracies of tasks and models" in capsys.readouterr().err
    assert not out.exists()


def test_earlier_names_and_overlap(tmp_path: Path, boards: Any) -> None:
    rows = [boards.row("aa_bb_cc", "mlp", 0, 0.7)]
    shared = {"aa_bb_cc": [{"seen": 38, "total": 1000}]}
    write_legacy(rows, shared, tmp_path, {"aa_bb_cc": "aa+bb=cc"})
    assert "mlp,aa+bb=cc (test),0.700000,0.300000" in (tmp_path / "benchmarking.csv").read_text()
    assert "aa+bb=cc,38,1000,0.038000" in (tmp_path / "overlap.csv").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """A page that may neither complain nor ask anything of a network."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
    yield page
    page.close()
    assert problems == []


@pytest.fixture
def page(opened: Any, sweep: Path) -> Any:
    opened.goto(f"file://{sweep / 'index.html'}")
    return opened


def column(page: Any, table: str, number: int) -> list[str]:
    found: list[str] = page.locator(f"#{table} tbody tr > :nth-child({number})").all_inner_texts()
    return found


def test_states_are_words(page: Any) -> None:
    shown = page.locator("#table-test").inner_text()
    for word in ("failed", "broken", "running", "43 %", "left out", "step 5 of 20"):
        assert word in shown
    assert page.locator("#heatmap td.open").count() == 5
    assert "dead" not in shown
    assert "never written" in page.locator("#legend").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_buttons_filters_and_the_address(page: Any) -> None:
    page.get_by_role("button", name="loss", exact=True).click()
    assert "metric=loss" in page.url
    assert column(page, "table-test", 3)[0].startswith("0.300")
    page.get_by_role("button", name="models down").press("Enter")
    assert column(page, "table-test", 1) == ["small", "large", "memory"]
    page.locator("#family").select_option("sums")
    assert page.locator("#table-test thead th").count() == 3
    page.keyboard.press("/")
    page.keyboard.type("large")
    assert column(page, "table-test", 1) == ["large"]
    address = page.url
    page.keyboard.press("Escape")
    assert len(column(page, "table-test", 1)) == 3
    page.goto("about:blank")
    page.goto(address)
    assert column(page, "table-test", 1) == ["large"]
    assert page.locator("#filter").input_value() == "large"
    page.evaluate("location.hash = '#metric=nonsense&split=no&sort=x:y'")
    assert "accuracy" in page.locator("#heat-title").inner_text()
    page.locator("#choose summary").click()
    page.locator("#models input[value=large]").uncheck()
    assert "hide=large" in page.url
    assert page.locator("#table-test thead th").count() == 4


def test_sorting_and_walking_by_keyboard(page: Any) -> None:
    head = page.locator("#table-test thead button").nth(2)
    head.focus()
    page.keyboard.press("Enter")
    first = column(page, "table-test", 3)
    assert [text.split()[0] for text in first[:2]] == ["0.800", "0.700"]
    assert "broken" in first[2], "what has no number stays at the end"
    page.keyboard.press("Enter")
    assert [t.split()[0] for t in column(page, "table-test", 3)[:2]] == ["0.700", "0.800"]
    assert page.locator("#table-test th[aria-sort=ascending]").count() == 1
    assert "sort=table-test" in page.url
    page.locator("#table-test td[data-task]").first.focus()
    page.keyboard.press("ArrowDown")
    told = page.locator("#detail")
    assert "small on single_digit_sum" in told.inner_text()
    assert "seen in training" in told.inner_text()
    page.keyboard.press("ArrowRight")
    assert "</script><b>no</b>" in told.inner_text(), "an error is text, never markup"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_url("**/single_digit_sum_small/seed_0/report.html")


def test_colours_and_print(page: Any) -> None:
    def paper() -> str:
        found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    light = paper()
    page.emulate_media(color_scheme="dark")
    assert paper() != light
    page.emulate_media(media="print", color_scheme="light")
    assert not page.locator("#controls").is_visible()
    assert page.locator("#table-train").is_visible()
    page.emulate_media(media="screen")
    with page.expect_download() as told:
        page.locator("#save-csv").click()
    lines = list(csv.DictReader(Path(told.value.path()).read_text().splitlines()))
    assert {line["state"] for line in lines} >= {"failed", "running", "broken", "excluded"}
    assert sum(line["task"] == "mqar" and line["model"] == "small" for line in lines) == 4


def test_the_page_of_a_run(opened: Any, tmp_path: Path, boards: Any) -> None:
    run = boards.class_run(tmp_path / "run")
    opened.goto(f"file://{write_report(run)}")

    def examples() -> list[str]:
        found: list[str] = opened.locator("#example-table tbody th").all_inner_texts()
        return found

    assert examples() == ["1 + 2 = 4", "1 + 1 = 2"], "the most confident error of test first"
    opened.locator("#example-order").select_option("unsure")
    assert examples() == ["1 + 1 = 2", "1 + 2 = 4"]
    opened.locator("#example-right").select_option("")
    opened.locator("#example-split").select_option("")
    assert len(examples()) == 6
    opened.locator("#example-kind").select_option("near")
    opened.locator("#example-find").fill("= 4")
    assert set(examples()) == {"1 + 2 = 4"}
    shown = opened.locator("#attention-map")
    assert "0.90" in shown.inner_text()
    opened.locator("#attention-head").select_option(label="2")
    assert "0.90" not in shown.inner_text()
    assert opened.locator("#attention-tokens tbody tr").count() == 12
    opened.locator("#weights summary").press("Enter")
    opened.locator("button[data-weight=w]").press("Enter")
    assert opened.locator("#weights pre").inner_text().split() == [
        "3.000",
        "4.000",
        "0.000",
        "0.000",
    ]
    links = opened.locator(".files a").all_inner_texts()
    assert "artifacts/evals/classification/test.json" in links
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390


def test_pages_of_runs_that_broke_off(opened: Any, tmp_path: Path, boards: Any) -> None:
    run = boards.class_run(tmp_path / "run")
    error = {"type": "ValueError", "message": "<i>lost</i>"}
    (run / "status.json").write_text(json.dumps({"state": "failed", "error": error}))
    (run / "artifacts/evals/classification/attention.json").write_text("[]")
    opened.goto(f"file://{write_report(run)}")
    assert "<i>lost</i>" in opened.locator(".error").inner_text()
    assert opened.locator("#attention").count() == 0
    assert opened.locator("#example-table tbody tr").count() == 2
    empty = tmp_path / "begun"
    empty.mkdir()
    (empty / "status.json").write_text(json.dumps({"state": "running", "step": 0}))
    opened.goto(f"file://{write_report(empty)}")
    assert "running" in opened.locator(".state").inner_text()
    assert "No training metrics yet" in opened.locator("main").inner_text()
