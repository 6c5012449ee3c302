"""Needle-in-a-haystack prompts of an exact token length, after the RULER design. Floor 6.

A prompt is a haystack in which the facts of a puzzle (``nl.eval.puzzles``) stand, then its
question. Its length counts every token that is read before the answer, the leading end mark
included.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from nl.config import ConfigError
from nl.eval.context import Tokenizer
from nl.eval.puzzles import Puzzle

NOISE = (
    "The river is low this morning.",
    "Two boats wait at the pier.",
    "Nobody has opened the window yet.",
    "A cart goes up the hill and comes down again.",
    "The baker counts his loaves.",
)
FILLERS = ("and", "so", "a", "yes", "then", "all", "I", ".", "!")
MAX_WORDS = 12


@dataclass(frozen=True)
class Needle:
    """One sample.

    Attributes:
        prompt: token ids, exactly the asked length, beginning with the end mark.
        answer: token ids of the right value as it continues the prompt.
        others: token ids of the wrong candidates.
        depth: share of the haystack's tokens in front of the first fact; 0 without any.
        text: the prompt as text.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]
    depth: float
    text: str


def sentences(text: str) -> list[str]:
    """Pieces of a text that a needle may stand between: sentences, long ones cut by words."""
    pieces: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        words = sentence.split()
        pieces += [" ".join(words[at : at + MAX_WORDS]) for at in range(0, len(words), MAX_WORDS)]
    return pieces


def make_needle(
    tokenizer: Tokenizer,
    hay: Sequence[str],
    puzzle: Puzzle,
    *,
    length: int,
    depth: float,
    rng: random.Random,
) -> Needle:
    """Build one sample.

    Args:
        tokenizer: decides every length.
        hay: sentences, enough for ``length``; used from the first on.
        puzzle: what is hidden and asked.
        length: tokens of the prompt.
        depth: of the first fact, 0 (at the beginning) to 1; the others stand anywhere behind it.
        rng: this sample's own stream.

    Raises:
        ConfigError: the length is too short for facts and question, or cannot be met.
    """
    depths = (depth, *sorted(rng.uniform(depth, 1) for _ in puzzle.facts[1:]))
    frame = _Frame(tokenizer, puzzle.facts, puzzle.question, depths[: len(puzzle.facts)])
    hay = frame.fit(list(puzzle.words or hay), length)
    before, text = frame.compose(hay)
    ids = tokenizer.encode(text)
    answers = [_continuation(tokenizer, text, ids, f" {value}") for value in puzzle.candidates]
    return Needle(
        prompt=(tokenizer.eos_id, *ids),
        answer=answers[0],
        others=tuple(answers[1:]),
        depth=frame.share(hay, before[0]) if before else 0.0,
        text=text,
    )


@dataclass(frozen=True)
class _Frame:
    """Facts and question around a haystack that is fitted to a length."""

    tokenizer: Tokenizer
    facts: tuple[str, ...]
    question: str
    depths: tuple[float, ...]

    def compose(self, hay: Sequence[str]) -> tuple[list[int], str]:
        """The number of pieces before each fact, and the prompt."""
        ends = [0]
        for piece in hay:
            ends.append(ends[-1] + len(piece) + 1)
        before = []
        for depth in self.depths:
            wanted = depth * ends[-1]
            before.append(min(range(len(ends)), key=lambda place: abs(ends[place] - wanted)))
        parts, start = [], 0
        for place, fact in zip(before, self.facts, strict=True):
            parts += [*hay[start:place], fact]
            start = place
        return before, " ".join([*parts, *hay[start:], self.question])

    def share(self, hay: Sequence[str], before: int) -> float:
        """Tokens of the haystack in front of a fact over all its tokens."""
        front = self._tokens(" ".join(hay[:before]))
        back = self._tokens(" ".join(hay[before:]))
        return front / max(front + back, 1)

    def length(self, hay: Sequence[str]) -> int:
        """Tokens of the prompt, the leading end mark included."""
        return 1 + self._tokens(self.compose(hay)[1])

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) if text else 0

    def fit(self, hay: list[str], target: int) -> list[str]:
        """As many whole pieces as fit, then words, then short fillers, until the length is met."""
        shortest = self.length([])
        if shortest > target:
            raise ConfigError(
                f"lengths: {target}; facts and question alone take {shortest} tokens with this "
                "tokenizer; use a longer length."
            )
        if self.length(hay) < target:
            raise ConfigError(f"haystack: too little text for {target} tokens; use more documents.")
        count = bisect_left(range(len(hay)), True, key=lambda n: self.length(hay[: n + 1]) > target)
        chosen = hay[:count]
        for word in hay[count].split() if count < len(hay) else []:
            if self.length([*chosen, word]) > target:
                break
            chosen.append(word)
        for dropped in range(min(len(chosen), 12) + 1):
            filled = self._fill(chosen[: len(chosen) - dropped], target)
            if filled is not None:
                return filled
        raise ConfigError(
            f"lengths: {target}; cannot be met exactly with this tokenizer; use a longer length."
        )

    def _fill(self, chosen: list[str], target: int) -> list[str] | None:
        """Breadth-first over lengths that fillers reach; None when the target is not among them."""
        reached = {self.length(chosen): chosen}
        frontier = [chosen]
        while frontier and target not in reached:
            following = []
            for pieces in frontier:
                for filler in FILLERS:
                    longer = [*pieces, filler]
                    size = self.length(longer)
                    if size <= target and size not in reached:
                        reached[size] = longer
                        following.append(longer)
            frontier = following
        return reached.get(target)


def _continuation(tokenizer: Tokenizer, text: str, ids: list[int], answer: str) -> tuple[int, ...]:
    """The ids of ``answer`` as it follows ``text``."""
    whole = tokenizer.encode(text + answer)
    if whole[: len(ids)] == ids and len(whole) > len(ids):
        return tuple(whole[len(ids) :])
    return tuple(tokenizer.encode(answer))
