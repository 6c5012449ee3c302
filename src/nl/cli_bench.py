"""``nl bench``: measure, print, and leave JSON and figure where asked. Floor 8."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from nl.bench import BenchConfig, as_table, bench, figure
from nl.cli_command import naming_flags
from nl.cli_measure import check_device
from nl.report.figures import draw, matplotlib_ready, standalone
from nl.run.files import writable_folder


def benchmark(options: argparse.Namespace) -> int:
    """Run what the options ask for."""
    check_device(options.device)
    if options.output:
        writable_folder(Path(options.output).parent, "--output")
        matplotlib_ready()
    names = {field.name for field in fields(BenchConfig)}
    chosen: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in vars(options).items()
        if key in names
    }
    with naming_flags(*names):
        config = BenchConfig(**chosen)
    result = bench(config)
    print(json.dumps(result, indent=1) if options.json else as_table(result))
    if options.output:
        path = Path(options.output)
        path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".svg").write_text(standalone(draw(figure(result))))
    return 0
