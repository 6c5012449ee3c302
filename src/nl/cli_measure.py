"""What the scripts below scripts/eval share: flags, loading, printing, exit codes. Floor 8."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nl.cli_command import naming_flags
from nl.config import ConfigError, structure, unstructure
from nl.config.hydra import compose, config_dir, load_config, run_config
from nl.config.run import RunConfig, config_hash
from nl.core.logs import setup_logging
from nl.core.stopped import stopped_code, terminable
from nl.run.directory import RunDir
from nl.run.discover import newest_valid, step_of
from nl.run.files import RunError, writable_folder

if TYPE_CHECKING:
    from nl.eval.context import EvalContext, Memorize

MODES = ("off", "context", "oracle")


def parser_for(doc: str | None, output: str, *, single: bool = True) -> argparse.ArgumentParser:
    """The flags that every evaluation script has.

    Args:
        doc: the script's docstring, shown by --help.
        output: default of --output.
        single: one --checkpoint (else the script takes several itself).
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    if single:
        flag("--checkpoint", required=True, help="run, checkpoint directory or exported file")
    flag("--config", help="name or path; only checked against the checkpoint, which holds its own")
    flag("--tokenizer-path", help="SentencePiece model or bytes; default: the data directory's")
    flag("--data", help="data directory; default: the one the run was trained on")
    flag("--device", default="cpu", choices=("cpu", "cuda"), help=shown)
    flag("--batch-size", type=int, default=8, help="rows per forward pass; " + shown)
    flag("--seed", type=int, default=0, help="seed of everything that is sampled; " + shown)
    memory_flags(parser)
    flag("--output", type=Path, default=Path(output), help="JSON file; " + shown)
    return parser


def memory_flags(parser: argparse.ArgumentParser) -> None:
    """How memories are written in the modes context and oracle; see ``MemoryConfig``."""
    flag, shown = parser.add_argument, "default: %(default)s"
    modes = "off, context (alone: off and context), oracle; " + shown
    flag("--memorize", nargs="*", default=["off", "context"], choices=MODES, help=modes)
    flag("--memorize-steps", type=int, default=1, help="times a context is read first; " + shown)
    flag("--memorize-paths", nargs="+", default=[], help="memories that write; default: all")
    flag("--memorize-layers", nargs="+", default=[], help="blocks that write, -1 the last; all")
    surprise = ("--memorize-surprise", "--memorize-surprise-threshold")
    flag(*surprise, type=float, help="weaker signals write into no level")
    carry = ("--memorize-carry", "--memorize-no-reset")
    flag(*carry, action="store_true", help="keep the State between examples")
    flag(
        "--memorize-samples", type=int, default=2, help="contexts whose writes are shown; " + shown
    )
    answer = "the right answer is read first: oracle in place of context"
    flag("--memorize-use-correct-answer", action="store_true", help=answer)
    flag("--eval-state-mode", default="reset_per_sample", help="reset_per_sample is all there is")


def memory_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of ``memory_flags`` say, as fields of ``MemoryConfig``."""
    names = ("steps", "surprise", "carry", "samples")
    found = {name: getattr(options, f"memorize_{name}") for name in names}
    paths, layers = options.memorize_paths, options.memorize_layers
    words = [word.strip() for path in paths for word in path.split(",") if word.strip()]
    ends = {"last": "-1"}
    return found | {
        "paths": [] if words == ["all"] else words,
        "layers": [] if layers == ["all"] else [_layer(ends.get(word, word)) for word in layers],
    }


def _layer(word: str) -> int:
    if word.removeprefix("-").isdigit():
        return int(word)
    raise ConfigError(f"--memorize-layers: {word!r}; numbers of blocks, -1 the last, or all.")


def memorize_modes(options: argparse.Namespace) -> list[Memorize]:
    """The memorisation modes that the flags ask for."""
    if options.eval_state_mode != "reset_per_sample":
        raise ConfigError(
            f"--eval-state-mode: {options.eval_state_mode!r}; only reset_per_sample. To keep the "
            "State between examples give --memorize-carry."
        )
    modes: list[Memorize] = options.memorize or ["off", "context"]
    if options.memorize_use_correct_answer:
        modes = ["oracle" if mode == "context" else mode for mode in modes]
    if set(modes) == {"off"}:
        _check_nothing_writes(options)
    return list(dict.fromkeys(modes))


def _check_nothing_writes(options: argparse.Namespace) -> None:
    """Refuse flags that say how memories are written beside ``--memorize off``."""
    fresh = argparse.ArgumentParser()
    memory_flags(fresh)
    names = ("steps", "paths", "layers", "surprise", "carry", "samples", "use_correct_answer")
    given = [f"memorize_{n}" for n in names]
    given = [n for n in given if getattr(options, n) != fresh.get_default(n)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{flags}: with --memorize off nothing is written for an answer; add context or oracle "
            f"to --memorize, or leave {flags} out."
        )


def guarded(work: Callable[[], None]) -> int:
    """Run a script's work.

    Returns:
        0; 2 after a complaint that the user can mend; 130 after Ctrl-C, 143 after SIGTERM.
    """
    rank = os.environ.get("RANK", "0")
    setup_logging(int(rank) if rank.isdigit() else 0)
    try:
        with terminable():
            work()
    except (ConfigError, RunError) as error:
        from nl.dist.meeting import tell

        tell(f"error: {error}", error)
        return 2
    except KeyboardInterrupt as stop:
        sys.stderr.write("stopped before its result was written; the same command begins again\n")
        return stopped_code(stop)
    return 0


@dataclass(frozen=True)
class Loaded:
    """A model, the run it comes from and what its evaluation may use."""

    run: RunConfig
    model: Any
    context: EvalContext


def load(options: argparse.Namespace, checkpoint: str) -> Loaded:
    """Model and context of one checkpoint, everything checked before anything is measured.

    Raises:
        ConfigError: missing or damaged files, another configuration, another tokenizer, no CUDA.
    """
    from nl.assembly import evaluation_context, load_run

    check_output(options.output)
    check_device(options.device)
    run, model = load_run(checkpoint)
    if options.config:
        check_config(options.config, run, checkpoint)
    data = options.data or getattr(run.stream, "path", None)
    if data is None:
        raise ConfigError(f"data: stream={run.stream.kind} has no text; give --data <directory>.")
    facts = {"checkpoint": str(checkpoint), "config_hash": config_hash(run), "data": str(data)}
    with naming_flags("batch_size"):
        context = evaluation_context(
            data,
            options.output.with_suffix(""),
            device=options.device,
            batch_size=options.batch_size,
            seed=options.seed,
            step=step_at(Path(checkpoint)),
            facts=facts,
        )
    if options.tokenizer_path:
        context = replace(context, tokenizer=checked_tokenizer(options.tokenizer_path, context))
    check_vocabulary(context.tokenizer, run, checkpoint)
    return Loaded(run, model.to(options.device), context)


def check_output(path: Path) -> None:
    """Refuse an output that is no JSON file or cannot be written, before the work."""
    if path.suffix != ".json":
        raise ConfigError(f"--output: {path}; must end in .json.")
    writable_folder(path.parent, "--output")


def check_device(device: str) -> None:
    """Refuse CUDA where there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: cuda; no CUDA device here. Use --device cpu.")


def check_config(name: str, run: RunConfig, checkpoint: str) -> None:
    """Refuse a configuration whose model is not the checkpoint's."""
    path = Path(name)
    inside = path.resolve().is_relative_to(config_dir()) or path.parts[:1] == ("configs",)
    plain = path.is_file() and not inside
    given = run_config(load_config(path) if plain else compose(name))
    wanted, found = unstructure(given.model), unstructure(run.model)
    different = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    if different:
        key = different[0]
        raise ConfigError(
            f"--config {name}: model.{key} is {wanted.get(key)!r}, in {checkpoint} it is "
            f"{found.get(key)!r}; leave --config out, the checkpoint holds its own."
        )


def checked_tokenizer(path: str, context: EvalContext) -> Any:
    """The tokenizer of a path; it must be the one the data was made with."""
    from nl.data.tokenizer import load_tokenizer

    return load_tokenizer(path, sha256=getattr(context.tokenizer, "sha256", None))


def check_vocabulary(tokenizer: Any, run: RunConfig, path: str | Path) -> None:
    """Refuse what is no language model, and the ids of another tokenizer than the weights know."""
    from nl.dist.origin import check_tokenizer

    known = getattr(run.model, "vocab_size", None)
    if known is None:
        raise ConfigError(f"model={run.model.kind} is no language model; it reads no text.")
    if tokenizer.vocab_size > known:
        raise ConfigError(
            f"--tokenizer-path: {tokenizer.vocab_size} token ids, the model has {known}; "
            "give the tokenizer the model was trained with."
        )
    check_tokenizer(path, getattr(tokenizer, "sha256", None), "--data: the data directory")


def step_at(path: Path) -> int | None:
    """The step of a run's newest valid checkpoint, or of a checkpoint's name."""
    folder = newest_valid(path)[0] if RunDir.holds_run(path) else path.with_suffix("")
    return None if folder is None else step_of(folder)


def measure(
    options: argparse.Namespace,
    evaluator: Any,
    limit: int = 0,
    change: Callable[[EvalContext], EvalContext] | None = None,
) -> bool:
    """Run one evaluator on --checkpoint, print its table, leave the JSON at --output.

    Under torchrun every rank loads the model, does its share and gets all scores; rank 0 writes.

    Args:
        options: the flags of ``parser_for``.
        evaluator: its configuration.
        limit: samples per task at most; 0: the evaluator's own.
        change: gives the evaluator another context than the checkpoint's data.

    Returns:
        Whether this process wrote the result.
    """
    from nl.dist.meeting import agreeing, met, naming_rank
    from nl.eval.rows import table
    from nl.eval.suite import run_suite

    with launched(options.device) as (device, team), tempfile.TemporaryDirectory() as scratch:
        with agreeing(met() if team.world > 1 else None):
            loaded = load(options, options.checkpoint)
        first = team.rank == 0
        output = options.output.parent if first else Path(scratch)
        context = replace(
            loaded.context, output=output, limit=limit, team=team, device=device or options.device
        )
        context = change(context) if change else context
        with naming_rank():
            model = loaded.model.to(context.device)
            rows = run_suite(model, {options.output.stem: evaluator.build()}, context)
    if first:
        print(table(rows))
        print(f"written: {options.output}")
    return bool(first)


@contextlib.contextmanager
def launched(device: str) -> Iterator[tuple[Any, Any]]:
    """This rank's device and the team of a launch by torchrun; (None, alone) without one."""
    from nl.dist.env import spread
    from nl.eval.context import Alone

    if spread() is None:
        yield None, Alone()
        return
    from nl.dist.group import Peers
    from nl.dist.meeting import meet

    meet()
    here, team = Peers.join(device)
    try:
        yield here, team
    finally:
        team.close()


def evaluator(kind: str, settings: Mapping[str, Any]) -> Any:
    """An evaluator's configuration, checked, complaints by field; None means its default."""
    import nl.assembly  # noqa: F401 - registers every evaluator
    from nl.config.groups import EvaluatorConfig

    chosen = {key: value for key, value in settings.items() if value is not None}
    return structure(EvaluatorConfig, {"kind": kind, **chosen})
