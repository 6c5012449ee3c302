"""The ``nl`` command: one parser, one place for errors, everything heavy imported late. Floor 8."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from nl.core.stopped import importing, stopped_code, stopped_text, terminable

with importing():
    from nl.cli_command import Commands, add_command
    from nl.cli_probes import add_probe
    from nl.cli_report import add_report
    from nl.cli_staircase import add_staircase
    from nl.cli_sweep import add_sweep
    from nl.cli_talk import add_talk
    from nl.config import ConfigError
    from nl.config.registry import unknown
    from nl.core.logs import setup_logging
    from nl.run.ending import leave, open_streams
    from nl.run.files import RunError

USAGE = 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 for anything the user can mend (printed without a traceback); 130 after Ctrl-C, 143
        after SIGTERM.
    """
    try:
        with terminable():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except (ConfigError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt as stop:
        print(stopped_text(stop), file=sys.stderr)
        return stopped_code(stop)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return USAGE


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return USAGE
    known = command_names(parser)
    if not arguments[0].startswith("-") and arguments[0] not in known:
        parser.error(unknown("command", arguments[0], known))
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "train":
        parser.error(
            f"unrecognized arguments: {' '.join(rest)}; nl {options.command} --help lists all"
        )
    options.rest = rest
    setup_logging()
    return int(options.handler(options))


def command_names(parser: argparse.ArgumentParser) -> list[str]:
    """The commands that a parser knows."""
    return [
        name
        for action in parser._actions
        if isinstance(action.choices, dict)
        for name in action.choices
    ]


def command() -> NoReturn:
    """The ``nl`` command: a process that ends with its exit code."""
    open_streams()
    leave(main())


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="nl",
        description="Train, stream, evaluate and compare sequence models that keep learning.",
        epilog="nl <command> --help shows an example of each command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for add in (
        add_doctor,
        add_train,
        add_eval,
        add_talk,
        add_stream,
        add_report,
        add_bench,
        add_export,
        add_import,
        add_checkpoint,
        add_help,
        add_audit,
        add_plan,
        add_sweep,
        add_probe,
        add_staircase,
    ):
        add(commands)
    return parser


def add_doctor(commands: Commands) -> None:
    """``nl doctor``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_doctor import doctor

        return doctor(as_json=options.json)

    parser = add_command(
        commands, "doctor", "check what this machine has and what is missing", "nl doctor", run
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def add_train(commands: Commands) -> None:
    """``nl train``."""

    def run(options: argparse.Namespace) -> int:
        with importing():
            from nl.assembly import job
            from nl.config.hydra import publish, run_launcher

            publish()
        run_launcher(partial(job, strategy="single"), options.rest)
        return 0

    example = "nl train --config-name pilot_smoke train.steps=100 model.block=transformer"
    parser = add_command(commands, "train", "train on one device, like train.py", example, run)
    parser.usage = "nl train --config-name <config> [key=value ...] [Hydra's flags]"


def add_eval(commands: Commands) -> None:
    """``nl eval``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_model import evaluate

        return evaluate(options)

    example = "nl eval runs/pilot_smoke/<run> --suite perplexity needle --set needle.samples=4"
    parser = add_command(commands, "eval", "measure saved weights", example, run)
    add_path(parser)
    parser.add_argument(
        "--suite", nargs="+", default=[], help="suites of the run, or evaluator kinds (all)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="SUITE.FIELD=VALUE",
        help="settings of evaluators; nl help evaluator=<kind> lists them",
    )
    parser.add_argument("--output", help="folder for details; rows then stay out of the run")
    parser.add_argument("--limit", type=int, default=0, help="samples per task; 0: no limit")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per forward pass")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is sampled")


def add_stream(commands: Commands) -> None:
    """``nl stream``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_stream import stream

        return stream(options)

    example = "nl stream --run runs/pilot_smoke/<run> --text book.txt --save book.safetensors"
    summary = "read a text of any length; keep the State and go on from it"
    parser = add_command(commands, "stream", summary, example, run)
    parser.add_argument("--run", required=True, help="run, checkpoint or exported .safetensors")
    parser.add_argument("--text", required=True, help="UTF-8 text file")
    parser.add_argument("--save", help="state file to write at the end and on Ctrl-C")
    parser.add_argument("--from", dest="start", help="state file to go on from")
    parser.add_argument("--data", help="data directory; default: the one the run was trained on")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    parser.add_argument("--segment", type=int, default=512, help="tokens per forward pass")
    parser.add_argument("--no-write", action="store_true", help="freeze every memory")


def add_path(parser: argparse.ArgumentParser) -> None:
    """What a command that needs weights takes."""
    parser.add_argument("path", help="run directory, checkpoint directory or exported .safetensors")
    parser.add_argument("--data", help="data directory; default: the one the run was trained on")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")


def add_export(commands: Commands) -> None:
    """``nl export``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_export import export_model

        return export_model(options)

    example = "nl export runs/pilot_smoke/<run> pilot_smoke.safetensors"
    parser = add_command(
        commands, "export", "write weights and configuration for others to load", example, run
    )
    parser.add_argument("path", help="run directory, checkpoint directory or exported .safetensors")
    parser.add_argument("file", help="the .safetensors file to write; with --to hf a directory")
    parser.add_argument(
        "--to", choices=("file", "hf"), default="file", help="hf: a directory for transformers"
    )
    parser.add_argument("--tokenizer", help="with --to hf: default is that of the run's data")
    parser.add_argument("--force", action="store_true", help="replace what is there")


def add_import(commands: Commands) -> None:
    """``nl import``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_import import import_model

        return import_model(options)

    example = "nl import llama.safetensors --from hf:checkpoints/llama-160m"
    parser = add_command(
        commands,
        "import",
        "turn a Llama, GPT-NeoX or GPT-2 checkpoint into one of ours",
        example,
        run,
    )
    parser.add_argument("file", help="the .safetensors file to write")
    parser.add_argument("--from", dest="source", required=True, help="hf:<directory>")
    parser.add_argument(
        "--as", dest="as_block", choices=("hope_attention",), help="turn its MLPs into levels"
    )
    parser.add_argument(
        "--levels",
        nargs="+",
        type=int,
        metavar="PERIOD",
        help="with --as: default model.cms.periods",
    )
    parser.add_argument(
        "--config-name", default="pilot_smoke", help="what the run is beside its model"
    )
    parser.add_argument(
        "--tokenizer", help="bytes, .model or tokenizer.json; default: the one in the directory"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="of that run"
    )


def add_checkpoint(commands: Commands) -> None:
    """``nl checkpoint verify | ls | convert``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_checkpoint import run as act

        return act(options)

    example = "nl checkpoint ls runs/pilot_smoke/<run>"
    summary = "verify, list (ls) or convert checkpoints of any strategy"
    parser = add_command(commands, "checkpoint", summary, example, run)
    actions = parser.add_subparsers(dest="action", metavar="<action>", required=True)
    told = "runs/mid_smoke/<run>"
    checks = "check every digest, and that model and optimizer can be read"
    for name, text in (("verify", checks), ("ls", "show one line per checkpoint")):
        example = f"nl checkpoint {name} {told}"
        action = add_command(actions, name, text, example, run)
        action.add_argument("path", help="run directory or checkpoint directory")
        action.add_argument("--json", action="store_true", help="print as JSON")
    text = "write a checkpoint in another format; training goes on from either"
    step = "checkpoints/step_000040"
    example = f"nl checkpoint convert {told}/{step} elsewhere/{step} --to single"
    action = add_command(actions, "convert", text, example, run)
    action.add_argument("path", help="checkpoint directory, <run>/checkpoints/step_<n>")
    action.add_argument("target", help="directory to make, called step_<n> as well")
    formats = "single: whole files, as of every strategy but fsdp2; dcp: files of fsdp2"
    action.add_argument("--to", required=True, choices=("single", "dcp"), help=formats)


def add_audit(commands: Commands) -> None:
    """``nl audit``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_audit import audit

        return audit(options)

    example = "nl audit --config-name pilot_smoke model.block=hope_selfmod"
    summary = "show which equation each part of a run implements, and the test that proves it"
    parser = add_command(commands, "audit", summary, example, run)
    parser.add_argument("--config-name", help="a config, as for nl train; default: pilot")
    text = "overrides; or one run directory, checkpoint or export"
    parser.add_argument("given", nargs="*", metavar="key=value", help=text)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/paper_compliance.md instead"
    )


def add_plan(commands: Commands) -> None:
    """``nl plan``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_plan import show_plan

        return show_plan(options)

    example = "nl plan --config-name mid --gpus 8,64 --memory 80"
    summary = "say what a run needs on many devices: memory, communication, expected speed"
    parser = add_command(commands, "plan", summary, example, run)
    flag = parser.add_argument
    flag("--config-name", default="pilot", help="a config, as for nl train")
    flag("overrides", nargs="*", metavar="key=value", help="overrides")
    flag("--gpus", default="8", help="devices; several (8,64): one plan each")
    flag("--memory", type=float, default=80.0, help="GiB per device")
    flag("--tflops", type=float, default=989.0, help="peak of a device at the run's precision")
    flag("--share", type=float, default=0.35, help="of that peak that a step reaches")
    flag("--bandwidth", type=float, default=50.0, help="GB/s that a device sends")
    flag("--json", action="store_true", help="print the plan as JSON")
    flag("--write-docs", action="store_true", help="write docs/scaling.md instead")


def add_help(commands: Commands) -> None:
    """``nl help``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_help import show_help

        return show_help(options.topic)

    example = "nl help model=language, or nl help train.steps, or nl help evaluator"
    parser = add_command(commands, "help", "explain configuration keys", example, run)
    parser.add_argument("topic", nargs="?", default="", help="<group>, <group>=<kind> or <key>")


def add_bench(commands: Commands) -> None:
    """``nl bench``."""

    def run(options: argparse.Namespace) -> int:
        from nl.cli_bench import benchmark

        return benchmark(options)

    summary = "time train steps and single layers of every block against the transformer"
    example = "nl bench --seq-len 256 512 --parts step layer --output reports/bench"
    parser = add_command(commands, "bench", summary, example, run)
    flag = parser.add_argument
    flag("--json", action="store_true", help="print the result as JSON")
    flag("--output", help="also write <output>.json and the figure <output>.svg")
    flag("--compile", action="store_true", help="torch.compile every row, as train.compile does")
    flag("--noisy", action="store_true", help="accept a GEMM peak that moves by more than a tenth")
    flag("--blocks", nargs="+", default=[], help="block kinds beside the transformer; none: all")
    parts = ("step", "layer")
    flag("--parts", nargs="+", default=["step"], choices=parts, help="what is measured")
    flag("--seq-len", type=int, nargs="+", default=[256], help="tokens per row; several: a sweep")
    chunks = "tokens between writes of every memory; several: a sweep; none: the defaults"
    flag("--chunk", type=int, nargs="+", default=[], help=chunks)
    for name, default, text in (
        ("dim", 256, "width"),
        ("layers", 2, "blocks of the model"),
        ("heads", 4, "attention heads"),
        ("batch-size", 4, "rows"),
        ("vocab-size", 1024, "token ids"),
        ("rounds", 7, "measured turns per row"),
        ("threads", 1, "CPU threads"),
    ):
        flag(f"--{name}", type=int, default=default, help=text)
    flag("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
