"""``nl probe``: the tasks that are made, what they promise, rows of them. Floor 8."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nl.assembly  # noqa: F401 - registers every part
from nl.cli_help import summary
from nl.cli_model import parse_value
from nl.cli_page import write_page
from nl.config import ConfigError, unstructure
from nl.config.fields import field_docs
from nl.data.probe import ProbeConfig
from nl.data.probe_registry import PRESETS, load, presets, probes, task
from nl.data.probe_verify import DIGESTS, Verdict, verify
from nl.run.files import writable_folder, write_json

PAGE = "probes.md"
HEAD = """# Probes

Written by `nl probe list --write-docs`; do not edit. Tasks whose rows are made as they are read,
with an oracle (right everywhere), chance, and shortcuts that do without what the task is about; no
shortcut reaches the bound, which `nl probe verify` and the tests check. Numbers are those of the
preset `smoke`; `nl probe show <task>` has the fields, `nl probe sample <task>` rows. What a run of
one leaves behind, and how to add one: [scratchpad.md](systems/scratchpad.md).

| task | family | stream | what it asks | chance | bound | shortcuts | digest | presets |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def run(options: argparse.Namespace) -> int:
    """One of ``list``, ``show``, ``sample``, ``verify``."""
    handler = {"list": list_tasks, "show": show, "sample": sample, "verify": verify_tasks}
    return handler[options.action](options)


def list_tasks(options: argparse.Namespace) -> int:
    """Every task on a line, or the page of all."""
    if options.write_docs:
        print(write_page(PAGE, page()))
        return 0
    rows = [("task", "family", "chance", "bound", "presets", "what it asks")]
    for name in names():
        config, sizes = load(name, "smoke"), task(name)[1]
        numbers = f"{config.chance():.3f}", f"{config.bound():.3f}"
        rows.append((name, config.family, *numbers, " ".join(sizes) or "-", about(config)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print("  ".join([*cells, row[5]]))
    return 0


def show(options: argparse.Namespace) -> int:
    """Definition, fields, numbers, and a row of one task."""
    config = chosen(options)
    kind, sizes = task(options.task)
    print(f"{options.task}: stream={kind}, {config.family}; presets {', '.join(sizes) or 'none'}\n")
    print("\n".join(textwrap.wrap(inspect.getdoc(type(config)) or "", 96)))
    docs = field_docs(type(config))
    print(f"\nfields, as preset {options.preset} has them:")
    for field in dataclasses.fields(config):
        text = " ".join(docs.get(field.name, "").split())
        print(f"  {f'{field.name}={getattr(config, field.name)}':24} {text}")
    names = list(config.rows("test", 0, np.arange(1))[0].slices)
    print(f"\nchance {config.chance():.3f}, bound of shortcuts {config.bound():.3f}")
    print(f"shortcuts: {', '.join(config.shortcuts())}\nslices: {', '.join(names)}")
    print(f"splits are disjoint{'' if config.disjoint else ' in length alone'}", end="")
    print(f"; shared: {config.shared}" if config.shared else "")
    print("\na test row, scored positions with [the right answer]:")
    print(textwrap.fill(config.render(config.rows("test", 0, np.arange(1))[0]), 96))
    return 0


def sample(options: argparse.Namespace) -> int:
    """Rows of a split with what a shortcut says of them."""
    config = chosen(options)
    rules = config.shortcuts()
    rule = options.shortcut or next(iter(rules))
    if rule not in rules:
        raise ConfigError(f"--shortcut: unknown {rule!r}; {options.task} has {', '.join(rules)}.")
    if options.n < 1:
        raise ConfigError(f"-n: {options.n}; must be >= 1.")
    for row in config.rows(options.split, options.seed, np.arange(options.n)):
        guess = rules[rule](row.inputs[None])[0] if options.shortcut else None
        print(textwrap.fill(config.render(row, guess), 96, subsequent_indent="  "))
    return 0


def verify_tasks(options: argparse.Namespace) -> int:
    """Check tasks; ``leakage.json`` takes what splits share. 1 where a promise does not hold."""
    output = Path(options.output)
    wanted = options.task or names()
    configs = [(name, load(name, options.preset)) for name in wanted]
    writable_folder(output, "--output")
    found: list[Verdict] = []
    width = max(len(name) for name in wanted)
    for name, config in configs:
        golden = DIGESTS.get(name, "") if options.preset == "smoke" and not options.seed else ""
        found.append(verify(name, config, seed=options.seed, golden=golden))
        print(line_of(found[-1], width))
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "leakage.json", as_data(found, options))
    print(output / "leakage.json")
    return 1 if any(verdict.failed for verdict in found) else 0


def line_of(verdict: Verdict, width: int) -> str:
    """A verdict on a line, complaints below it."""
    numbers, leakage = verdict.numbers, verdict.leakage
    shortcut = max(numbers["shortcuts"].values())
    text = (
        f"{verdict.task:{width}}  {'FAILED' if verdict.failed else 'ok'}  oracle "
        f"{numbers['oracle']:.3f}  chance {numbers['chance']:.3f}  shortcut {shortcut:.3f} < "
        f"{numbers['bound']:.3f}  overlap {leakage['overlap']}  look-up "
        f"{max(leakage['lookup'].values()):.3f}  {numbers['digest']}"
    )
    return "\n".join([text, *(f"  {complaint}" for complaint in verdict.failed)])


def as_data(found: Sequence[Verdict], options: argparse.Namespace) -> dict[str, Any]:
    """``leakage.json``."""
    tasks = {v.task: {**v.numbers, "leakage": v.leakage, "failed": list(v.failed)} for v in found}
    return {"preset": options.preset, "seed": options.seed, "tasks": tasks}


def chosen(options: argparse.Namespace) -> ProbeConfig:
    """The task of a preset with the fields that were changed."""
    changes = {}
    for text in options.changes:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text}: expected <field>=<value>.")
        changes[key] = parse_value(text, value)
    return load(options.task, options.preset, changes)


def names() -> list[str]:
    """Every task: those with presets, then kinds without."""
    found = presets()
    covered = {kind for kind, _ in found.values()}
    return [*sorted(found), *(kind for kind in probes() if kind not in covered)]


def about(config: ProbeConfig) -> str:
    """The first sentence of a probe's description."""
    return summary(type(config))


def page() -> str:
    """The text of ``docs/probes.md``."""
    lines = []
    for name in names():
        config, (kind, sizes) = load(name, "smoke"), task(name)
        fields = unstructure(config)
        which = [fields[key] for key in ("language", "group_name") if key in fields]
        stream = f"`{kind}`" + "".join(f" ({value})" for value in which)
        cells = [f"`{name}`", config.family, stream, about(config).replace("|", "\\|")]
        cells += [f"{config.chance():.3f}", f"{config.bound():.3f}", ", ".join(config.shortcuts())]
        cells += [DIGESTS.get(name, ""), ", ".join(sizes)]
        lines.append(f"| {' | '.join(cells)} |\n")
    shared = {name: load(name, "smoke").shared for name in names()}
    told_too = [f"- `{name}`: {text}.\n" for name, text in shared.items() if text]
    foot = "\nWhat splits share by intention (any other row is in one split only):\n\n"
    sizes_of = f"\nPresets: {', '.join(PRESETS)}; `paper` is shipped as configurations only.\n"
    return HEAD + "".join(lines) + foot + "".join(told_too) + sizes_of
