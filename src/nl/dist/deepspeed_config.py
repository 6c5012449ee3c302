"""The DeepSpeed JSON beside the run's configuration: one meaning for every number. Floor 4."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nl.config import ConfigError, flat
from nl.config.run import RunConfig

KEY = "deepspeed.config"
STAGES = (1, 2, 3)
ZERO = "zero_optimization"
PASSED_ON = (
    ZERO,
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "prescale_gradients",
    "gradient_predivide_factor",
)
"""What the JSON may say beside the numbers that follow from the run."""
OWNED = {
    "optimizer": "the run's optimizer steps (optim=...)",
    "scheduler": "the run's schedule turns the learning rate (schedule=...)",
    "fp16": "there is no loss scaling (train.precision is fp32 or bf16)",
    "amp": "the precision is train.precision",
    "data_types": "gradients and optimizer are fp32 (train.precision)",
    "communication_data_type": "reductions are fp32",
    "checkpoint": "checkpoints are the run's (checkpoint=...)",
    "tensorboard": "metrics go to the run's sinks (logging=...)",
    "wandb": "metrics go to the run's sinks (logging.backend=wandb)",
    "csv_monitor": "metrics go to the run's sinks (logging=...)",
    "curriculum_learning": "the stream decides the order of data (stream=...)",
    "data_efficiency": "the stream decides the order of data (stream=...)",
    "activation_checkpointing": "the run decides it (train.activation_checkpointing)",
    "compile": "the run decides it (train.compile)",
}
"""Blocks of the JSON that the run has its own word for."""
UNTESTED = ("offload_optimizer", "offload_param", "zenflow")
"""Parts of ``zero_optimization`` that this project has not shown to give the same numbers."""


def merged(run: RunConfig, world: int) -> dict[str, Any]:
    """What the DeepSpeed engine is given: the JSON, with everything that follows from the run.

    Args:
        run: its ``deepspeed.config`` names the file.
        world: number of ranks.

    Raises:
        ConfigError: a key that contradicts the run (both are named), is the run's own, or is not
            known here.
    """
    path = Path(run.deepspeed.config) if run.deepspeed else None
    if path is None:
        raise ConfigError(
            f"{KEY}: null; train_deepspeed.py needs a JSON, {KEY}=configs/deepspeed/zero3.json."
        )
    data = read(path)
    _check_keys(path, data)
    _check_zero(path, data)
    _check_precision(path, data, run)
    given = {key: value for key, value in data.items() if key in PASSED_ON}
    engine: dict[str, Any] = {
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **given,
    }
    for key, (value, source) in derived(run, world).items():
        found = data.get(key, "auto")
        if found not in ("auto", value):
            raise ConfigError(
                f"{KEY}: {path}: {key}: {found!r}, but {source} make {value!r}; change one of them "
                f"or leave {key} out."
            )
        engine[key] = value
    return engine


def derived(run: RunConfig, world: int) -> dict[str, tuple[Any, str]]:
    """Numbers of the JSON that follow from the run: (value, what they follow from)."""
    train = run.train
    rows = int(getattr(run.stream, "batch_size", world))
    batch = f"stream.batch_size={rows}"
    total = f"{batch} and train.grad_accum={train.grad_accum}"
    return {
        "train_batch_size": (rows * train.grad_accum, total),
        "train_micro_batch_size_per_gpu": (rows // world, f"{batch} on {world} ranks"),
        "gradient_accumulation_steps": (train.grad_accum, "train.grad_accum"),
        "gradient_clipping": (float(train.max_norm), "train.max_norm"),
    }


def read(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        ConfigError: missing, unreadable or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise ConfigError(f"{KEY}: {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{KEY}: {path}: not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{KEY}: {path}: must hold a mapping, not {type(data).__name__}.")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(key for key, _ in pairs)}")
    return found


def _check_keys(path: Path, data: Mapping[str, Any]) -> None:
    numbers = ("train_batch_size", "train_micro_batch_size_per_gpu")
    known = [*PASSED_ON, *numbers, "gradient_accumulation_steps", "gradient_clipping"]
    known += ["bf16", "torch_autocast"]
    for key, value in data.items():
        switched_off = isinstance(value, dict) and value.get("enabled") is False
        if key in known or (key in OWNED and switched_off):
            continue
        if key in OWNED:
            raise ConfigError(f"{KEY}: {path}: {key}: {OWNED[key]}; leave {key} out.")
        near = difflib.get_close_matches(key, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{KEY}: {path}: unknown {key!r}.{hint} Known: {', '.join(sorted(known))}."
        )


def _check_zero(path: Path, data: Mapping[str, Any]) -> None:
    zero = data.get(ZERO)
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or isinstance(stage, bool) or stage not in STAGES:
        raise ConfigError(
            f"{KEY}: {path}: {ZERO}.stage: {stage!r}; must be 1, 2 or 3 (without ZeRO: launch "
            "train_dist.py)."
        )
    for key in UNTESTED:
        device = zero[key].get("device", "none") if isinstance(zero.get(key), dict) else None
        if key in zero and device != "none":
            raise ConfigError(
                f"{KEY}: {path}: {ZERO}.{key}: {zero[key]!r}; not shown to give the same numbers: "
                f"leave it out, or launch train_fsdp.py with fsdp.cpu_offload=true."
            )
    for key, value in flat(zero).items():
        if "quantized" in key and value is True:
            raise ConfigError(
                f"{KEY}: {path}: {ZERO}.{key}: true; weights and gradients are exchanged in fp32: "
                f"leave it out."
            )


def _check_precision(path: Path, data: Mapping[str, Any], run: RunConfig) -> None:
    """``bf16`` and ``torch_autocast`` say what ``train.precision`` says, or are refused."""
    for key in ("bf16", "torch_autocast"):
        block = data.get(key)
        if block is None:
            continue
        on = block.get("enabled", False) if isinstance(block, dict) else block
        wanted = run.train.precision == "bf16"
        if on not in ("auto", wanted):
            raise ConfigError(
                f"{KEY}: {path}: {key}.enabled: {on!r}, but train.precision={run.train.precision}; "
                f"change one of them or leave {key} out."
            )
        if wanted and set(block) - {"enabled"} - ({"dtype"} if key == "torch_autocast" else set()):
            raise ConfigError(
                f"{KEY}: {path}: {key}: {sorted(block)}; precision is autocast over fp32 weights "
                f"(train.precision): leave all but enabled out."
            )
