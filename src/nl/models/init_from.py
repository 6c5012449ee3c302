"""model=init_from: the model of the file that a run begins with. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from nl.config import ConfigError, register
from nl.config.groups import ModelConfig


@register("model", "init_from")
@dataclass(frozen=True, kw_only=True)
class InitFromConfig(ModelConfig):
    """The model of ``init_from``, as its file describes it; a run keeps that description."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Options that are to differ, as in the model's own tree; none that a weight depends on."""

    def build(self) -> NoReturn:
        """A file has to be named first."""
        raise ConfigError(
            "model: init_from; it stands for the model of a file, which only a training run reads: "
            "name one with init_from=<file>."
        )
