"""What runs through tasks left: R, signals, knobs and costs, read from run directories."""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nl.control.gru import GruController, GruControllerConfig
from nl.eval.continual_metrics import LossMatrix
from nl.eval.continual_summary import Interval, interval, paired, sequential_metrics
from nl.report.frames import RunFrame, read_run
from nl.run import RunDir

ORDERS = ("forward", "backward")
MODES = ("context", "off")
REWARD = GruControllerConfig()
"""Whose weights rewards are counted with, of every run: those of the learned controller."""
SPENT = {"experts_k": (1.0, 4.0), "replay": (0.0, 0.5)}
"""Ranges that a turn's price is counted in."""

Seeds = dict[int, float]


@dataclass(frozen=True)
class Run:
    """One finished run."""

    frame: RunFrame
    config: Any
    seed: int

    @property
    def details(self) -> dict[str, Any]:
        """What the evaluator of R left."""
        found: dict[str, Any] = self.frame.artifacts["evals/tasks.json"]["details"]
        return found

    @property
    def modes(self) -> list[str]:
        """How memories were treated while R was measured; one where there is none to write."""
        return [mode for mode in MODES if mode in self.details]

    def matrix(self, mode: str, suite: str = "tasks") -> LossMatrix:
        """R of the test windows, or of another suite."""
        page = self.frame.artifacts[f"evals/{suite}.json"]["details"][mode]
        values = np.array(page["nats_per_token"])
        return LossMatrix(tuple(page["segments"]), tuple(page["phases"]), values)


def finished(root: Path) -> dict[str, dict[int, Run]]:
    """Experiment -> seed -> run, of a sweep's directory that may still grow."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import load_config, run_config

    found: dict[str, dict[int, Run]] = {}
    for home in sorted(root.glob("*/seed_*")):
        if not (RunDir.holds_run(home) and RunDir(home).finished()):
            continue
        frame = read_run(home)
        if "evals/tasks.json" in frame.artifacts and home.name.removeprefix("seed_").isdigit():
            config = run_config(load_config(home / "config.yaml"))
            run = Run(frame, config, int(home.name.removeprefix("seed_")))
            found.setdefault(home.parent.name, {})[run.seed] = run
    return found


# Measures


@dataclass(frozen=True)
class References:
    """Of one seed: what a dense model reaches with all tasks at once, and on each alone."""

    joint: list[float] | None
    alone: list[float | None] | None


def references(runs: Mapping[int, Run], alone: Mapping[str, Mapping[int, Run]]) -> dict[int, Any]:
    """By seed, from runs of ``stream.joint`` and of ``stream.only``; names of tasks must agree."""
    found = {}
    for seed, run in runs.items():
        matrix = run.matrix("context")
        fresh: list[float | None] = []
        for task in range(len(matrix.segments)):
            one = alone.get(f"only{task}", {}).get(seed)
            fresh.append(None if one is None else float(one.matrix("context").values[-1, task]))
        found[seed] = References(matrix.values[-1].tolist(), None if None in fresh else fresh)
    return found


def measures(run: Run, mode: str, known: References | None) -> dict[str, float]:
    """Every measure of a run that is defined; nats per token unless the name says otherwise."""
    matrix = run.matrix(mode)
    known = known or References(None, None)
    found = {
        key: value
        for key, value in sequential_metrics(matrix, known.joint, known.alone).items()
        if value is not None
    }
    found |= {"lost_share": lost_share(matrix)}
    found |= languages(matrix, run.config.stream.repeat)
    if run.config.stream.joint:
        wanted = ("average_loss", "average_ppl_geometric", "average_ppl_arithmetic")
        return {key: value for key, value in found.items() if key in wanted}
    if run.config.signals.every and mode == run.modes[0]:  # signals read as training does
        found |= {"learning": learning(run), "gap": stability_gap(run)}
    return found


def languages(matrix: LossMatrix, repeat: int) -> dict[str, float]:
    """What a task does to the one that shares its permutation, and what it does to others.

    ``transfer_*``: loss before training minus loss right before a task is learned; ``hit_*``: rise
    of a learned task's loss over one later task.
    """
    count = len(matrix.phases)
    gain = [matrix.initial(i) - matrix.after(i - 1, i) for i in range(1, count)]
    rise = {
        (i, j): matrix.after(i, j) - matrix.after(i - 1, j)
        for j in range(count - repeat)
        for i in range(j + 1, count)
    }
    return {
        "transfer_known": statistics.fmean(gain[repeat - 1 :]),
        "transfer_new": statistics.fmean(gain[: repeat - 1]),
        "hit_same": statistics.fmean(v for (i, j), v in rise.items() if i - j == repeat),
        "hit_other": statistics.fmean(v for (i, j), v in rise.items() if i - j != repeat),
    }


def lost_share(matrix: LossMatrix) -> float:
    """What was lost by the end of what had been learned, over all tasks but the last."""
    last = len(matrix.phases) - 1
    lost = gained = 0.0
    for phase in range(last):
        column = matrix.segments.index(matrix.phases[phase])
        lost += matrix.after(last, column) - matrix.after(phase, column)
        gained += matrix.initial(column) - matrix.after(phase, column)
    return lost / gained


def by_task(run: Run, key: str) -> Iterator[list[float]]:
    """The measured values of every task, in order of steps."""
    tasks: dict[int, list[float]] = {}
    for row in run.frame.train:
        if row.get(key) is not None and "signal/task" in row:
            tasks.setdefault(int(row["signal/task"]), []).append(float(row[key]))
    yield from tasks.values()


def learning(run: Run) -> float:
    """Held-out loss of the task that is learned, mean over the time it takes: low is fast."""
    return statistics.fmean(statistics.fmean(values) for values in by_task(run, "signal/loss"))


def stability_gap(run: Run) -> float:
    """Most that earlier tasks got worse within a task and recovered from by its end."""
    found = [max(values) - values[-1] for values in by_task(run, "signal/memory_loss")]
    return statistics.fmean(found)


# Controllers


def shares(row: Mapping[str, Any], config: Any) -> dict[str, float]:
    """Where the knobs that cost something stood, 0 to 1, turned or configured."""
    values = {
        "experts_k": row.get("knob/experts_k", config.model.experts.k),
        "replay": row.get("knob/replay", config.stream.replay),
    }
    return {name: (values[name] - low) / (high - low) for name, (low, high) in SPENT.items()}


def rewards(run: Run) -> tuple[list[float], list[float]]:
    """(step, reward) of every turn, as the learned controller counts them, of any sparse run."""
    rows = [row for row in run.frame.train if "signal/loss" in row]
    steps, found = [], []
    for before, now in itertools.pairwise(rows):
        reward = -REWARD.cost * sum(shares(now, run.config).values())
        if before["signal/task"] == now["signal/task"]:
            reward -= now["signal/loss"] - before["signal/loss"]
            if "signal/memory_loss" in before:
                rise = now["signal/memory_loss"] - before["signal/memory_loss"]
                reward -= REWARD.memory * rise
        steps.append(float(now["step"]))
        found.append(reward)
    return steps, found


def part(run: Run, first: float, last: float) -> float:
    """Mean reward per turn between two shares of a run."""
    steps, found = rewards(run)
    end = run.config.train.steps
    return statistics.fmean(
        reward
        for step, reward in zip(steps, found, strict=True)
        if first * end < step <= last * end
    )


def policy(run: Run) -> list[tuple[int, float, float]]:
    """(step, experts_k, replay): the most likely knobs of the learned policy at tasks' ends."""
    found = []
    for home in sorted((run.frame.directory / "checkpoints").glob("step_*")):
        state = json.loads((home / "trainer.json").read_text())["controller"]
        controller = GruController(run.config.controller, 0)
        controller.load_state_dict(state)
        knobs = controller.frozen()
        assert isinstance(knobs.experts_k, int)
        assert knobs.replay is not None
        found.append((int(home.name.removeprefix("step_")), float(knobs.experts_k), knobs.replay))
    return found


def evaluated_losses(run: Run) -> tuple[list[float], list[float]]:
    """After every task the mean validation loss of those learned: k as configured, and greedy."""
    matrix = run.matrix("context", "val").values[1:]
    names = [f"val/task_{task:02d}" for task in range(len(matrix))]
    asked = [[row["loss"] for row in run.frame.validation[name]] for name in names]
    after = range(len(matrix))
    return (
        [float(matrix[i, : i + 1].mean()) for i in after],
        [statistics.fmean(asked[j][i] for j in range(i + 1)) for i in after],
    )


# Costs


@functools.cache
def flops_at(home: Path, k: int | None) -> tuple[int, int, int]:
    """Parameters, those that a token reads, and FLOPs per token to read it, with k experts."""
    from dataclasses import replace

    import torch

    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import load_config, run_config
    from nl.nn.experts import idle_parameters

    run: Any = run_config(load_config(home / "config.yaml"))
    model = run.model
    if k is not None:
        model = replace(model, experts=replace(model.experts, k=k))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what a part warns of, its own run says too
        built = model.build()
    whole = sum(p.numel() for p in built.parameters())
    return whole, whole - idle_parameters(built), built.flops_per_token(run.stream.seq_len)


def mean_k(run: Run) -> float | None:
    """Experts that read a token, mean over steps; None: dense."""
    if not run.config.model.experts.sparse:
        return None
    every = run.config.signals.every or run.config.logging.every
    rows = [row for row in run.frame.train if row["step"] % every == 0]
    return statistics.fmean(
        float(row.get("knob/experts_k", run.config.model.experts.k)) for row in rows
    )


def flops(run: Run) -> float:
    """FLOPs per token of a forward pass, mean over the experts that were used in training."""
    home, used = run.frame.directory, mean_k(run)
    if used is None:
        return flops_at(home, None)[2]
    one, two = flops_at(home, 1)[2], flops_at(home, 2)[2]
    return one + (used - 1) * (two - one)


def seconds(run: Run) -> float:
    """CPU seconds of the process until R was measured."""
    return float(run.details["process"]["cpu_seconds_before"])


def signal_share(run: Run) -> float | None:
    """Time that signals took of the time of training; None: not measured."""
    spent = [row["perf/signal_seconds"] for row in run.frame.train if "perf/signal_seconds" in row]
    return sum(spent) / float(run.frame.last["time"]) if spent else None


# Intervals


def over(runs: Mapping[int, Run], what: Any) -> Seeds:
    """Something of every seed's run, where it is defined."""
    found = {seed: what(run) for seed, run in runs.items()}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def text(values: Mapping[int, float], digits: int = 3) -> str:
    """Mean and half interval, or a dash."""
    return interval(list(values.values())).text(digits) if values else "-"


def difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Paired by seed; None from fewer than two common seeds."""
    found = paired(mine, theirs)
    return None if found is None or math.isnan(found.half) else found


def clear(gap: Interval) -> bool:
    """Whether zero is outside the interval."""
    return abs(gap.mean) > gap.half


def matrix_mean(runs: Mapping[int, Run], mode: str) -> list[list[float]]:
    """Mean R over seeds."""
    return np.mean([run.matrix(mode).values for run in runs.values()], axis=0).tolist()  # type: ignore[no-any-return]
