"""reports/zero_shot.md: what small models score on tasks that need no download.

Example: python benchmarks/zero_shot.py --checkpoints runs/a/<run> runs/b/<run> --data data/stdlib
Evaluates every checkpoint (cloze tasks through lm_eval, needles, perplexity), keeps what is there
already, and writes the page from these files; --report-only only writes the page.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nl.report.compare import as_markdown, differences, verdict
from nl.report.numbers import DASH, figure
from nl.report.paired import interval
from nl.report.sides import Key, Side, read_side
from nl.report.tables import Cell, Table

ROOT = Path(__file__).resolve().parents[1]
WORK: dict[str, list[str]] = {
    "zeroshot": ["--tasks", "cloze", "--max-samples", "200"],
    "niah": ["--context-lengths", "256", "512", "--samples-per-length", "16"],
    "perplexity": ["--splits", "test", "--max-tokens", "1024"],
}
"""Script and its flags; memorisation off and context, seed 0."""
SHOWN = {
    "zeroshot": ("acc", "answer_nats"),
    "niah": ("choice_accuracy", "exact_match"),
    "perplexity": ("nats_per_token", "bits_per_byte"),
}
TITLES = {
    "zeroshot": "Cloze tasks, zero-shot, through lm_eval",
    "niah": "Needle in a haystack",
    "perplexity": "Perplexity of held-out documents",
}
HEAD = """# Zero-shot scores of small models

Written by `python benchmarks/zero_shot.py` from result files; do not edit. The models have a few
million parameters and were trained for minutes on one CPU core
(`reports/earlier/comparison.md`), so this
page shows what the evaluators measure, not what the architectures can do at size. The public tasks
(PIQA, HellaSwag, ...) are not here because their data is not on this machine: what runs instead is
made from held-out documents. `docs/evaluation.md` says what each number means and how the public
tasks run.

Memory `off`: nothing is written while a text is read; `context`: memories are written by what is
read, before the answer is scored. Intervals hold 95 %: Wilson's for shares, Student's over samples
for the rest. Chance is what a model scores that finds every answer (every token) as likely. A
difference is paired over the same samples: the model's value minus that of the first one, with its
interval. Every model is one seed of training: an interval says what other samples would give, not
what another seed would. Training windows were 256 tokens, so needles at 512 lie beyond them.
"""


def main() -> None:
    """Evaluate what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--checkpoints", nargs="+", type=Path, default=[], help="runs or checkpoints")
    flag("--data", type=Path, default=ROOT / "data/stdlib", help="data directory; default: stdlib")
    flag("--root", type=Path, default=ROOT / "runs/zero_shot", help="where results are kept")
    flag("--output", type=Path, default=ROOT / "reports/zero_shot.md", help=shown)
    flag("--report-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.report_only:
        for checkpoint in args.checkpoints:
            for script in WORK:
                evaluate(script, checkpoint, args.root / checkpoint.name, args.data)
    write(args.root, args.output)


def evaluate(script: str, checkpoint: Path, folder: Path, data: Path) -> None:
    """Run one script in a process of its own, unless its result is there."""
    out = folder / f"{script}.json"
    if out.is_file():
        return
    command = [sys.executable, str(ROOT / "scripts" / "eval" / f"{script}.py")]
    command += ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(out)]
    subprocess.run([*command, *WORK[script]], check=True, stdout=subprocess.DEVNULL)


def write(root: Path, output: Path) -> None:
    """The page and its numbers as CSV."""
    folders = [path.parent for path in root.glob("*/zeroshot.json")]
    folders.sort(key=lambda folder: (not folder.name.startswith("transformer"), folder.name))
    sides = [read_side(folder, folder.name) for folder in folders]
    if not sides:
        raise SystemExit(f"{root}: no results; name --checkpoints.")
    lines = [HEAD]
    for suite, metrics in SHOWN.items():
        keys = [k for side in sides for k in side.rows if k[0] == suite and k[2] in metrics]
        keys = list(dict.fromkeys(key for key in keys if "/all" not in key[1]))
        flags = " ".join(WORK[suite])
        lines += [f"## {TITLES[suite]}", "", f"`python scripts/eval/{suite}.py {flags}`", ""]
        lines += [*as_markdown(values(suite, keys, sides)), ""]
        lines += memory_gain(keys, sides)
    lines += ["## Between models", "", *between(sides), "", *provenance(sides)]
    output.write_text("\n".join(lines) + "\n")
    output.with_suffix(".csv").write_text(as_csv(sides))
    print(f"written: {output}, {output.with_suffix('.csv')}")


def shown(row: dict[str, Any]) -> str:
    """Value and interval."""
    ends = interval(row)
    text = figure(row.get("value"), 3)
    return text if ends is None else f"{text} [{figure(ends[0], 3)}, {figure(ends[1], 3)}]"


def values(suite: str, keys: list[Key], sides: list[Side]) -> Table:
    """A line per task, metric and mode; a column per model."""
    cells = []
    for key in keys:
        rows = [side.rows.get(key, {}) for side in sides]
        some = next(row for row in rows if row)
        words = [key[1], key[2], key[3], figure(some.get("chance"), 3), str(some.get("n", DASH))]
        line = [Cell(word, numeric=i > 2) for i, word in enumerate(words)]
        cells.append([*line, *(Cell(shown(row), numeric=True) for row in rows)])
    head = ["task", "metric", "memory", "chance", "n", *(side.name for side in sides)]
    return Table(suite, suite, head, cells, [])


def memory_gain(keys: list[Key], sides: list[Side]) -> list[str]:
    """What writing changes in each model: context minus off on the same samples."""
    lines = []
    for side in sides:
        off = Side(side.name, side.source, {}, {})
        on = Side(side.name, side.source, {}, {})
        for key in keys:
            target = {"off": off, "context": on}.get(key[3])
            if target is not None and key in side.rows:
                plain = (key[0], key[1], key[2], "context - off")
                target.rows[plain] = side.rows[key]
                target.samples[plain] = side.samples.get(key, {})
        found = {key: line[0] for key, line in differences([off, on]).items()}
        words = ("better", "worse", "no clear difference", "no sample differs")
        counts = dict.fromkeys(words, 0)
        for key, difference in found.items():
            word = verdict(difference, key[2])
            if word:
                counts[word] += 1
        said = ", ".join(f"{word} in {count}" for word, count in counts.items() if count)
        lines.append(f"- {side.name}, writing against not writing: {said} of {len(found)} rows.")
    return [*lines, ""]


def between(sides: list[Side]) -> list[str]:
    """Paired differences to the first model where they are largest to read: one row per domain."""
    first = sides[0]
    lines = [f"Against {first.name}, memory `context`:", ""]
    lines.append("| task | metric | model | difference | n | |")
    lines.append("| --- | --- | --- | ---: | ---: | --- |")
    for key, line in differences(sides).items():
        if key[2] not in SHOWN.get(key[0], ())[:1] or key[3] != "context" or "/all" in key[1]:
            continue
        for side, difference in zip(sides[1:], line, strict=True):
            if difference is None or difference.half is None:
                continue
            low, high = difference.value - difference.half, difference.value + difference.half
            text = f"{difference.value:+.3g} [{low:+.3g}, {high:+.3g}]"
            words = [key[1], key[2], side.name, text, str(difference.n)]
            lines.append(f"| {' | '.join(words)} | {verdict(difference, key[2])} |")
    return lines


def provenance(sides: list[Side]) -> list[str]:
    """What the numbers depend on."""
    lines = ["## Where the numbers come from", ""]
    for side in sides:
        facts = side.facts["zeroshot"]
        lines.append(
            f"- {side.name}: step {facts['step']}, configuration {facts['config_hash']}, tokenizer "
            f"{facts['tokenizer']['sha256'][:12]}, seed {facts['seed']}"
        )
    details = json.loads((sides[0].source / "zeroshot.json").read_text())["details"]
    lines.append(
        f"- lm_eval {details['lm_eval']}; contexts as its hf model has them "
        f"(begin={details['begin']}, at most {details['max_length']} tokens)"
    )
    for name, task in details["tasks"].items():
        lines.append(f"- {name}: {task['samples']} samples, prompts {task['prompts_sha256'][:12]}")
    return lines


def as_csv(sides: list[Side]) -> str:
    """Every row of every model."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ("value", "stderr", "n", "chance", "note")
    writer.writerow(("model", "suite", "task", "metric", "memorize", *columns, "low", "high"))
    for side in sides:
        for key, row in side.rows.items():
            ends = interval(row) or (None, None)
            writer.writerow((side.name, *key, *(row.get(c) for c in columns), *ends))
    return out.getvalue()


if __name__ == "__main__":
    main()
