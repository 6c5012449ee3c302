"""What every block of a language model is told about the model it is part of. Floor 3."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from nl.nn.attention import AttentionConfig
from nl.nn.cms_config import CMSConfig
from nl.nn.experts_config import ExpertsConfig
from nl.nn.gated_delta import GatedDeltaConfig
from nl.nn.recurrent import RecurrentConfig
from nl.nn.selfmod import SelfModConfig
from nl.nn.titan_config import TitanConfig


class LanguageShape(Protocol):
    """The part of ``LanguageConfig`` that blocks read."""

    @property
    def dim(self) -> int:
        """Width of the residual stream."""

    @property
    def mlp_hidden_size(self) -> int:
        """Hidden width of feed-forward layers."""

    @property
    def parallel(self) -> bool:
        """Whether feed-forward layers read what their block was given."""

    def make_norm(self) -> nn.Module:
        """A norm of the width of the stream."""

    def make_mlp(self) -> nn.Module:
        """A feed-forward layer."""

    @property
    def residual_scale(self) -> float:
        """Scale of projections into the residual stream at initialisation."""

    @property
    def attention(self) -> AttentionConfig:
        """Attention layers."""

    @property
    def cms(self) -> CMSConfig:
        """Continuum memories."""

    @property
    def experts(self) -> ExpertsConfig:
        """Sparse experts, where this block has them."""

    @property
    def selfmod(self) -> SelfModConfig:
        """Self-modifying memories."""

    @property
    def gated_delta(self) -> GatedDeltaConfig:
        """Gated delta rules."""

    @property
    def recurrent(self) -> RecurrentConfig:
        """Recurrent layers."""

    @property
    def titan(self) -> TitanConfig:
        """Titans memories and the attention beside them."""
