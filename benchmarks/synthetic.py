"""The core suite: what ten mixers of equal size learn of small worlds; writes reports/synthetic.md.

Reads finished sweeps of configs/sweep/nl_core.yaml and nl_core_continual.yaml; nothing is trained
here. Every sentence with a number is made from the runs.

Example: python benchmarks/synthetic.py --root runs/nl_core runs/nl_core_continual
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import study
from synthetic_cells import FAMILIES, MEMORIES, Suite, apart, as_csv_rows, read
from synthetic_figures import heat, lengths, pareto
from synthetic_memory import changes, errors, languages, levels, memories, states, widths

LEAST = 0.01
"""A smaller difference of accuracies is none."""
BUDGET = 3600
"""CPU seconds that the suite was given."""


def results(suite: Suite, key: str) -> list[str]:
    """One number of every task and mixer; chance, oracle and the best shortcut beside it."""
    lines = []
    for task in suite.tasks:
        case = suite.fact(task, lambda page: page["test"])
        if case is None:
            lines.append([task, *["-"] * (len(suite.mixers) + 3)])
            continue
        name, best = max(case["shortcuts"].items(), key=lambda pair: pair[1])
        known = (f"{case['chance']:.2f}", f"{case['oracle']:.2f}", f"{best:.2f} ({name})")
        beside = known if key == "accuracy" else ()
        cells = [study.interval(suite.values(task, m, "test", "on", key), 2) for m in suite.mixers]
        lines.append([task, *beside, *cells])
    extra = ("chance", "oracle", "best shortcut") if key == "accuracy" else ()
    return study.table(["task", *extra, *suite.mixers], lines)


def family_claims(suite: Suite) -> list[str]:
    """Per family the best mean score, and the mixers whose intervals reach it."""
    lines = []
    for family, tasks in FAMILIES.items():
        there = [task for task in tasks if task in suite.tasks]
        found = {m: suite.family(m, there) for m in suite.mixers}
        known = {m: values for m, values in found.items() if values}
        if not known:
            lines.append(f"- {family}: no mixer has finished all of its tasks.")
            continue
        best = max(known, key=lambda m: study.student(known[m])[0])
        near = [m for m in known if m != best and not apart(known[best], known[m])]
        reach = (
            f"the intervals of {', '.join(near)} meet its own" if near else "no other's meets it"
        )
        text = study.interval(known[best], 2)
        lines.append(f"- {family} ({len(there)} tasks): {best} with a score of {text}; {reach}.")
    return lines


def verdicts(suite: Suite) -> list[str]:
    """Where a mixer with memories is above, level with or below the best of the others."""
    others = [m for m in suite.mixers if m not in MEMORIES]
    lines = []
    for mixer in (m for m in MEMORIES if m in suite.mixers):
        above, below, level = list[str](), list[str](), list[str]()
        for task in suite.tasks:
            mine = suite.values(task, mixer)
            rivals = {m: suite.values(task, m) for m in others}
            rivals = {m: values for m, values in rivals.items() if values}
            if not mine or not rivals:
                continue
            best = max(rivals, key=lambda m: study.student(rivals[m])[0])
            gap = study.student(mine)[0] - study.student(rivals[best])[0]
            decided = apart(mine, rivals[best]) and abs(gap) >= LEAST
            side = level if not decided else (above if gap > 0 else below)
            side.append(f"{task} ({gap:+.2f} to {best})")
        lines.append(
            f"- {mixer}: above in {len(above)} tasks{listed(above)}; **below in {len(below)}**"
            f"{listed(below)}; undecided in {len(level)}{listed(level)}."
        )
    return lines


def listed(names: list[str]) -> str:
    """``: a, b`` or nothing."""
    return f": {', '.join(names)}" if names else ""


def costs(suite: Suite) -> list[str]:
    """CPU seconds per run and mixer, in all, and against the budget."""
    lines, total, count = [], 0.0, 0
    for mixer in suite.mixers:
        spent = [
            page["process"]["cpu_seconds"]
            for task in suite.tasks
            for page in suite.pages(task, mixer)
        ]
        total, count = total + sum(spent), count + len(spent)
        if spent:
            each = f"{sum(spent) / len(spent):.1f}"
            lines.append([mixer, f"{len(spent)}", each, f"{sum(spent):.0f}"])
    whole = [f"{name} {seconds:,.0f} s" for name, seconds in suite.cpu.items()]
    trees = (
        f" With the start of Python and the sweep's own work: {', '.join(whole)}." if whole else ""
    )
    return [
        f"{count} runs took {total:,.0f} CPU seconds up to the end of their main evaluation "
        f"(budget {BUDGET:,}).{trees}",
        *study.table(["mixer", "runs", "CPU seconds per run", "sum"], lines),
    ]


def standing(suite: Suite) -> str:
    """How many runs are there, and which are not."""
    states: dict[str, int] = {}
    open_: dict[str, int] = {}
    for (task, _, _), cell in suite.cells.items():
        states[cell.state] = states.get(cell.state, 0) + 1
        if cell.state != "done":
            open_[task] = open_.get(task, 0) + 1
    text = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    missing = ", ".join(f"{count} of {task}" for task, count in open_.items())
    return f"Runs: {text}." + (f" Not done: {missing}." if missing else "")


def solved(suite: Suite) -> list[str]:
    """Tasks that some mixer answers nearly always; those on which none is right half the time."""
    best = {}
    for task in suite.tasks:
        known = [mean for m in suite.mixers if (mean := suite.mean(task, m)) is not None]
        if known:
            best[task] = max(known)
    done = [task for task, value in best.items() if value >= 0.99]
    hard = [f"{task} (best {value:.2f})" for task, value in best.items() if value < 0.5]
    return [
        f"Some mixer reaches 0.99 on {len(done)} of {len(best)} tasks{listed(done)}."
        + (f" All of them stay below one half on {', '.join(hard)}." if hard else "")
    ]


def protocol(suite: Suite) -> list[str]:
    """What was run, and how."""
    sizes = {c.parameters for c in suite.cells.values() if c.parameters}
    commits = sorted({c.commit for c in suite.cells.values() if c.commit})
    spread = f"{min(sizes):,} to {max(sizes):,}" if sizes else "-"
    return [
        "# Small worlds, ten mixers",
        "",
        "Made by `python benchmarks/synthetic.py` from `nl sweep configs/sweep/nl_core.yaml` and "
        f"`nl_core_continual.yaml` (commits {', '.join(commits)}). {standing(suite)}",
        "",
        "One backbone (two blocks of width 64, vocabulary 128), the mixer exchanged, the inner "
        f"width solved for equal parameters ({spread}). One protocol for all: AdamW at 3e-3, "
        "weight decay 0.01, clipping at 1, 20 steps of warm-up and a cosine (constant over "
        "phases), as many steps for every mixer of a task, the weights of the last step; no value "
        "was chosen for any mixer. Sizes are those of the preset small: rows are short (18 to 32 "
        "tokens, streams of 256) and runs last seconds: the page says what is learned soon, not "
        "what in the end. Test rows were never "
        "trained on. Memories of HOPE blocks learn from what is read (signal=self): labels of a "
        "probe are its answers and are shown to no memory. Titans and self-modifying memories are "
        "written every 8 tokens, levels every 8 and 16; gated_delta, lstm, gru and quadratic_rnn "
        "write at every token, which parity and its like ask for. Numbers are means over three "
        "seeds +- their 95 % interval (Student).",
        "",
    ]


def page(suite: Suite, output: Path, width: Suite | None = None) -> list[str]:
    """The lines of the page."""
    return [
        *protocol(suite),
        heat(suite, output),
        "",
        "## What the runs say",
        "",
        *solved(suite),
        "",
        "Best mean score per family, (accuracy - chance) / (1 - chance):",
        "",
        *family_claims(suite),
        "",
        "Titans and HOPE against the best of the mixers without such memories, task by task "
        "(accuracy; decided where 95 % intervals do not meet and means differ by "
        f"{LEAST:g} or more):",
        "",
        *verdicts(suite),
        "",
        "## Accuracy on test rows",
        *results(suite, "accuracy"),
        "## Rows without an error",
        *results(suite, "exact"),
        *memories(suite),
        *states(suite),
        pareto(suite, output),
        "",
        "## Longer rows than in training",
        "",
        "Accuracy at once, twice and four times the length of training (grey); every other setting "
        "is that of training.",
        "",
        *lengths(suite, output),
        *languages(suite),
        *changes(suite),
        *errors(suite),
        *levels(suite),
        *widths(suite, width),
        "## What it cost",
        "",
        *costs(suite),
        "Every reading of every run is in [synthetic.csv](synthetic.csv).",
    ]


def main() -> int:
    """Parse, read, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    roots = [Path("runs/nl_core"), Path("runs/nl_core_continual")]
    parser.add_argument("--root", type=Path, nargs="+", default=roots, help="sweep directories")
    parser.add_argument("--output", type=Path, default=Path("reports/synthetic.md"))
    parser.add_argument(
        "--width",
        type=Path,
        default=Path("runs/nl_core_width"),
        help="sweep of equal width; left out where there is none",
    )
    args = parser.parse_args()
    missing = [str(root) for root in args.root if not (root / "sweep.yaml").is_file()]
    if missing:
        print(f"error: --root: {', '.join(missing)}: no sweep there.", file=sys.stderr)
        return 2
    suite = read(tuple(args.root))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.with_name("synthetic.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(as_csv_rows(suite))
    width = read((args.width,)) if (args.width / "sweep.yaml").is_file() else None
    study.save_page(args.output, page(suite, args.output, width))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
