"""Figures of the study of group composition."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study
from groups_cells import SHOTS, name
from groups_read import (
    Specialised,
    Theory,
    model_at,
    over_seeds,
    simulated,
    specialised,
    writes_of,
)

from nl.core.groups import Step, reached
from nl.report.figures import Figure, Line, standalone
from nl.report.heat import HeatMap, HeatMaps, heat_csv, heat_svg
from nl.report.matrix import Matrices, matrix_csv, matrix_svg

POINTS = 250
"""Of a curve, at most."""
WORD = 7
"""The word whose prediction is drawn, of the validation split."""
MIXING = (1, 120, 2000)
"""Steps after which W_mix is drawn."""
REDUCTIONS = (0.5, 0.9, 0.99)


def thinned(curves: dict[str, list[float]]) -> dict[str, Any]:
    """At most ``POINTS`` points, and the last."""
    every = -(-len(curves["x"]) // POINTS)
    return {key: [*values[:-1:every], values[-1]] for key, values in curves.items()}


def label(stair: Step) -> str:
    """``2a+2b``, shortened where many are learned together."""
    names = stair.names
    return "+".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def steps_of_flow(known: Theory, found: dict[str, float], last: float) -> Line:
    """The loss of alternating gradient flows as a line of steps."""
    loss = known.stairs[0].before
    x, y = [1.0], [loss]
    for irrep, step in sorted(found.items(), key=lambda one: one[1]):
        x, y = [*x, step, step], [*y, loss, loss - known.powers[irrep]]
        loss = y[-1]
    return Line("alternating flow of seed 0", [*x, last], [*y, loss], colour=1)


def staircase_figures(
    root: Path, experiment: str, known: Theory, runs: Sequence[str]
) -> list[Figure]:
    """Loss over the stairs of theory and the flow's, and the power of every irrep."""
    title = f"{known.group.name}, {known.length} elements"
    loss: dict[str, Any] = thinned(over_seeds(root, runs, "loss"))
    levels = {f"{stair.before:.3g}, then {label(stair)}": stair.before for stair in known.stairs}
    flow = steps_of_flow(known, simulated(root, experiment, 0), loss["x"][-1])
    many = f"{len(runs)} seeds" if len(runs) > 1 else "1 seed"
    stairs = Figure(
        f"groups_{experiment}_loss",
        f"{title}: mean squared error",
        [Line(f"loss, median of {many}", **loss), flow],
        levels=levels,
        alt="The loss falls from plateau to plateau, where theory and simulated flow have them.",
        wide=True,
        from_zero=True,
    )
    lines = [
        Line(irrep, **thinned(over_seeds(root, runs, f"power/{irrep}")), colour=number)
        for number, irrep in enumerate(known.powers)
    ]
    targets: dict[str, float] = {}
    for irrep, power in known.powers.items():
        same = next((key for key, value in targets.items() if math.isclose(value, power)), None)
        if same is not None:
            del targets[same]
        targets[f"{same or 'template'} {irrep}"] = power
    powers = Figure(
        f"groups_{experiment}_power",
        f"{title}: power of predictions per irrep, median of {many}",
        lines,
        levels=targets,
        alt="Irreducible representations are learned one after the other, up to the template's.",
        wide=True,
    )
    return [stairs, powers]


def network_figure(root: Path, known: Theory, shown: Sequence[tuple[str, str]]) -> Figure:
    """Losses of networks on the same words, seed 0."""
    lines = []
    for number, (run, what) in enumerate(shown):
        steps, losses = study.curve(root, run, "loss")
        line = thinned({"x": steps[:600], "y": losses[:600]})
        lines.append(Line(what, line["x"], line["y"], colour=number))
    return Figure(
        "groups_networks_loss",
        "C3xC3, 3 elements, read one after the other: mean squared error of seed 0",
        lines,
        levels={f"{stair.before:.3g}": stair.before for stair in known.stairs},
        alt="Recurrent networks pass the same plateaus, faster or slower.",
        wide=True,
    )


def prediction_figure(root: Path, experiment: str, known: Theory, title: str) -> Figure:
    """One word's target and what is predicted for it after some steps."""
    import torch

    run = f"{experiment}-shots"
    inputs, target = word(root, run)
    elements = [float(g) for g in range(known.group.order)]
    lines = []
    for number, step in enumerate(SHOTS[experiment]):
        with torch.no_grad():
            pred = model_at(root, run, step)(inputs).pred[0]
        lines.append(Line(f"step {step}", elements, pred.tolist(), colour=number + 1))
    lines.append(Line("target", elements, target.tolist(), colour=0))
    return Figure(
        f"groups_{experiment}_predictions",
        f"{title}: one word, its target and predictions of seed 0",
        lines,
        x_label="element of the group",
        alt="Predictions come to the target representation by representation.",
        wide=True,
    )


def word(root: Path, run: str) -> tuple[Any, Any]:
    """Inputs (1, k, N) and target (N,) of one word of the run's own validation split."""
    from nl.assembly import context_of  # noqa: F401 - registers the parts
    from nl.config.hydra import load_config, run_config

    stream: Any = run_config(load_config(root / run / "config.yaml")).stream
    batch = next(iter(stream.build("val", seed=0, rank=0, world=1)))
    return batch.inputs[WORD : WORD + 1], batch.targets[WORD]


def owners(known: Theory, neurons: Specialised) -> list[str]:
    """Irreps of the template, others that neurons write, and the dead, as blocks."""
    names = [name for stair in known.stairs for name in stair.names]
    others = sorted({*neurons.owner} - {*names, "dead"})
    return [*names, *others, "dead"]


def neuron_figure(experiment: str, known: Theory, neurons: Specialised) -> Figure:
    """Every neuron's norm, irrep by irrep: how many learned what, how purely."""
    lines, at = [], 0
    for number, irrep in enumerate(owners(known, neurons)):
        mine = sorted(
            (neurons.norm[i] for i, own in enumerate(neurons.owner) if own == irrep), reverse=True
        )
        if mine:
            places = [float(at + n) for n in range(len(mine))]
            every = max(1, len(mine) // POINTS)
            lines.append(
                Line(f"{irrep}: {len(mine)}", places[::every], mine[::every], colour=number)
            )
            at += len(mine)
    return Figure(
        f"groups_{experiment}_neurons",
        f"{known.group.name}, {known.length} elements: norm of what each neuron writes",
        lines,
        x_label="neuron, by irrep and norm",
        alt="Neurons belong to one irreducible representation each.",
        wide=True,
    )


def mixing_figure(root: Path, known: Theory) -> tuple[Matrices, list[float], float]:
    """|W_mix| of the recurrent network on the way, its share inside blocks, and that of chance."""
    run = "rnn-shots"
    last = specialised(known.group, writes_of(model_at(root, run)))
    names = owners(known, last)
    order = last.order(names)
    sizes = [last.count(one) for one in names]
    block = np.repeat(np.arange(len(names)), sizes)
    alive = block < len(names) - 1
    same = (block[:, None] == block) & alive & alive[:, None]
    matrices, inside = [], []
    for step in MIXING:
        mix = model_at(root, run, step).cell.mix.detach().double().numpy()[np.ix_(order, order)]
        matrices.append(np.abs(mix))
        squares = np.square(mix)[np.ix_(alive, alive)]
        inside.append(float(squares[same[np.ix_(alive, alive)]].sum() / squares.sum()))
    chance = float(same.sum() / alive.sum() ** 2)
    figure = Matrices(
        "groups_rnn_mixing",
        [f"step {step}" for step in MIXING],
        [matrix.tolist() for matrix in matrices],
        [(f"{n} ({size})", size) for n, size in zip(names, sizes, strict=True) if size],
        "neurons by what they write at the end",
        "|W_mix|",
    )
    return figure, inside, chance


# Sweeps


def sweep_cells(folder: Path) -> dict[tuple[str, int], tuple[list[float], list[float]]]:
    """(experiment, hidden) -> steps and losses of every finished run of a sweep."""
    found = {}
    for row in map(json.loads, (folder / "results.jsonl").read_text().splitlines()):
        if row["status"] != "done":
            continue
        kind = str(row["experiment"]).rpartition("_hidden")[0]
        curve = study.curve(folder, row["run_dir"], "loss")
        found[kind, int(row["column/model.hidden"])] = curve
    return found


def grid(title: str, found: dict[tuple[str, int], float | None], rows: Sequence[str]) -> HeatMap:
    """Rows by experiment, columns by width."""
    columns = sorted({hidden for _, hidden in found})
    values = [[found.get((row, hidden)) for hidden in columns] for row in rows]
    return HeatMap(title, rows, [str(hidden) for hidden in columns], values)


def order_maps(folder: Path) -> HeatMaps:
    """Steps to a half, a tenth and a hundredth of the loss, by group and width."""
    cells = sweep_cells(folder)
    rows = sorted({kind for kind, _ in cells}, key=lambda kind: int(kind[1:]))
    maps = []
    for share in REDUCTIONS:
        taken = {key: reached(*curve, share) for key, curve in cells.items()}
        maps.append(grid(f"loss reduced by {share:.0%}", taken, rows))
    top = max(steps[-1] for steps, _ in cells.values())
    return HeatMaps(
        "groups_sweep_order", maps, "group", "neurons", "steps", 0.0, top, form="{:.0f}"
    )


def length_maps(folder: Path) -> HeatMaps:
    """Orders of magnitude that the loss fell, by length of the words and width."""
    cells = sweep_cells(folder)
    fallen = {key: math.log10(y[-1] / y[0]) for key, (_, y) in cells.items()}
    maps = []
    for kind, title in (("mlp", "one hidden layer"), ("rnn", "quadratic RNN")):
        of_kind: dict[tuple[str, int], float | None] = {
            (f"k {length[-1]}", hidden): value
            for (length, hidden), value in fallen.items()
            if length.startswith(kind)
        }
        maps.append(grid(title, of_kind, ("k 2", "k 3", "k 4")))
    return HeatMaps(
        "groups_sweep_length",
        maps,
        "length",
        "neurons",
        "log10 of the loss",
        -8.0,
        0.0,
        form="{:.1f}",
    )


def save_text(page: Path, stem: str, svg: str, numbers: str, alt: str) -> str:
    """Write SVG and CSV next to the page; the Markdown line that shows it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    (page.parent / f"{stem}.svg").write_text(standalone(svg))
    (page.parent / f"{stem}.csv").write_text(numbers)
    return f"![{alt}]({stem}.svg)"


def save_heat(page: Path, figure: HeatMaps, alt: str) -> str:
    """Heat maps beside the page."""
    return save_text(page, figure.name, heat_svg(figure), heat_csv(figure), alt)


def save_matrix(page: Path, figure: Matrices, alt: str) -> str:
    """Matrices beside the page."""
    return save_text(page, figure.name, matrix_svg(figure), matrix_csv(figure), alt)


def runs_of(root: Path, label: str, seeds: int) -> list[str]:
    """Finished runs of one experiment."""
    runs = [name(label, seed) for seed in range(seeds)]
    return [run for run in runs if study.result(root, run) is not None]
