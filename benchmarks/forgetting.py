"""What is forgotten? Three domains one after the other: models and methods, paired over seeds.

Trains what the plan names and is not finished yet (scripts/eval/continual.py does the same), then
writes the page, and next to it R and its metrics as CSV and the heat maps and curves as PNG.

Example: python benchmarks/forgetting.py --seeds 3 --only transformer/naive hope_attention/naive
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study

from nl.cli_classes import classes
from nl.cli_measure import guarded, parser_for
from nl.cli_sequential import sequential
from nl.eval.continual_summary import ALL_BETTER, UNITS, Interval, interval, paired
from nl.eval.forgetting import labels
from nl.eval.sequential import ContinualPlan, Results
from nl.report.continual import draw_curves, draw_panels, forgetting_panels, read_record

NOTES = Path(__file__).with_name("forgetting_notes.md")
SHOWN = {
    "average_loss": "average loss",
    "average_ppl_geometric": "ppl, geometric",
    "forgetting": "forgetting",
    "backward_transfer": "BWT",
    "forward_transfer": "FWT",
    "plasticity_loss": "plasticity loss",
    "anytime_loss": "anytime loss",
}
AGAINST = {
    "joint_gap": "final minus joint",
    "intransigence": "intransigence",
    "plasticity_gap": "learned minus fresh",
}
COMPARED = ("average_loss", "forgetting", "plasticity_loss")
MIN_DECIDED = 3
"""Seeds below which an interval is shown, but no winner is named."""


@dataclass(frozen=True)
class Row:
    """One line of the tables: a model, a method, how its memories are treated when measured."""

    model: str
    method: str
    mode: Any

    @property
    def name(self) -> str:
        """As the tables say it."""
        return f"{self.model}, {self.method}" + (", written" if self.mode == "context" else "")


def rows_of(result: Results) -> list[Row]:
    """Every measured row; models whose modes are equal (no memories) have one."""
    found = []
    for model, method in dict.fromkeys((one.model, one.method) for one in result.found):
        some = next(o for o in result.found if (o.model, o.method) == (model, method))
        modes = list(some.values)
        same = all(some.values[mode] == some.values[modes[0]] for mode in modes)
        found += [Row(model, method, mode) for mode in (modes[:1] if same else modes)]
    return found


def values(result: Results, row: Row, metric: str) -> dict[int, float]:
    """One metric of a row by seed."""
    return result.by_seed(row.model, row.method, row.mode, metric)


def cell(found: dict[int, float], digits: int = 3) -> str:
    """Mean and half interval, or a dash."""
    return interval(list(found.values())).text(digits) if found else "-"


def cost(result: Results, row: Row) -> tuple[str, str, str]:
    """Parameters, seeds and median CPU seconds of a row."""
    mine = [o for o in result.found if (o.model, o.method) == (row.model, row.method)]
    spent = study.median(one.cpu_seconds for one in mine)
    return f"{mine[0].parameters:,}", str(len(mine)), "-" if spent is None else f"{spent:.0f}"


def main_table(result: Results, rows: list[Row]) -> list[str]:
    """Every metric of every row."""
    body = []
    for row in rows:
        parameters, seeds, cpu = cost(result, row)
        shown = [cell(values(result, row, m), 1 if UNITS[m] == "ppl" else 3) for m in SHOWN]
        body.append([row.name, parameters, seeds, *shown, cpu])
    directions = [f"{text} ({ALL_BETTER[metric]})" for metric, text in SHOWN.items()]
    return study.table(["model, method", "parameters", "n", *directions, "CPU s"], body)


def reference_table(result: Results, rows: list[Row]) -> list[str]:
    """Beside joint and fresh training of the same model."""
    body = []
    for row in rows:
        shown = [cell(values(result, row, metric)) for metric in AGAINST]
        if any(text != "-" for text in shown):
            body.append([row.name, *shown])
    if not body:
        return ["No joint or fresh run is finished yet."]
    return study.table(["model, method", *(f"{t} (lower)" for t in AGAINST.values())], body)


def verdict(gap: Interval) -> str:
    """Whether the interval is on one side of zero; below it is better for all that is compared."""
    if gap.n < MIN_DECIDED:
        return f"n = {gap.n}"
    if abs(gap.mean) <= gap.half:
        return "not decided"
    return "better" if gap.mean < 0 else "worse"


def comparisons(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Pairs that answer a question: against the plain baseline, and of writes on and off."""
    rows = [row for row in rows if row.method not in ("joint", "scratch")]
    known = {(r.model, r.method, r.mode): r for r in rows}
    base = known.get(("transformer", "naive", "off"))
    pairs = [(row, base) for row in rows if base is not None and row != base]
    for model, method, mode in list(known):
        if mode == "context":
            pairs += _some(known, (model, method, mode), (model, method, "off"))
            pairs += _some(known, (model, method, mode), (f"{model}_unwritten", method, "off"))
            if method != "naive":
                pairs += _some(known, (model, method, mode), (model, "naive", mode))
            pairs += _some(known, (model, method, mode), ("transformer", "replay", "off"))
    return list(dict.fromkeys(pairs))


def _some(known: dict[Any, Row], one: Any, other: Any) -> list[tuple[Row, Row]]:
    return [(known[one], known[other])] if one in known and other in known else []


def difference_table(result: Results, pairs: list[tuple[Row, Row]]) -> list[str]:
    """Paired differences, below zero the first is better."""
    body = []
    for one, other in pairs:
        line = [f"{one.name} - {other.name}"]
        for metric in COMPARED:
            gap = paired(values(result, one, metric), values(result, other, metric))
            line.append("-" if gap is None else f"{gap.text()}, {verdict(gap)}")
        body.append(line)
    return study.table(["difference", *(SHOWN[metric] for metric in COMPARED)], body)


def ranking(result: Results, rows: list[Row]) -> list[str]:
    """What is best by each metric, of sequential methods with all seeds."""
    lines = []
    full = [
        row
        for row in rows
        if row.method not in ("joint", "scratch")
        and len(values(result, row, "average_loss")) >= MIN_DECIDED
    ]
    for metric in COMPARED:
        means = {row: interval(list(values(result, row, metric).values())) for row in full}
        order = sorted(means, key=lambda row: means[row].mean)
        if len(order) > 1:
            text = "; ".join(f"{row.name} {means[row].text(2)}" for row in order)
            lines.append(f"- {SHOWN[metric]}, best first: {text}.")
    return lines


def matrices(result: Results, rows: list[Row]) -> list[str]:
    """Mean R of every row."""
    body = []
    for row in rows:
        mine = [o for o in result.found if (o.model, o.method) == (row.model, row.method)]
        tables = [one.matrix(result.plan, row.mode) for one in mine]
        for i, label in enumerate(labels(tables[0])):
            cells = [
                interval([float(t.values[i, j]) for t in tables]).text(2)
                for j in range(len(tables[0].segments))
            ]
            body.append([row.name if i == 0 else "", label, *cells])
    names = [spec.name for spec in result.plan.columns()]
    return study.table(["model, method", "after", *names], body)


def pictures(record: dict[str, Any], result: Results, output: Path) -> list[str]:
    """Heat maps and curves of every mode, beside the page."""
    lines = []
    for mode in result.modes():
        panels = forgetting_panels(record, mode)
        words = "memories frozen" if mode == "off" else "memories written while reading"
        for kind in ("matrix", "curves"):
            target = output.with_name(f"{output.stem}_{kind}_{mode}.png")
            if kind == "matrix":
                draw_panels(target, panels, "nats per token")
            else:
                draw_curves(target, [p for p in panels if p.trajectory], "nats per token")
            lines += ["", f"![{kind}, {words}]({target.name})", "", f"{kind.title()}, {words}."]
    return lines


def class_section(args: argparse.Namespace) -> list[str]:
    """Class-incremental classification of the runs of --classes, measured once each."""
    body = []
    for home in args.classes:
        kept = Path(args.root).parent / f"classes_{Path(home).name}.json"
        if not kept.is_file():
            if args.report_only:
                continue
            flags = parser_for(None, str(kept)).parse_args(["--checkpoint", str(home)])
            more: dict[str, Any] = {
                "dataset": None,
                "local_jsonl": None,
                "data_dir": None,
                "task_size": 5,
            }
            more |= {"train_per_label": 10, "eval_per_label": 10, "max_tasks": 3}
            more |= {"task_aware": True, "length_normalise": True, "max_tokens": 96}
            more |= {"max_samples": 0, "smoke": False, "output": kept, "data": args.classes_data}
            classes(argparse.Namespace(**{**vars(flags), **more, "memorize": list(MODES)}))
        record = read_record(kept, "task_aware")
        for mode, found in record["memorize"].items():
            final, lost = (found["metrics"][k] for k in ("average_accuracy_final", LOST))
            learned = found["metrics"]["average_accuracy_learned"]
            body.append(
                [
                    Path(home).name,
                    mode,
                    str(len(record["tasks"])),
                    *(
                        f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})"
                        for s in (learned, final)
                    ),
                    f"{lost['mean']:+.3f} ({lost['low']:+.3f} to {lost['high']:+.3f})",
                    f"{final['chance']:.3f}",
                    str(final["n"]),
                ]
            )
    if not body:
        return []
    head = ["run", "memorize", "tasks", "accuracy when learned", "accuracy at the end", "lost"]
    text = (
        "`scripts/eval/continual_classification.py` on runs of `reports/earlier/comparison.md` "
        "(3.0M parameters, trained on text and code): tasks of five modules of Python's library, "
        "ten held-out snippets of each memorised with their label (`context`), ten classified, "
        "candidates are the five of the task. 95 % intervals: Wilson for accuracies, Student over "
        "examples for what was lost."
    )
    return [
        "## Class-incremental classification",
        "",
        text,
        *study.table([*head, "chance", "n"], body),
    ]


MODES = ("off", "context", "oracle")
LOST = "lost_after_learning"


def introduction(args: argparse.Namespace, plan: ContinualPlan) -> str:
    """What was trained and how it was measured."""
    phases = ", then ".join(f"{phase.domain} ({phase.steps} steps)" for phase in plan.phases)
    return (
        f"Made by `{study.call('forgetting')}` of `{Path(args.plan).as_posix()}`: {phases}, "
        "8 x 256 tokens per step, a constant learning rate after 20 steps of warm-up, every run a "
        "normal run of `train.py`. Rows of one seed read the same tokens in the same order, "
        "methods that differ only later have equal first phases to the last bit, and all models "
        f"have as many parameters. R: nats per token of {plan.documents} held-out documents per "
        f"domain, at most {plan.max_tokens} tokens each, State fresh per document, before training "
        "and after each phase. Mean and half a 95 % interval over seeds (Student); one seed has "
        "none. `written`: memories are written by the document while it is scored, each token "
        "before it is learned from; else they are frozen. Words in brackets say which direction "
        "is good."
    )


def page(args: argparse.Namespace, result: Results, record: dict[str, Any]) -> list[str]:
    """The lines of the page; pictures are written next to it."""
    plan, rows = result.plan, rows_of(result)
    return [
        "# What is forgotten?",
        "",
        introduction(args, plan),
        *main_table(result, rows),
        "",
        "## Beside joint and fresh training",
        "",
        "Joint: the same model, the same tokens, all domains mixed from the start. Fresh: a new "
        "model for each phase. `final minus joint`: the mean over domains at the end. "
        "`intransigence`: the loss right after a domain was learned, minus joint. `learned minus "
        "fresh`: below zero, what came before helps.",
        *reference_table(result, rows),
        "",
        "## Differences, paired by seed",
        "",
        "Below zero the first is better; `better` and `worse` where the 95 % interval does not "
        "hold zero. Of so many intervals about one in twenty misses the truth.",
        *difference_table(result, comparisons(rows)),
        "",
        "## What wins and what does not",
        "",
        *ranking(result, rows),
        "",
        NOTES.read_text().strip() if NOTES.is_file() else "",
        "",
        *class_section(args),
        "",
        "## R",
        *pictures(record, result, args.output),
        *matrices(result, rows),
    ]


def main() -> int:
    """Train what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--plan", default="configs/continual/three_domains.yaml", help="default: %(default)s")
    add("--root", type=Path, default=Path("runs/forgetting/runs"), help="default: %(default)s")
    add("--output", type=Path, default=Path("reports/forgetting.md"), help="default: %(default)s")
    add("--data", type=Path, help="data directory instead of the plan's")
    add("--seeds", type=int, default=0, help="the first N seeds of the plan; 0: all")
    add("--only", nargs="+", metavar="MODEL/METHOD", help="rows to train and show; default: all")
    add("--report-only", action="store_true", help="train nothing, write the page")
    add("--classes", nargs="*", default=[], metavar="RUN", help="runs to classify with, too")
    add("--classes-data", help="data directory of --classes instead of their own")
    args = parser.parse_args()

    def work() -> None:
        results = Path(args.root).parent / "forgetting.json"
        shared = parser_for(None, str(results), single=False).parse_args([])
        options = argparse.Namespace(**{**vars(shared), **vars(args), "output": results})
        result = sequential(options)
        study.save_page(args.output, page(args, result, read_record(results, "better")))
        for name in ("matrix", "metrics"):
            table = args.output.with_name(f"{args.output.stem}_{name}.csv")
            shutil.copyfile(results.with_suffix(f".{name}.csv"), table)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
