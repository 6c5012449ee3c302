"""formal_mix: strings of eight languages, each after a token that says which. Floor 1."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nl.config import register
from nl.core.batch import IGNORE
from nl.data.probe import Guess, Ints, ProbeConfig, Row
from nl.data.probe_states import LANGUAGES, FormalConfig

NAMES = tuple(LANGUAGES)
FIRST = max(len(letters) for letters in LANGUAGES.values())
"""Id of the token that says the first language; letters stand below, as in ``formal``."""
BLANK = FIRST + len(NAMES)
"""What fills a row."""


@register("stream", "formal_mix")
@dataclass(frozen=True, kw_only=True)
class FormalMixConfig(ProbeConfig):
    """As formal, a row of any of the eight languages, which its first token names.

    Letters and labels of a language are those of ``formal``: the same ids mean other things in
    another language.
    """

    shortest: int = 2
    """Fewest tokens of a string."""
    longest: int = 20
    """Most tokens of a string; rows are filled up with a token that is not scored."""
    test_longest: int = 40
    """Most tokens of a test string, whose fewest are longest + 1."""

    family = "formal"
    shared = "the languages; held out are longer strings"
    disjoint: ClassVar[bool] = False
    """There are few strings of each length; test strings are longer."""

    def check(self) -> None:
        """See ``formal``."""
        assert self._each

    @functools.cached_property
    def _each(self) -> tuple[FormalConfig, ...]:
        sizes = {name: getattr(self, name) for name in ("shortest", "longest", "test_longest")}
        return tuple(
            FormalConfig(language=name, **sizes)  # type: ignore[arg-type]
            for name in NAMES
        )

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See ``formal``; slices say the language by its number."""
        number = int(rng.integers(len(NAMES)))
        one = self._each[number].row(rng, split)
        blank = one.inputs == len(LANGUAGES[NAMES[number]])
        inputs = np.append(FIRST + number, np.where(blank, BLANK, one.inputs))
        slices = {"language": np.full(len(inputs), number)}
        slices |= {name: np.append(0, values) for name, values in one.slices.items()}
        return Row(inputs, np.append(IGNORE, one.targets), slices)

    def _by_language(self, inputs: Ints, rule: str) -> Ints:
        """What a rule of ``formal`` says behind the first token."""
        found = np.full_like(inputs, IGNORE)
        for number, task in enumerate(self._each):
            mine = inputs[:, 0] == FIRST + number
            if mine.any():
                guess = task.oracle if rule == "oracle" else task.shortcuts()[rule]
                rest = inputs[mine, 1:]
                filled = len(LANGUAGES[NAMES[number]])
                found[mine, 1:] = guess(np.where(rest == BLANK, filled, rest))
        return found

    def oracle(self, inputs: Ints) -> Ints:
        """By following the state of the row's language."""
        return self._by_language(inputs, "oracle")

    def shortcuts(self) -> dict[str, Guess]:
        """What may follow the last token alone, in this language."""
        names = self._each[0].shortcuts()
        return {name: functools.partial(self._by_language, rule=name) for name in names}

    def bound(self) -> float:
        """See ``formal``."""
        return 0.97

    def chance(self) -> float:
        """Among all labels of the language, mean over languages."""
        return float(np.mean([task.chance() for task in self._each]))

    def name(self, token: int) -> str:
        """Languages by name, letters by number; what fills a dot."""
        if token >= FIRST:
            return "." if token == BLANK else NAMES[token - FIRST]
        return "abcd"[token]

    def answer(self, label: int) -> str:
        """The bits: letters that may follow, then whether it may end."""
        return f"{{{label:b}}}"

    def tokens(self) -> int:
        """Letters, languages, the filling, and every label."""
        return max(BLANK + 1, *(task.tokens() for task in self._each))
