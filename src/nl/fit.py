"""Whether the parts of a run fit each other: what no part can see alone. Floor 7."""

from __future__ import annotations

from typing import Any

from nl.config import ConfigError, lookup, require
from nl.config.run import RunConfig
from nl.core.logs import get_logger
from nl.data.group_forecast import check_composition, warn_of_standstill
from nl.data.phases import check_phases
from nl.data.stream import check_carry
from nl.data.task_budget import check_budget, check_held_out
from nl.dist.base import Strategy
from nl.dist.recompute import check_recompute, check_segments
from nl.eval.context import check_reads
from nl.eval.phases import check_phase_ends
from nl.eval.task_losses import check_task_ends
from nl.models.compiled import check_compile
from nl.objectives.next_token import check_losses
from nl.train.sinks import check_logging

log = get_logger(__name__)

ROWS = {
    "tokens": ("ids of tokens", "model=language", "objective=next_token"),
    "examples": ("features with a label", "model=ladder", "objective=classify"),
    "words": ("words of a group", "model=quadratic_rnn", "objective=regress"),
}
"""What a batch may hold: in words, a model that reads it, an objective that learns from it."""


def check(run: RunConfig, strategy: Strategy) -> None:
    """What no part can see alone: vocabularies, splits, what the strategy can do, the log.

    Raises:
        ConfigError: naming the keys to change.
    """
    _check_strategy(run, strategy)
    _check_rows(run)
    stream: Any = run.stream
    tokens, known = stream.vocab_size(), getattr(run.model, "vocab_size", None)
    if tokens is not None and known is not None and tokens > known:
        raise ConfigError(
            f"model.vocab_size: {known}; the stream's token ids go up to {tokens - 1}. "
            f"Set model.vocab_size={tokens} or more."
        )
    check_carry(stream, carry=run.train.carry)
    scope = getattr(getattr(run.model, "cms", None), "scope", "row")
    if getattr(stream, "documents", "ignore") == "reset" and scope == "batch":
        raise ConfigError(
            "stream.documents: reset, but with model.cms.scope=batch rows share their memories and "
            "none can begin anew; set model.cms.scope=row or stream.documents=ignore."
        )
    _check_shared(run, strategy.world, scope)
    check_reads(run.evals, stream, run.model)
    check_phase_ends(run)
    check_task_ends(run)
    check_phases(stream, run.objective)
    check_budget(stream)
    check_held_out(stream, "val", "validation")
    for name, evaluator in run.evals.items():
        if evaluator.reads == "tasks":
            check_held_out(stream, getattr(evaluator, "split", "test"), f"evals.{name}")
    check_composition(run)
    check_losses(run.model, run.objective)
    _check_controller(run)
    check_logging(run.logging)
    check_compile(run.train.compile, getattr(run.model, "requires", ()))
    needs = getattr(run.model, "requires", ())
    check_recompute(run.train.activation_checkpointing, needs, compiled=run.train.compile)
    check_segments(run.train.recompute_every, needs, scope)
    check_positions(run)
    names = {f"{split}/loss" for split in validation_splits(run)} | {"val/loss"}
    if run.checkpoint.best not in names:
        raise ConfigError(
            f"checkpoint.best: {run.checkpoint.best!r}; choose one of {', '.join(sorted(names))}."
        )


def check_positions(run: RunConfig) -> None:
    """Refuse rows that learned positions have no vectors for."""
    model: Any = run.model
    stream: Any = run.stream
    if getattr(model, "positions", "rope") != "learned":
        return
    longest, length = model.max_positions, getattr(stream, "seq_len", 0)
    require(
        length <= longest,
        f"stream.seq_len: {length}; model.positions=learned has model.max_positions={longest}: "
        "raise it, read shorter rows, or set model.positions=rope.",
    )
    require(
        not run.train.carry,
        "train.carry: true; a carried State has read more than model.positions=learned has "
        f"places for ({longest}): set train.carry=false or model.positions=rope.",
    )
    require(
        getattr(stream, "documents", "ignore") != "reset",
        "stream.documents: reset; with model.positions=learned documents inside a row would begin "
        "at a place that is not their first: set stream.documents=ignore or model.positions=rope.",
    )


def forewarn(run: RunConfig) -> None:
    """Say before the first step what is known of how it will end."""
    warn_of_standstill(run)
    say_unread_levels(run)


def say_unread_levels(run: RunConfig) -> None:
    """Name levels whose first write comes at the end of a row or later: training never reads it."""
    model: Any = run.model
    length, write = getattr(run.stream, "seq_len", 0), getattr(run.objective, "write", True)
    if run.train.carry or not (length and write and _has_levels(model)):
        return
    if unread := [str(period) for period in model.cms.periods if period >= length]:
        log.info(
            "model.cms.periods: %s; rows of %d tokens end before what these levels write is read: "
            "their rates stay as they are, and are in force on longer texts",
            *(", ".join(unread), length),
        )


def _check_shared(run: RunConfig, world: int, scope: str) -> None:
    """Refuse reads that only some ranks make, where every write is summed over them."""
    objective: Any = run.objective
    alone = objective.kind == "ewc" or getattr(objective, "on", "") == "replayed"
    if world > 1 and scope == "batch" and alone:
        words = "objective.on: replayed" if objective.kind == "distill" else "objective: ewc"
        raise ConfigError(
            f"{words}; ranks read different numbers of rows for it, and with model.cms.scope=batch "
            f"they wait for each other at every write (here {world} ranks): set "
            "model.cms.scope=row, or train in one process."
        )


def _check_rows(run: RunConfig) -> None:
    """Refuse a model or an objective for something else than what the stream has."""
    stream: Any = run.stream
    model: Any = run.model
    has = stream.row_kind or ("tokens" if stream.vocab_size() is not None else "")
    reads = model.row_kind or ("tokens" if hasattr(model, "vocab_size") else "")
    if not has:
        return
    words, *remedies = ROWS[has]
    parts = (
        (f"model: {model.kind}", reads),
        (f"objective: {run.objective.kind}", run.objective.row_kind),
    )
    for (part, wanted), remedy in zip(parts, remedies, strict=True):
        if wanted not in ("", has):
            raise ConfigError(
                f"{part}; made for {ROWS[wanted][0]}, and stream={stream.kind} has {words}: set "
                f"{remedy}, or choose another stream."
            )
    if has == reads == "examples":
        rule = stream.rule()
        for key, size in (("steps", rule.steps), ("features", rule.features)):
            found = getattr(model, key)
            require(
                found == size,
                f"model.{key}: {found}; examples of stream.task={stream.task} have {size}: set "
                f"model.{key}={size}.",
            )


def _check_controller(run: RunConfig) -> None:
    """Refuse knobs that turn nothing, and controllers that follow what is not measured."""
    stream, controller = run.stream, run.controller
    experts: Any = getattr(run.model, "experts", None)
    adjustable = hasattr(stream, "task_steps") and getattr(stream, "capacity", 0) > 0
    turned: tuple[str, ...] = getattr(controller, "turned", tuple)()
    if "replay" in turned and not adjustable:
        raise ConfigError(
            f"controller, replay: stream={stream.kind} replays nothing that could be turned; "
            "choose stream=tasks with stream.capacity of 1 or more."
        )
    routed = [
        name for name in turned if name in ("experts_k", "router_noise", "router_temperature")
    ]
    if routed and not (experts is not None and experts.sparse):
        raise ConfigError(
            f"controller, {routed[0]}: the model has no experts; set model.experts.form, or "
            "leave it out."
        )
    _check_write_scale(run, turned)
    if "router_noise" in turned and not experts.noise:
        raise ConfigError(
            "controller, router_noise: model.experts.noise is 0, so that routers draw none; set it "
            "above 0."
        )
    wanted: Any = getattr(getattr(controller, "ranges", controller), "experts_k", None)
    if wanted is not None:
        largest = wanted if isinstance(wanted, int) else wanted[1]
        require(
            largest <= experts.most,
            f"controller: experts_k up to {largest}, but a token has room for {experts.most}; set "
            f"model.experts.k_max={largest}.",
        )
    if run.signals.every and getattr(run.model, "vocab_size", None) is None:
        raise ConfigError("signals: measured on tokens; this model reads none: leave signals out.")
    if getattr(controller, "reads_signals", bool)():
        every: Any = getattr(controller, "every", 1)
        if not run.signals.every or every % run.signals.every:
            raise ConfigError(
                f"signals.every: {run.signals.every}; controller={controller and controller.kind} "
                f"follows signals every {every} steps: set signals.every={every} or a divisor."
            )
    _check_observed(run)
    if getattr(stream, "memory", "") == "loss" and not getattr(run.objective, "tells_rows", False):
        raise ConfigError(
            f"stream.memory: loss; objective={run.objective.kind} does not tell the losses of rows."
        )


def _check_observed(run: RunConfig) -> None:
    """Refuse turns that would follow a row of some steps ago: ``logging`` decides no numbers."""
    controller: Any = run.controller
    followed = getattr(controller, "signal", None)
    if followed is None or controller.reads_signals() or controller.every % run.logging.every == 0:
        return
    raise ConfigError(
        f"logging.every: {run.logging.every}; controller={controller.kind} follows {followed} of "
        f"logged steps every {controller.every} steps: set logging.every={controller.every} or a "
        "divisor."
    )


def _check_write_scale(run: RunConfig, turned: tuple[str, ...]) -> None:
    """Refuse a scale of writes where nothing heeds it."""
    scale = getattr(run.controller, "write_scale", 1.0)
    varies = "write_scale" in turned or getattr(run.controller, "kind", None) == "schedule"
    if (varies or scale != 1) and not _has_levels(run.model):
        raise ConfigError(
            "controller, write_scale: the model has no levels that a label writes, so that nothing "
            "is scaled; choose model.block=hope_attention, or leave it out."
        )
    model: Any = run.model
    if (varies or scale not in (0, 1)) and not model.cms.inner.differentiable:
        raise ConfigError(
            f"controller, write_scale: a step of model.cms.inner.kind={model.cms.inner.kind} has a "
            "size of its own, so that nothing is scaled; set model.cms.inner={kind:sgd} (or "
            "momentum, delta), or leave it out."
        )


def _has_levels(model: Any) -> bool:
    """Whether a block of a language model has a continuum memory, which write_scale is about."""
    kinds: list[Any] = [lookup("block", kind, "block") for kind in getattr(model, "kinds", ())]
    return any(kind.levels for kind in kinds)


def _check_strategy(run: RunConfig, strategy: Strategy) -> None:
    """What this strategy cannot do, with the key to change."""
    if run.train.recompute_every and not strategy.capabilities.segments:
        raise ConfigError(
            f"train.recompute_every: {run.train.recompute_every}; {strategy.name} has not gathered "
            "the parameters that a segment is read with again: set train.recompute_every=0 or "
            "launch train_dist.py."
        )
    if run.deepspeed is not None and strategy.name != "deepspeed":
        raise ConfigError(
            f"deepspeed.config: {run.deepspeed.config!r}; {strategy.name} training does not read "
            "it; set deepspeed=null."
        )
    strategy.configure(run)
    parts = (("model", run.model), ("objective", run.objective), ("optim", run.optim))
    for key, part in parts:
        for need, remedy in getattr(part, "requires", {}).items():
            if not getattr(strategy.capabilities, need):
                raise ConfigError(
                    f"{key}: {part.kind} needs {need}, which {strategy.name} cannot do; {remedy}."
                )
    if run.checkpoint.asynchronous and not strategy.capabilities.asynchronous_save:
        raise ConfigError(
            f"checkpoint.asynchronous: true, which {strategy.name} cannot do; set "
            "checkpoint.asynchronous=false."
        )


def validation_splits(run: RunConfig) -> list[str]:
    """Names of the stream's validation splits."""
    stream: Any = run.stream
    return [s for s in stream.splits() if s == "val" or s.startswith("val/")]
