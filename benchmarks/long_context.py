"""Does a memory carry facts further than attention sees, and further than it was trained?

Trains each model through train.py on experiment=long_context/short, then from its weights on
experiment=long_context/recall (finished runs are kept),
measures it with scripts/eval/recall.py over context length and depth (files are kept too), then
writes the page, and next to it the heat maps as SVG and CSV, from the JSON files.

Example: python benchmarks/long_context.py --seeds 1 --samples 100
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study

from nl.report.figures import standalone
from nl.report.heat import HeatMap, HeatMaps, heat_csv, heat_svg

SHORT, EXPERIMENT = "experiment=long_context/short", "experiment=long_context/recall"
MEMORY, REFERENCE = "titan_mal", "sliding_window"
LABELS = {
    "titan_mal": "Titans memory before a window of attention",
    "sliding_window": "the same window of attention, no memory",
    "titan_mal-wide": "as titan_mal, but attention to everything and a memory that never writes",
    "transformer": "attention to everything",
    "transformer-4x": "the same, four times as many steps on short rows",
}
SHORTER = {"transformer-4x": ("train.steps=1200",)}
"""What a label changes in its first part."""
BOTH = {"titan_mal-wide": ("model.titan.window=4096", "objective.write=false")}
"""What a label changes in both parts."""
LENGTHS = (64, 128, 256, 512, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Measured:
    """One model with its file of cells."""

    label: str
    seed: int
    data: dict[str, Any]
    result: study.Result

    def cell(self, mode: str, length: int, depth: float) -> dict[str, Any]:
        """One cell of the grid."""
        wanted = {"memorize": mode, "length": length, "depth": depth}
        return next(c for c in self.data["cells"] if wanted.items() <= c.items())

    @property
    def modes(self) -> list[str]:
        """Memorisation modes that were measured."""
        return list(dict.fromkeys(c["memorize"] for c in self.data["cells"]))


def name(label: str, seed: int) -> str:
    """The directory of one run."""
    return f"{label}-s{seed}"


def cells(args: argparse.Namespace, label: str, seed: int) -> list[study.Cell]:
    """Short rows first, then long ones; all have as many parameters as the one with a memory."""
    goal = study.parameters((EXPERIMENT, f"model.block={MEMORY}"))
    block = label.partition("-")[0]
    width = study.width(block, (EXPERIMENT, f"model.block={block}"), goal)
    chosen: tuple[str, ...] = (
        f"model.block={block}",
        width,
        f"seed={seed}",
        "checkpoint.export=false",
    )
    chosen += BOTH.get(label, ())
    first = f"{name(label, seed)}-short"
    begun = f"init_from={(args.root / first).resolve()}"
    return [
        study.Cell(first, (SHORT, *chosen, *SHORTER.get(label, ()))),
        study.Cell(name(label, seed), (EXPERIMENT, *chosen, begun)),
    ]


def measure(args: argparse.Namespace, label: str, seed: int) -> None:
    """Write the cells of one finished run, unless they are there."""
    home = args.root / name(label, seed)
    target = args.root / f"{name(label, seed)}.recall.json"
    if study.standing(args.root, study.Cell(home.name, ())) != "done" or target.is_file():
        return
    modes = ["off", "context"] if label == MEMORY else ["off"]
    command = [sys.executable, "scripts/eval/recall.py", "--checkpoint", str(home.resolve())]
    command += ["--output", str(target.resolve()), "--samples", str(args.samples)]
    command += ["--memorize", *modes, "--lengths", *map(str, LENGTHS)]
    command += ["--depths", *map(str, DEPTHS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(study.REPOSITORY / "src")}
    subprocess.run(command, env=env, cwd=study.REPOSITORY, check=True)


def found(args: argparse.Namespace) -> list[Measured]:
    """What has been measured."""
    models = []
    for seed in range(args.seeds):
        for label in args.labels:
            path = args.root / f"{name(label, seed)}.recall.json"
            result = study.result(args.root, name(label, seed))
            if path.is_file() and result is not None:
                models.append(Measured(label, seed, json.loads(path.read_text()), result))
    return models


def heat(one: Measured, mode: str) -> HeatMap:
    """Depth from the top down, length from left to right."""
    rows = [[one.cell(mode, length, depth) for length in LENGTHS] for depth in DEPTHS]
    what = f"{one.label}, memory {'writing' if mode == 'context' else 'off'}"
    return HeatMap(
        title=what if one.label == MEMORY else one.label,
        rows=[f"{depth:g}" for depth in DEPTHS],
        columns=[str(length) for length in LENGTHS],
        values=[[c["accuracy"] for c in row] for row in rows],
        intervals=[[(c["low"], c["high"]) for c in row] for row in rows],
        counts=[[c["n"] for c in row] for row in rows],
    )


def picture(page: Path, models: list[Measured], stem: str) -> str:
    """The maps of one seed, written next to the page; the line that shows them."""
    maps = [heat(one, mode) for one in models for mode in reversed(one.modes)]
    drawn = HeatMaps(
        stem, maps, "depth of the fact", "tokens read before the answer", "share of right answers"
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    (page.parent / f"{stem}.svg").write_text(standalone(heat_svg(drawn)))
    (page.parent / f"{stem}.csv").write_text(heat_csv(drawn))
    return f"![Share of right answers]({stem}.svg)"


def shown(one: dict[str, Any]) -> str:
    """Share and interval."""
    return f"{one['accuracy']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def cells_table(models: list[Measured]) -> list[str]:
    """Every cell with its interval, chance and looking the key up beside them."""
    lines = []
    for one in models:
        for mode in reversed(one.modes):
            for length in LENGTHS:
                row = [shown(one.cell(mode, length, depth)) for depth in DEPTHS]
                memory = (
                    {"context": "writing", "off": "off"}[mode] if one.label == MEMORY else "none"
                )
                lines.append([one.label, memory, str(length), *row])
    if models:
        data = models[0].data
        chance, known = f"{data['chance']:.3f}", shown(data["oracle"])
        lines += [["guessing a value", "-", "any", *[chance] * len(DEPTHS)]]
        lines += [["looking the key up", "-", "any", *[known] * len(DEPTHS)]]
    return study.table(["model", "memory", "length", *(f"depth {d:g}" for d in DEPTHS)], lines)


def models_table(root: Path, models: list[Measured]) -> list[str]:
    """What the models are and what they cost."""
    lines = []
    for one in models:
        both = (one.result, study.result(root, f"{name(one.label, one.seed)}-short"))
        spent = [r.cpu_seconds for r in both if r is not None and r.cpu_seconds is not None]
        cpu = sum(spent) if len(spent) == 2 else None
        used = "-" if cpu is None else f"{cpu / 60:.1f}"
        val = f"{one.result.final['val/loss']:.3f}"
        size = f"{one.result.parameters:,}"
        lines.append([one.label, str(one.seed), LABELS[one.label], size, val, used])
    head = ["model", "seed", "what it is", "parameters", "val loss", "CPU minutes"]
    return study.table(head, lines)


def verdict(models: list[Measured]) -> list[str]:
    """The claim, cell by cell: far facts at twice the training length, with and without writes."""
    lines = []
    for one in models:
        if one.label != MEMORY:
            continue
        twice = 2 * one.data["train"]["seq_len"]
        far = [depth for depth in DEPTHS if depth < 1]
        for mode in reversed(one.modes):
            cells = [one.cell(mode, twice, depth) for depth in far]
            low, high = min(c["accuracy"] for c in cells), max(c["accuracy"] for c in cells)
            how = "writing" if mode == "context" else "off"
            lines.append(
                f"- seed {one.seed}, memory {how}: at {twice} tokens, twice the training length, "
                f"{low:.2f} to {high:.2f} over depths {far[0]:g} to {far[-1]:g}, n = "
                f"{cells[0]['n']} each; chance {one.data['chance']:.3f}."
            )
    return lines


def page(args: argparse.Namespace, models: list[Measured]) -> list[str]:
    """The lines of the page; pictures are written next to it."""
    if not models:
        return ["# Long context", "", "No finished run."]
    data = models[0].data
    task, train = data["task"], data["train"]
    lines = [
        "# Does a memory reach further than attention, and further than training?",
        "",
        f"Made by `{study.call('long_context')}` from the JSON files that scripts/eval/recall.py "
        f'wrote. A row is noise with {task["pairs"]} facts "key value" in it; a key is asked for '
        f"again and the value has to follow: {task['keys']} keys, {task['keys']} values, "
        f"{task['noise']} ids of noise. Trained on rows of {train['seq_len']} tokens "
        f"(`{EXPERIMENT}`, begun from `{SHORT}`), measured on rows up to "
        f"{max(LENGTHS)}: right is the likeliest token of the whole vocabulary. 95 % intervals "
        f"after Wilson. Each sample has its own random stream. {data['state']}.",
        "",
        *verdict(models),
    ]
    for seed in dict.fromkeys(one.seed for one in models):
        lines += [
            "",
            picture(args.output, [m for m in models if m.seed == seed], f"long_context_s{seed}"),
        ]
    lines += ["", "## Models", *models_table(args.root, models)]
    for seed in dict.fromkeys(one.seed for one in models):
        lines += [
            "",
            f"## Every cell, seed {seed}",
            *cells_table([m for m in models if m.seed == seed]),
        ]
    if args.notes.is_file():
        lines += ["", *args.notes.read_text().splitlines()]
    return lines


def main() -> int:
    """Train what is missing, measure it, write the page."""
    import nl.assembly  # noqa: F401 - registers the parts

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/long_context", "reports/long_context.md")
    add("--seeds", type=int, default=1, choices=range(1, 6), help="runs per model")
    add("--samples", type=int, default=100, help="per cell")
    add("--labels", nargs="*", default=list(LABELS), choices=list(LABELS), help="models")
    notes = Path(__file__).with_name("long_context_notes.md")
    add("--notes", type=Path, default=notes, help="text that ends the page")
    args = parser.parse_args()
    if not args.report_only:
        for seed in range(args.seeds):
            for label in args.labels:
                study.run_cells(cells(args, label, seed), args.root, extra=study.fixed(args))
                measure(args, label, seed)
    study.save_page(args.output, page(args, found(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
