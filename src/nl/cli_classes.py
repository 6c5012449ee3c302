"""Class-incremental classification of one checkpoint: tasks, JSON, samples, table. Floor 8."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nl.cli_measure import load, memorize_modes, memory_settings
from nl.config import ConfigError, structure

if TYPE_CHECKING:
    from nl.eval.class_incremental import Matrix, Task

SMOKE = {"task_size": 3, "train_per_label": 4, "eval_per_label": 4, "max_tasks": 2}


def classes(options: argparse.Namespace) -> None:
    """Measure, print the matrices, write --output, its CSV and its samples.

    Raises:
        ConfigError: no examples, too few labels, or what a checkpoint lacks.
    """
    from nl.eval.class_incremental import Matrix, Protocol, Splitting, make_tasks, run_tasks
    from nl.eval.memorize import MemoryConfig
    from nl.eval.rows import save_json, save_lines
    from nl.eval.suite import facts

    modes = memorize_modes(options)
    memory = structure(MemoryConfig, memory_settings(options), "memory")
    sizes = {name: getattr(options, name) for name in SMOKE}
    how = Splitting(**(SMOKE if options.smoke else sizes))
    protocol = Protocol(
        task_aware=options.task_aware,
        normalise=options.length_normalise,
        max_tokens=options.max_tokens,
        memory=memory,
    )
    loaded = load(options, options.checkpoint)
    train, test, name = examples(options, loaded.context.facts["data"])
    tasks = make_tasks(train, test, how, options.seed)
    record: dict[str, Any] = {
        "schema": 1,
        **facts(loaded.context),
        "dataset": name,
        "split": vars(how),
        "task_aware": protocol.task_aware,
        "length_normalised": protocol.normalise,
        "state_policy": "State carried over training examples, attention emptied after each; "
        + memory.policy("run"),
        "tasks": [list(task.labels) for task in tasks],
        "memorize": {},
    }
    samples: list[dict[str, Any]] = []
    for mode in modes:
        verdicts = run_tasks(loaded.model, tasks, loaded.context, mode, protocol)
        matrix = Matrix.of(verdicts, len(tasks))
        record["memorize"][mode] = matrix_record(matrix)
        samples += [{"memorize": mode, **one._asdict(), "right": one.right} for one in verdicts]
        print(table(mode, tasks, matrix))
    save_json(options.output, record)
    save_lines(options.output.with_suffix(".samples.jsonl"), samples)
    print(f"written: {options.output}")


def examples(options: argparse.Namespace, data: str) -> tuple[list[Any], list[Any], str]:
    """Training and test examples (the latter empty where the set is not divided) and its name.

    Raises:
        ConfigError: two sets are named, or none can be read.
    """
    from nl.data.labelled import BUILT_IN, module_examples, read_hub_examples, read_jsonl_examples
    from nl.eval.class_incremental import Example

    if options.local_jsonl and options.dataset not in (None, "local"):
        raise ConfigError("--dataset, --local-jsonl: give one of the two.")
    if options.local_jsonl:
        found, name = read_jsonl_examples(Path(options.local_jsonl)), str(options.local_jsonl)
    elif options.dataset in (None, BUILT_IN):
        found, name = module_examples(data), BUILT_IN
    elif options.dataset == "local":
        raise ConfigError("--local-jsonl: missing; --dataset local reads it.")
    else:
        mirror = Path(options.data_dir) if options.data_dir else None
        found, name = read_hub_examples(options.dataset, mirror), options.dataset
    train = [Example(one.text, one.label) for one in found if one.split != "test"]
    test = [Example(one.text, one.label) for one in found if one.split == "test"]
    return train[: options.max_samples or None], test[: options.max_samples or None], name


def matrix_record(matrix: Matrix) -> dict[str, Any]:
    """The matrix, intervals and metrics as plain data; cells of tasks not seen yet are null."""
    from nl.eval.class_incremental import wilson

    count = len(matrix.hits)

    def padded(row: list[Any]) -> list[Any]:
        return row + [None] * (count - len(row))

    bounds = [[wilson(sum(cell), len(cell)) for cell in row] for row in matrix.hits]
    return {
        "accuracy": [padded(row) for row in matrix.values],
        "low": [padded([low for low, _ in row]) for row in bounds],
        "high": [padded([high for _, high in row]) for row in bounds],
        "n": [padded([len(cell) for cell in row]) for row in matrix.hits],
        "chance": [padded(list(row)) for row in matrix.chances],
        "per_task_forgetting": matrix.forgetting(),
        "metrics": matrix.metrics(),
    }


def table(mode: str, tasks: list[Task], matrix: Matrix) -> str:
    """Accuracies after every task as text."""
    lines = [f"memorize {mode}: accuracy after each task (rows) on each task"]
    head = "".join(f"task {j + 1}".rjust(9) for j in range(len(tasks)))
    lines.append(" " * 9 + head)
    for i, row in enumerate(matrix.values):
        lines.append(f"task {i + 1}".ljust(9) + "".join(f"{value:9.3f}" for value in row))
    found = matrix.metrics()
    final = found["average_accuracy_final"]
    lines.append(
        f"  average_accuracy_final = {final['value']:.3f} "
        f"({final['low']:.3f} to {final['high']:.3f}, n {final['n']}; chance {final['chance']:.3f})"
    )
    if found["lost_after_learning"] is not None:
        lost = found["lost_after_learning"]
        lines.append(
            f"  lost_after_learning = {lost['mean']:+.3f} "
            f"({lost['low']:+.3f} to {lost['high']:+.3f}, n {lost['n']}; lower is better)"
        )
    return "\n".join([*lines, ""])
