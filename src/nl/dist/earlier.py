"""The model that a run had after any step that it saved, and before its first. Floor 4."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nl.config import ConfigError
from nl.config.run import RunConfig
from nl.core.seeds import SeedBook, seed_everything
from nl.dist.origin import begin, fill, read_weights


def model_after(run: RunConfig, home: Path | None, step: int) -> nn.Module:
    """The model after a step, on the CPU; digests are checked.

    Args:
        run: its configuration.
        home: its directory; None where there is none.
        step: 0 stands for the model before training, drawn again from the run's seed.

    Raises:
        ConfigError: no checkpoint of this step.
    """
    if step == 0:
        return _fresh(run)
    folder = None if home is None else home / "checkpoints" / f"step_{step:06d}"
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"{folder or 'these weights'}: no checkpoint of step {step}; train with "
            f"checkpoint.at=[{step}] and checkpoint.keep=0."
        )
    config: Any = run
    model: nn.Module = config.model.build()
    fill(model, read_weights(folder))
    return model.eval()


def _fresh(run: RunConfig) -> nn.Module:
    """As training began; the random streams of this process go on as if nothing had been drawn."""
    config: Any = run
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_everything(SeedBook(run.seed).seed("model"))
        model: nn.Module = config.model.build()
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    begin(model, run, None)
    return model.eval()
