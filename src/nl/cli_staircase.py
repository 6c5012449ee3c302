"""``nl staircase``: what a run on group composition learns, in which order and when. Floor 8."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nl.cli_command import Commands, add_command
from nl.config import ConfigError
from nl.run import RunDir
from nl.run.files import write_json

if TYPE_CHECKING:
    from nl.core.groups import Escape, Plateau
    from nl.data.group_forecast import Forecast

FILES = ("theory.json", "plateaus.json")


def add_staircase(commands: Commands) -> None:
    """``nl staircase``."""
    example = "nl staircase experiment=groups/c10, or nl staircase --run runs/groups_c10/<run>"
    summary = "say what a run on group composition learns, in which order and when"
    parser = add_command(commands, "staircase", summary, example, show_staircase)
    flag = parser.add_argument
    flag("--config-name", default="pilot_smoke", help="a config, as for nl train")
    flag("overrides", nargs="*", metavar="key=value", help="overrides")
    flag("--run", type=Path, help="a run directory: measure its plateaus, too, and keep both there")
    flag("--no-simulation", action="store_true", help="formulas alone")
    flag("--json", action="store_true", help="print JSON")


def show_staircase(options: argparse.Namespace) -> int:
    """Print theory, and what a run did."""
    run = configured(options)
    theory = theory_of(run, simulated=not options.no_simulation)
    found = None if options.run is None else measured(options.run, theory)
    if found is not None:
        for name, content in zip(FILES, (theory, found), strict=True):
            write_json(options.run / "artifacts" / name, content)
    if options.json:
        print(json.dumps({"theory": theory, "plateaus": found}, indent=1))
        return 0
    print(as_text(theory))
    if found is not None:
        print(f"\n{plateau_text(found)}")
        print(f"kept in {options.run / 'artifacts'}: {' and '.join(FILES)}")
    return 0


def configured(options: argparse.Namespace) -> Any:
    """The run that is asked about.

    Raises:
        ConfigError: a run and overrides, no run there, or an unknown key.
    """
    import nl.assembly  # noqa: F401 - registers every part
    from nl.config.hydra import compose, load_config, run_config

    if options.run is None:
        return run_config(compose(options.config_name, options.overrides))
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]}: --run has its own configuration; leave it out.")
    return run_config(load_config(RunDir.open(options.run).config))


def theory_of(run: Any, *, simulated: bool) -> dict[str, Any]:
    """Stairs with everything that is known before training; JSON data.

    Raises:
        ConfigError: not a run on group composition, or one that theory says nothing of.
    """
    from nl.data.group_forecast import forecast

    known = forecast(run)
    if known is None:
        raise ConfigError(
            f"stream: {run.stream.kind}; theory is known of stream=group_composition with power in "
            "irreps of real and complex type: choose experiment=groups/c10, for example."
        )
    rows = []
    for n, stair in enumerate(known.stairs):
        rows.append(
            {
                "learned": list(stair.names),
                "before": stair.before,
                "after": stair.after,
                "utility": stair.utility,
                "growth": known.growth and known.growth[n],
                "escape": known.escapes and known.escapes[n],
            }
        )
    escapes = simulation(run, known) if simulated else None
    return {
        "group": known.group.name,
        "order": known.group.order,
        "length": known.length,
        "steps": run.train.steps,
        "fitting_lr": known.fitting,
        "stairs": rows,
        "simulated": None if escapes is None else [asdict(one) for one in escapes],
    }


def simulation(run: Any, known: Forecast) -> list[Escape] | None:
    """When each irrep is learned from the weights that the run begins with.

    None where theory says nothing of model and optimizer.
    """
    from nl.assembly import build_objective
    from nl.core.groups import Dormant, Steps, simulate

    if known.growth is None:
        return None
    model: Any = build_objective(run).model
    reads, writes, scale = model.neurons()
    reads, writes = (t.detach().double().numpy() for t in (reads, writes))
    dormant = Dormant(known.group, known.template, reads, writes, scale)
    exponent = 1 - known.length if run.optim.exponent is None else run.optim.exponent
    steps = Steps(lr=run.optim.lr, exponent=exponent, horizon=run.train.steps)
    return simulate(known.group, known.template, dormant, steps)


def measured(path: Path, theory: dict[str, Any]) -> list[dict[str, Any]]:
    """The plateaus of a run; JSON data."""
    from nl.core.groups import Step, plateaus

    text = RunDir.open(path).metrics.read_text()
    rows = [row for row in map(json.loads, text.splitlines()) if row["split"] == "train"]
    losses = [math.nan if row.get("loss") is None else float(row["loss"]) for row in rows]
    stairs = [
        Step(tuple(row["learned"]), row["utility"], row["before"], row["after"])
        for row in theory["stairs"]
    ]
    found: list[Plateau] = plateaus([float(row["step"]) for row in rows], losses, stairs)
    return [asdict(one) for one in found]


def as_text(theory: dict[str, Any]) -> str:
    """Theory as a table."""
    from nl.bench.show import aligned

    lines = [["learned", "loss before", "loss after", "U*", "growth per step", "about step"]]
    for row in theory["stairs"]:
        lines.append(
            [
                "+".join(row["learned"]),
                *(number(row[key]) for key in ("before", "after", "utility", "growth", "escape")),
            ]
        )
    head = f"{theory['group']}, {theory['order']} elements, words of {theory['length']}"
    text = f"{head}; {theory['steps']} steps\n{aligned(lines)}"
    if theory["fitting_lr"] is not None:
        text += f"\noptim.lr={theory['fitting_lr']:.3g} makes the first stair grow by 0.05 per step"
    if theory["simulated"] is None:
        return text
    named = [f"{one['name']} at step {one['step']:.0f}" for one in theory["simulated"]]
    return f"{text}\nsimulated from the initial weights: {', '.join(named) or 'nothing is learned'}"


def plateau_text(found: list[dict[str, Any]]) -> str:
    """Measured plateaus as a table."""
    from nl.bench.show import aligned

    lines = [["plateau", "measured", "error", "from step", "to step", "then learned", "at step"]]
    for row in found:
        error = "-" if row["error"] is None else f"{row['error']:+.2%}"
        numbers = [number(row[key]) for key in ("start", "end")]
        ends = ["+".join(row["learned"]), number(row["escape"])]
        lines.append([number(row["level"]), number(row["measured"]), error, *numbers, *ends])
    return aligned(lines)


def number(value: float | None) -> str:
    """Four digits; a dash for nothing."""
    return "-" if value is None else f"{value:.4g}"
