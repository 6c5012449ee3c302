"""What becomes of one key of an earlier system: renamed, replaced or refused. Floor 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nl.config.registry import ConfigError

GONE = object()
"""Marks a value that is the only way things work here: the key is left out."""
SAME = object()
"""Marks, as a key of ``values``, every value that is not listed: it is taken over."""


REFUSED = object()
"""A value without a counterpart."""


@dataclass(frozen=True)
class Rule:
    """What becomes of one old key."""

    keys: tuple[str, ...] = ()
    """New dotted keys that get the value."""
    values: Mapping[Any, Any] = field(default_factory=dict)
    """Old value -> new value or ``GONE``; under ``SAME``: whether others are taken over."""
    hint: str = "it has no counterpart; leave it out"
    """What to do about any other value."""
    convert: Callable[[Any], Any] | None = None
    """Makes the new value of the old one instead, or ``REFUSED``."""

    def apply(self, old: str, value: Any) -> dict[str, Any]:
        """The new keys and values.

        Raises:
            ConfigError: this value has no counterpart.
        """
        new: Any = REFUSED
        if self.convert is not None:
            new = self.convert(value)
        elif isinstance(value, (str, bool, int, float, type(None))) and value in self.values:
            new = self.values[value]
        elif SAME in self.values:
            new = value
        if new is REFUSED:
            raise ConfigError(f"{old}: {value!r}; {self.hint}.")
        return {} if new is GONE else dict.fromkeys(self.keys, new)


def renamed(*keys: str) -> Rule:
    """The same value under new keys."""
    return Rule(keys, {SAME: True})


def only(*values: Any, hint: str) -> Rule:
    """Values that describe what always holds here; any other is refused."""
    return Rule(values=dict.fromkeys(values, GONE), hint=hint)


def refused(hint: str) -> Rule:
    """No value has a counterpart."""
    return Rule(hint=hint)
