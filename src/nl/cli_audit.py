"""``nl audit``: the equations behind a configuration, the options chosen, the proofs. Floor 8."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nl.cli_page import write_page
from nl.config import ConfigError, unstructure
from nl.config.hydra import compose, run_config
from nl.config.run import RunConfig
from nl.dist.origin import read_description
from nl.models.audit import MECHANISMS, used_by, value_at
from nl.models.mechanism import Mechanism

PAGE = "paper_compliance.md"
HEAD = """# Compliance with the papers

Written by `nl audit --write-docs` from the tables in `src/nl/models/audit*.py`; do not edit. Every
mechanism names the formula as it is computed, the code, the tests that compare it with the formula
written out, and where it departs from the paper. `nl audit --config-name pilot_smoke` shows what
one run uses and the options it chose.
"""


def audit(options: argparse.Namespace) -> int:
    """Print the mechanisms of a run, or write the page of all of them."""
    if options.write_docs:
        print(write_page(PAGE, page()))
        return 0
    import nl.assembly  # noqa: F401 - registers every part

    run = chosen(asked(options))
    rows = [as_data(mechanism, run) for mechanism in used_by(run)]
    print(json.dumps(rows, indent=1) if options.json else as_table(rows))
    return 0


def asked(options: argparse.Namespace) -> RunConfig:
    """What a run, a checkpoint or an export was made with, or a composed configuration.

    Raises:
        ConfigError: no such thing, or values for keys of what is already made.
    """
    places = [
        text
        for text in options.given
        if Path(text).exists() or not ("=" in text or text.startswith("~"))
    ]
    if not places:
        return run_config(compose(options.config_name or "pilot", options.given))
    if len(options.given) > 1 or options.config_name:
        rest = " ".join(text for text in options.given if text != places[0])
        also = rest or f"--config-name {options.config_name}"
        raise ConfigError(f"nl audit {places[0]}: shows what was made; leave out {also}.")
    return run_config(read_description(places[0]))


def chosen(config: Any) -> dict[str, Any]:
    """A run's options as plain data, those that ``model.selfmod.compat`` sets as it sets them."""
    run: dict[str, Any] = unstructure(config)
    memory = getattr(config.model, "selfmod", None)
    if memory is not None:
        run["model"]["selfmod"] = unstructure(memory.in_force())
    return run


def as_data(mechanism: Mechanism, run: dict[str, Any]) -> dict[str, Any]:
    """A row with the options that ``run`` chose."""
    return {
        "part": mechanism.part,
        "source": mechanism.source,
        "equation": mechanism.equation,
        "code": mechanism.code,
        "options": {key: value_at(run, key) for key in mechanism.options},
        "differs": mechanism.differs,
        "tests": list(mechanism.tests),
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """One line per mechanism and source; equation, options and proof below it."""
    width = max((len(row["part"]) for row in rows), default=0)
    lines = [f"{'part':{width}}  source"]
    for row in rows:
        chosen = [f"{key}={json.dumps(value)}" for key, value in row["options"].items()]
        lines += ["", f"{row['part']:{width}}  {row['source']}"]
        lines += [f"  equation  {line}" for line in row["equation"].splitlines()]
        lines += [f"  chosen    {text}" for text in chosen]
        lines += [f"  differs   {row['differs']}", f"  code      {row['code']}"]
        lines += [f"  proof     {test}" for test in row["tests"]]
    return "\n".join(lines)


def page() -> str:
    """The text of ``docs/paper_compliance.md``."""
    return HEAD + "".join(_section(mechanism) for mechanism in MECHANISMS)


def _section(mechanism: Mechanism) -> str:
    uses = [f"`{key}` = {', '.join(values)}" for key, values in mechanism.where.items()]
    equation = "\n".join(f"    {line}" for line in mechanism.equation.splitlines())
    lines = [f"- Code: `{mechanism.code}`", f"- Used with: {'; '.join(uses) or 'every run'}"]
    if mechanism.options:
        lines.append(f"- Options: {', '.join(f'`{key}`' for key in mechanism.options)}")
    lines.append(f"- Departs from the paper: {mechanism.differs}")
    lines += [f"- Proof: `{test}`" for test in mechanism.tests]
    name = mechanism.part[0].upper() + mechanism.part[1:]
    return f"\n## {name}\n\n{mechanism.source}\n\n{equation}\n\n" + "\n".join(lines) + "\n"
