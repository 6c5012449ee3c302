"""The registry groups: the seams of the house, one base each. Floor 0.

A concrete kind is a frozen keyword-only dataclass that subclasses its base, is decorated with
``@register(group, kind)`` and has a ``build`` method with the signature of ``docs/contracts.md``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from nl.config.registry import Group


class ModelConfig(Group):
    """What the network is. ``build() -> nl.core.protocols.Model``."""

    group: ClassVar[str] = "model"
    row_kind: ClassVar[str] = ""
    """What it reads, one of ``nl.fit.ROWS``; empty: ids where it has a ``vocab_size``."""


class BlockConfig(Group):
    """One residual block of a language model, selected by name in ``model.block``."""

    group: ClassVar[str] = "block"


class InnerConfig(Group):
    """Inner optimizer of a memory level, a field of the level's configuration."""

    group: ClassVar[str] = "inner"


class StreamConfig(Group):
    """Where batches come from. ``build(split, seed=, rank=, world=) -> Stream``."""

    group: ClassVar[str] = "stream"
    row_kind: ClassVar[str] = ""
    """What its rows are, one of ``nl.fit.ROWS``; empty: ids where it has a vocabulary."""


class ObjectiveConfig(Group):
    """How a batch becomes a summed loss. ``build(model) -> nn.Module``."""

    group: ClassVar[str] = "objective"
    row_kind: ClassVar[str] = ""
    """What it learns from, one of ``nl.fit.ROWS``; empty: anything."""


class OptimConfig(Group):
    """The outer optimizer. ``build(named_parameters) -> torch.optim.Optimizer``."""

    group: ClassVar[str] = "optim"


class ScheduleConfig(Group):
    """Learning-rate factor over steps. ``factor(step, total_steps) -> float``."""

    group: ClassVar[str] = "schedule"


class ControllerConfig(Group):
    """Who turns knobs. ``build(seed=) -> Controller``."""

    group: ClassVar[str] = "controller"


class EvaluatorConfig(Group):
    """What is measured. ``build() -> Evaluator``."""

    group: ClassVar[str] = "evaluator"
    reads: ClassVar[str] = "text"
    """``text``: tokenizer and documents. ``examples``: those of a stream that makes its own.
    ``probe``: rows of a stream that has an oracle. ``phases``: those of one with phases, too.
    ``tasks``: held-out windows of tasks. ``floor``: windows of known sources."""

    def check_parts(self, stream: Any, model: Any) -> None:
        """Refuse what the run's stream and model do not fit; complaints begin with the field."""


class HookConfig(Group):
    """A side effect every n steps. ``build() -> Hook``."""

    group: ClassVar[str] = "hook"
