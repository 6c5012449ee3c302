"""The only place where concrete parts meet: register, check, build, launch. Floor 7."""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nl.config import ConfigError, require, unstructure
from nl.config.hydra import compose, plain, publish, quoted, refusing, run_config, start
from nl.config.run import RunConfig
from nl.core import native
from nl.core.cpu import use_cpu
from nl.core.protocols import EvalRow, Stream
from nl.core.seeds import SeedBook, seed_everything
from nl.data.held_out import DataCorpus
from nl.data.held_rows import HeldRows
from nl.data.manifest import data_tokenizer, read_manifest
from nl.dist.base import Strategy
from nl.dist.earlier import model_after
from nl.dist.env import number, without_local_rank
from nl.dist.leaving import leaving
from nl.dist.meeting import agreeing, forget, meet, met, naming_rank, tell
from nl.dist.origin import begin, fill, read_weights, resolve_model
from nl.dist.recompute import recompute_segments, recompute_units
from nl.dist.state_file import load_state, save_state
from nl.eval.context import EvalContext, NoText, OwnRows, offered
from nl.eval.suite import run_suite
from nl.fit import check, forewarn, validation_splits
from nl.models.compiled import RECOMPILE_LIMIT, compile_units, too_many_variants
from nl.nn.cms import ContinuumMemory
from nl.objectives.ranked import Ranked
from nl.optim.policy import apply_policy
from nl.optim.roles import parameter_roles
from nl.run.files import RunError
from nl.train.session import train
from nl.train.signals import Signals
from nl.train.throughput import forward_flops
from nl.train.trainer import Parts

__all__ = [
    "build",
    "build_model",
    "check",
    "evaluation_context",
    "job",
    "launch",
    "load_model",
    "load_run",
    "load_state",
    "main",
    "publish",
    "register",
    "save_state",
]

PACKAGES = ("models", "objectives", "data", "optim", "control", "eval", "train.hooks")
STRATEGIES = {
    "single": "nl.dist.single:Single",
    "ddp": "nl.dist.ddp:DDP",
    "fsdp2": "nl.dist.fsdp:FSDP2",
    "deepspeed": "nl.dist.deepspeed:DeepSpeed",
}
"""Places of their classes, imported by ``strategy_class`` when one is chosen."""


def register() -> None:
    """Import every module that defines parts, so that their kinds are known."""
    for name in PACKAGES:
        package = import_module(f"nl.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"nl.{name}."):
            if not module.ispkg:
                import_module(module.name)


register()


def strategy_class(name: str) -> Any:
    """The class of a key of ``STRATEGIES``."""
    module, _, kind = STRATEGIES[name].partition(":")
    return getattr(import_module(module), kind)


def build(run: RunConfig, strategy: Strategy, *, begun: bool = False) -> Parts:
    """Build and seed everything one run needs, on ``strategy``; nothing is written.

    Args:
        run: the configuration.
        strategy: started, not yet set up.
        begun: a checkpoint will be read; ``init_from`` is left alone.

    Raises:
        ConfigError: parts that do not fit, missing data.
    """
    with agreeing(met() if strategy.world > 1 else None):
        check(run, strategy)
        forewarn(run)
        use_cpu(run.train.threads)
        require(not native.complaint(), native.complaint())
        seeds = SeedBook(run.seed)
        config: Any = run
        place = {"rank": strategy.rank, "world": strategy.world}
        stream: Stream = config.stream.build(
            config.stream.splits()[0], seed=seeds.seed("data"), **place
        )
        validation = {
            split: config.stream.build(split, seed=seeds.seed("data"), **place)
            for split in validation_splits(run)
        }
        objective = build_objective(run)
        tokenizer, whole = tokenizer_of(run), getattr(objective, "model", objective)
        origin = None if begun else begin(whole, run, tokenizer)
        for module in objective.modules():
            if isinstance(module, ContinuumMemory):
                module.reduce = strategy.reduce
        if isinstance(objective, Ranked):
            objective.spread(strategy.reduce, strategy.rank, strategy.world)
        flops = forward_flops(whole, getattr(config.stream, "seq_len", 0))  # before sharding
        roles = parameter_roles(objective)
        apply_policy(objective, config.optim.policy, roles)
        _prepare(run, whole, strategy.device)
    strategy.setup(
        objective,
        partial(config.optim.build, roles=roles),
        max_norm=run.train.max_norm,
        precision=run.train.precision,
    )
    controller = config.controller and config.controller.build(seed=seeds.seed("controller"))
    seed_everything(seeds.seed("train", strategy.rank))
    return Parts(
        run=run,
        strategy=strategy,
        stream=stream,
        validation=validation,
        schedule=run.schedule,
        controller=controller,
        signals=_signals(run, strategy),
        hooks=tuple(hook.build() for hook in config.hooks.values()),
        evaluate=partial(evaluate, run),
        forward_flops=flops,
        tokenizers=() if tokenizer is None else (tokenizer,),
        origin=origin,
    )


def _signals(run: RunConfig, strategy: Strategy) -> Signals | None:
    """What is measured around steps, if anything."""
    if not run.signals.every:
        return None
    counts, seed = (run.signals.rows, run.signals.memory_rows), SeedBook(run.seed).seed("data")
    return Signals(run.signals, strategy, HeldRows(run.stream, *counts, seed))


def _prepare(run: RunConfig, model: nn.Module, device: torch.device) -> None:
    """How the model is run: what is computed again, what is compiled."""
    if run.train.activation_checkpointing:
        recompute_units(model)
    if run.train.recompute_every:
        recompute_segments(model, run.train.recompute_every)
    if run.train.compile:
        kernels = device.type == "cpu" and run.train.precision == "fp32"
        compile_units(model, kernels=kernels)


def tokenizer_of(run: RunConfig) -> str | None:
    """SHA-256 of the tokenizer of a run's data; None where its stream has no text."""
    path = getattr(run.stream, "path", None)
    return None if path is None else read_manifest(path).tokenizer.sha256


def evaluation_context(data: str | Path, output: Path, **options: Any) -> EvalContext:
    """What evaluators may use: tokenizer and held-out documents of a data directory.

    Args:
        data: the directory.
        output: folder for details.
        options: further fields of ``EvalContext``.
    """
    corpus = DataCorpus(data)
    return EvalContext(tokenizer=data_tokenizer(data), corpus=corpus, output=output, **options)


def evaluate(run: RunConfig, name: str, model: nn.Module, output: Path, step: int) -> list[EvalRow]:
    """Rows of the evaluator ``evals.<name>`` on a model in memory, with the run's own data."""
    config: Any = run
    seed = SeedBook(run.seed).seed("eval")
    home, device = output.parent.parent, next(model.parameters()).device
    context = context_of(run, output, home=home, device=device, seed=seed, step=step)
    return run_suite(model, {name: config.evals[name].build()}, context)


def context_of(
    run: RunConfig, output: Path, data: str | None = None, home: Path | None = None, **options: Any
) -> EvalContext:
    """What evaluators may use: a data directory, or the examples that the run's stream makes.

    Args:
        run: whose stream it is.
        output: folder for details.
        data: a data directory instead of the run's.
        home: the run's directory, with its earlier checkpoints.
        options: further fields of ``EvalContext``.
    """
    stream: Any = run.stream
    path, seed = data or getattr(stream, "path", None), SeedBook(run.seed).seed("data")
    own = OwnRows(stream, seed, partial(model_after, run, home), run.train.grad_accum)
    if path is not None or not hasattr(stream, "examples"):
        known = hasattr(stream, "task_steps") or hasattr(stream, "frozen")
        tasks = own if data is None and known else None
        return evaluation_context(str(path), output, probe=tasks, **options)
    if offered(stream) in ("probe", "floor"):
        return EvalContext(tokenizer=NoText(), probe=own, output=output, **options)

    def examples(split: str) -> Any:
        return stream.examples(split, seed)

    return EvalContext(tokenizer=NoText(), examples=examples, output=output, **options)


def build_objective(run: RunConfig) -> nn.Module:
    """The objective around a freshly initialised model, seeds first."""
    seed_everything(SeedBook(run.seed).seed("model"))
    config: Any = run
    objective: Any = config.objective.build(config.model.build())
    if hasattr(objective, "carry"):
        objective.carry = run.train.carry
    built: nn.Module = objective
    return built


def build_model(name: str, overrides: Sequence[str] = ()) -> nn.Module:
    """The freshly initialised model of ``configs/<name>.yaml``, seeded by the run's seed.

    Args:
        name: a config name, for example ``pilot_smoke``.
        overrides: Hydra overrides, for example ``["model.dim=64"]``.

    Raises:
        ConfigError: unknown name or key, or a value out of range.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: {overrides!r}; must be a list, [{overrides!r}].")
    run = run_config(compose(name, overrides))
    seed_everything(SeedBook(run.seed).seed("model"))
    config: Any = run
    model: nn.Module = config.model.build()
    return model


def load_model(path: str | Path) -> nn.Module:
    """The model of a run directory (newest valid checkpoint), checkpoint or exported file.

    The weights must fit exactly; digests are checked. The model is in eval mode, on the CPU.

    Raises:
        ConfigError: no such thing there, damaged, or not of this configuration.
    """
    return load_run(path)[1]


def load_run(path: str | Path) -> tuple[RunConfig, nn.Module]:
    """Like ``load_model``, with the configuration."""
    weights = read_weights(path)
    run = run_config(weights.config)
    config: Any = run
    model: nn.Module = config.model.build()
    fill(model, weights)
    return run, model.eval()


def launch(cfg: Any, *, strategy: str = "single") -> Path:
    """Train.

    Args:
        cfg: a composed Hydra config, plain data, or a ``RunConfig``.
        strategy: a key of ``STRATEGIES``.

    Returns:
        The run directory.

    Raises:
        ConfigError: something the user can mend. But for a compiler that gives up in the middle
            (train.compile), nothing was written.
        SystemExit: stopped by a signal after saving: 143, 130 or 0.
    """
    kind = strategy_class(strategy)
    forget()
    try:
        meeting = None if strategy == "single" else meet()
        with agreeing(meeting, lambda: json.dumps(unstructure(run) | {"here": here})):
            run = (
                cfg
                if isinstance(cfg, RunConfig)
                else run_config(cfg if isinstance(cfg, dict) else plain(cfg))
            )
            run = resolve_model(run)
            _check_launcher(strategy)
            here = kind.ready(run)
        with naming_rank():
            house: Strategy = kind.start(run.train.device)
            try:
                return train(run, house, build)
            finally:
                house.close()
    except RunError as error:
        raise ConfigError(str(error)) from error
    except too_many_variants() as error:
        raise ConfigError(
            f"train.compile: true; more than {RECOMPILE_LIMIT} compiled forms of one function were "
            "asked for, by calls of ever other sizes: start anew with train.compile=false; "
            "init_from=<run directory> takes the weights that were saved."
        ) from error


def _check_launcher(strategy: str) -> None:
    world = number("WORLD_SIZE", 1) if "RANK" in os.environ else 1
    if strategy == "single" and world > 1:
        raise ConfigError(
            f"train.py: started as one of WORLD_SIZE={world} processes, but it trains on one "
            "device; use train_dist.py."
        )


def job(cfg: Any, *, strategy: str) -> None:
    """What a launcher does with its composed config: ``launch``, complaints told, exit code 2."""
    with refusing(tell):
        launch(cfg, strategy=strategy)


def main(hydra_main: Any) -> None:
    """Run a launcher's Hydra function: paths in overrides quoted, Hydra's complaints exit 2."""
    script = Path(hydra_main.__wrapped__.__code__.co_filename).resolve()
    with leaving(script), refusing(tell):
        sys.argv[1:] = quoted(without_local_rank(sys.argv[1:]))
        start(hydra_main, script.parent / "configs")
