"""``train.compile``: torch.compile of a model's shard units, never silently off. Floor 3.

Units are compiled one by one, so that all layers of a kind share what was compiled, a chunk loop
around them stays plain Python, and names of parameters do not change. A unit with a chunk loop of
its own would become one program per place in the row: there, and outside units, the operations of
memories and the steps of loops are compiled instead (``nl.core.program``). What is asked for more
variants than torch keeps would run uncompiled from then on; that is an error here.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Any

import torch
from torch import nn

from nl.config import require
from nl.core.logs import get_logger
from nl.core.native import cpp_compiler
from nl.core.program import set_compiled
from nl.ops.level_native import KERNEL as LEVELS

log = get_logger(__name__)

RECOMPILE_LIMIT = 32
"""Variants of one function: a level that has not been written is another one than after."""

_left_out: set[Any] = set()
"""Methods that are wrapped already."""


def check_compile(wanted: bool, needs: Container[str] = ()) -> None:
    """Refuse ``train.compile`` where nothing can be compiled.

    Args:
        wanted: ``train.compile``.
        needs: what the model asks of a strategy.

    Raises:
        ConfigError: no C++ compiler, or a signal that is taken inside the step.
    """
    require(
        not wanted or "inner_autograd" not in needs,
        "train.compile: true; compiled blocks are not known to give a signal inside the step: "
        "set train.compile=false or model.cms.signal=head.",
    )
    require(
        not wanted or cpp_compiler() is not None,
        "train.compile: true; no C++ compiler found ($CXX, g++, clang++, c++): install one, name "
        "it in CXX, or set train.compile=false.",
    )


def too_many_variants() -> tuple[type[Exception], ...]:
    """What is raised where more variants are asked for; nothing as long as nothing is compiled."""
    errors: Any = sys.modules.get("torch._dynamo.exc")
    return () if errors is None else (errors.FailOnRecompileLimitHit,)


def compile_module(module: nn.Module, backend: str = "inductor", **told: Any) -> None:
    """``module.compile``, with what its parts keep from the tracer left out.

    A part names such methods in ``untraced``. They are wrapped here and not where they are defined,
    so that nothing loads the tracer, seconds of every command, before something is compiled.

    Args:
        module: compiled in place.
        backend: of torch.compile.
        told: more of its arguments.
    """
    for part in module.modules():
        for name in getattr(part, "untraced", ()):
            method = getattr(type(part), name)
            if method not in _left_out:
                left = torch.compiler.disable(method)
                _left_out.add(left)
                setattr(type(part), name, left)
    module.compile(backend=backend, **told)


def compile_units(model: nn.Module, backend: str = "inductor", *, kernels: bool = False) -> int:
    """Compile every shard unit in place, forward and backward; the first steps take minutes.

    From here on the operations of memories are compiled in the whole process.

    Args:
        model: has ``shard_units()``.
        backend: of torch.compile.
        kernels: it will run in fp32 on the CPU, where levels have kernels: units with such levels
            are not compiled whole, because a tracer would take the kernels apart.

    Returns:
        How many units there are.

    Raises:
        ConfigError: the model has none.
    """
    import torch._dynamo

    units: Any = getattr(model, "shard_units", list)()
    require(
        len(units) > 0,
        f"train.compile: true; {type(model).__name__} has no shard units to compile: set "
        "train.compile=false.",
    )
    config: Any = torch._dynamo.config
    config.fail_on_recompile_limit_hit = True
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    set_compiled(backend)
    whole = [unit for unit in units if getattr(unit, "compile_whole", True)]
    left = [unit for unit in whole if kernels and _has_kernels(unit)]
    for unit in whole:
        if unit not in left:
            compile_module(unit, backend)
    log.info(
        "torch.compile: %d of %d units whole, at first call", len(whole) - len(left), len(units)
    )
    if left:
        log.info("torch.compile: %d units are left to the kernels of their levels", len(left))
    return len(units)


def _has_kernels(unit: nn.Module) -> bool:
    """Whether all levels of a unit run in kernels of their own; see ``nl.ops.level_native``."""
    chain: Any = getattr(unit, "levels", None)
    if chain is None or not LEVELS.takes(torch.empty(1)):
        return False
    config = chain.config
    form = (config.activation, config.norm, config.bias, config.scope)
    return form == ("silu", "rms", False, "row") and all(
        level.router is None for level in chain.levels
    )
