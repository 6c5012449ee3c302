"""Runs side by side: measure where asked, read what is saved, write page and markdown. Floor 8."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from nl.cli_command import naming_flags
from nl.config import ConfigError
from nl.report.compare import markdown, warnings, write_page
from nl.report.sides import Side, add_file, aligned, read_side, short_names
from nl.run.files import writable_folder, write_atomic


def compare(options: argparse.Namespace) -> None:
    """What ``scripts/eval/compare.py`` does with its flags."""
    paths = inputs(options)
    names = options.names or short_names(paths)
    if len(names) != len(paths) or len(set(names)) != len(names):
        raise ConfigError(f"--names: {names}; one different name for each of {len(paths)} inputs.")
    if options.output.suffix != ".html":
        raise ConfigError(f"--output: {options.output}; must end in .html.")
    writable_folder(options.output.parent, "--output")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.suite:
        measured = options.output.with_suffix("")
        sides = [
            measure_side(options, Side(name, path, {}), measured / name)
            for path, name in zip(paths, names, strict=True)
        ]
    elif options.set:
        raise ConfigError("--set: settings of evaluators that --suite runs; name them there.")
    else:
        sides = [read_side(path, name) for path, name in zip(paths, names, strict=True)]
    show(aligned(sides), options.output)


def show(sides: list[Side], output: Path) -> None:
    """Page, markdown, and the markdown on stdout."""
    text = markdown(sides)
    write_page(sides, output)
    write_atomic(output.with_suffix(".md"), text)
    print(text)
    for complaint in warnings(sides):
        print(f"warning: {complaint}")
    print(f"written: {output}, {output.with_suffix('.md')}")


def inputs(options: argparse.Namespace) -> list[Path]:
    """The inputs, those of --a-checkpoint and --b-checkpoint in front."""
    for letter in "ab":
        if getattr(options, f"{letter}_config") and not getattr(options, f"{letter}_checkpoint"):
            raise ConfigError(f"--{letter}-config: give --{letter}-checkpoint, it holds its own.")
    found = [options.a_checkpoint, options.b_checkpoint, *options.inputs]
    paths = [Path(path) for path in found if path]
    if len(paths) < 2:
        raise ConfigError(f"--inputs: {len(paths)}; name at least two runs or result files.")
    return paths


def measure_side(options: argparse.Namespace, side: Side, output: Path) -> Side:
    """The side with what the evaluators of --suite give on its source, details below ``output``.

    What earlier calls left in that folder is not read.
    """
    from nl.assembly import evaluation_context, load_run
    from nl.cli_measure import check_device, check_vocabulary, step_at
    from nl.cli_model import choose_evaluators, data_of
    from nl.config.run import config_hash
    from nl.eval.suite import run_suite

    check_device(options.device)
    path = side.source
    run, model = load_run(path)
    plain: Any = replace(run, evals={})  # the same settings for every side
    chosen = choose_evaluators(plain, options.suite, options.set)
    data = data_of(run, options.data)
    with naming_flags("batch_size", "limit"):
        context = evaluation_context(
            data,
            output,
            device=options.device,
            batch_size=options.batch_size,
            limit=options.limit,
            seed=options.seed,
            step=step_at(path),
            facts={"checkpoint": str(path), "config_hash": config_hash(run), "data": str(data)},
        )
    check_vocabulary(context.tokenizer, run, path)
    model.to(options.device)
    run_suite(model, {name: part.build() for name, part in chosen.items()}, context)
    for name in chosen:
        add_file(side, output / f"{name}.json")
    return side
