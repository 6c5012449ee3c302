"""The flags of ``nl sweep``. Floor 8."""

from __future__ import annotations

import argparse

from nl.cli_command import Commands, add_command


def add_sweep(commands: Commands) -> None:
    """``nl sweep``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_campaign import sweep

        return sweep(options)

    example = "nl sweep configs/sweep/example.yaml --slots 2"
    summary = (
        "run many runs from one file; what is done is kept, so it can be killed and called again"
    )
    parser = add_command(commands, "sweep", summary, example, run)
    flag = parser.add_argument
    flag("file", help="sweep file: base_config, n_seeds, experiments or grid (docs/sweeps.md)")
    flag("--root", default="sweeps", help="where new directories <file>_<time> go")
    flag("--output", help="this directory instead, new or of an earlier call")
    flag("--resume", action="store_true", help="go on with the newest directory of this file")
    flag("--retry-failed", action="store_true", help="also try what failed before")
    flag("--dry-run", action="store_true", help="check everything, print the commands, run nothing")
    flag("--eta", action="store_true", help="also show how long the rest may take")
    flag("--backend", default="local", help="local, warm, slurm or ray")
    flag("--slots", type=int, default=1, help="jobs at the same time")
    flag("--gpus", default="none", help="none, auto or 0,1: local one slot each; else GPUs per job")
    flag("--cpus", type=int, default=1, help="slurm and ray: CPUs of a job")
    flag("--minutes", type=int, default=1440, help="slurm: time limit of a job")
    flag("--memory-gb", type=int, default=16, help="slurm: memory of a job")
    flag("--partition", default="", help="slurm: partition")
    flag("--address", default="", help="ray: address of a running cluster")
    parser.set_defaults(defaults=vars(parser.parse_args(["<file>"])))
