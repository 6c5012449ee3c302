"""Configuration: registry, strict structuring, the Hydra bridge. Floor 0, no torch."""

from nl.config.registry import ConfigError, Group, lookup, register, table
from nl.config.structure import defaults_of, flat, require, structure, unstructure, writing

__all__ = [
    "ConfigError",
    "Group",
    "defaults_of",
    "flat",
    "lookup",
    "register",
    "require",
    "structure",
    "table",
    "unstructure",
    "writing",
]
