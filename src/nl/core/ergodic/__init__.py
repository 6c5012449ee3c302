"""Mixtures of ergodic sources and their exact predictor. Floor 0."""

from nl.core.ergodic.exact import (
    Blocks,
    Sampling,
    entropies,
    entropy_rate,
    enumerated,
    kl_rate,
    longest,
    merged,
    rate_bounds,
    sampled,
)
from nl.core.ergodic.filter import Filtered, bayes_filter, bayes_filter_reference, entropy, kl
from nl.core.ergodic.mixture import Mixture, Sampled
from nl.core.ergodic.sources import Source, SourceError, chain, coin, mess3
from nl.core.ergodic.specs import expand, parse

__all__ = [
    "Blocks",
    "Filtered",
    "Mixture",
    "Sampled",
    "Sampling",
    "Source",
    "SourceError",
    "bayes_filter",
    "bayes_filter_reference",
    "chain",
    "coin",
    "entropies",
    "entropy",
    "entropy_rate",
    "enumerated",
    "expand",
    "kl",
    "kl_rate",
    "longest",
    "merged",
    "mess3",
    "parse",
    "rate_bounds",
    "sampled",
]
