"""What is hidden in a haystack and asked for: the tasks of RULER and bAbI, made here. Floor 6.

RULER: arXiv 2404.06654; passkey: arXiv 2305.16300; bAbI: arXiv 1502.05698. Words and sentences are
our own. Every candidate answer is drawn as the right one is, so that guessing scores one share.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

COLOURS = "amber azure black brown coral green grey ivory olive pearl purple red rose silver white"
THINGS = (
    "anchor basket bridge candle castle compass feather garden "
    "hammer kettle ladder lantern mirror needle pencil violin"
)
PEOPLE = ("Anna", "Boris", "Clara", "David", "Elena", "Frank", "Greta", "Henry")
PLACES: tuple[str, ...] = ("attic", "bakery", "cellar", "forest", "garden", "harbour")
PLACES += ("kitchen", "library", "market", "office", "park", "school")
OBJECTS = ("apple", "ball", "book", "coin", "letter", "map")
COMMON = 3
"""Words asked for in tasks that count them."""
BLOCK = 12
"""Words after which the counting of the task ``common`` begins anew."""


class Size(NamedTuple):
    """How large a puzzle is.

    Attributes:
        candidates: answers to choose among.
        digits: of a number.
        keys: facts that belong to the puzzle, where it has several.
        words: words of a text that is to be counted.
    """

    candidates: int
    digits: int
    keys: int
    words: int


class Puzzle(NamedTuple):
    """One question.

    Attributes:
        facts: sentences to hide, in this order.
        question: the end of the prompt, up to the answer.
        candidates: answers, the right one first, all different.
        words: what the haystack is made of instead of sentences; empty: sentences.
    """

    facts: tuple[str, ...]
    question: str
    candidates: tuple[str, ...]
    words: tuple[str, ...] = ()


Maker = Callable[[random.Random, Size], Puzzle]


def _keys(rng: random.Random, count: int) -> list[str]:
    every = [f"{colour} {thing}" for colour in COLOURS.split() for thing in THINGS.split()]
    return rng.sample(every, count)


def _numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    low = 10 ** (digits - 1)
    return [str(value) for value in rng.sample(range(low, 10 * low), count)]


def single(rng: random.Random, size: Size) -> Puzzle:
    """One key, one number."""
    key = f"{rng.choice(COLOURS.split())} {rng.choice(THINGS.split())}"
    values = _numbers(rng, size.candidates, size.digits)
    fact = f"he secret number of the {key} is"
    question = f"Question: what is the secret number of the {key}? Answer: t{fact}"
    return Puzzle((f"T{fact} {values[0]}.",), question, tuple(values))


def passkey(rng: random.Random, size: Size) -> Puzzle:
    """A number that the text says to remember."""
    values = _numbers(rng, size.candidates, size.digits)
    fact = f"The pass key is {values[0]}. Remember it. {values[0]} is the pass key."
    return Puzzle((fact,), "Question: what is the pass key? Answer: the pass key is", tuple(values))


def multikey(rng: random.Random, size: Size) -> Puzzle:
    """Several keys with a number each; one is asked for, the others' numbers are candidates."""
    keys = _keys(rng, size.keys)
    values = _numbers(rng, max(size.keys, size.candidates), size.digits)
    facts = [_fact(key, value) for key, value in zip(keys, values, strict=False)]
    rng.shuffle(facts)
    return Puzzle(tuple(facts), _ask(keys[0]), tuple(values[: size.candidates]))


def multivalue(rng: random.Random, size: Size) -> Puzzle:
    """One key with several numbers, all asked for, in the order of the text."""
    (key,) = _keys(rng, 1)
    lists = _lists(rng, size)
    facts = tuple(_fact(key, value) for value in lists[0])
    question = f"Question: what are the secret numbers of the {key}? Answer: they are"
    return Puzzle(facts, question, tuple(map(", ".join, lists)))


def multiquery(rng: random.Random, size: Size) -> Puzzle:
    """Several keys with a number each, all asked for, in the order of the question."""
    keys, lists = _keys(rng, size.keys), _lists(rng, size)
    facts = [_fact(key, value) for key, value in zip(keys, lists[0], strict=True)]
    rng.shuffle(facts)
    asked = ", the ".join(keys)
    question = f"Question: what are the secret numbers of the {asked}? Answer: they are"
    return Puzzle(tuple(facts), question, tuple(map(", ".join, lists)))


def _fact(key: str, value: str) -> str:
    return f"The secret number of the {key} is {value}."


def _ask(key: str) -> str:
    return (
        f"Question: what is the secret number of the {key}? Answer: the secret number of the "
        f"{key} is"
    )


def _lists(rng: random.Random, size: Size) -> list[list[str]]:
    """Lists of numbers, all different."""
    values = _numbers(rng, size.candidates * size.keys, size.digits)
    return [values[at : at + size.keys] for at in range(0, len(values), size.keys)]


def variables(rng: random.Random, size: Size) -> Puzzle:
    """A chain of variables that hand on a value, beside a chain with another value."""
    names = _names(rng, size.keys * (size.candidates + 1))
    chains = [names[at : at + size.keys] for at in range(0, len(names), size.keys)]
    values = _numbers(rng, 2, size.digits)
    told = [_chain(chain, value) for chain, value in zip(chains, values, strict=False)]
    facts: list[str] = []
    while any(told):  # the order inside a chain stays
        facts.append(rng.choice([chain for chain in told if chain]).pop(0))
    question = f"Question: which variables have the value {values[0]}? Answer: the variables"
    return Puzzle(tuple(facts), question, tuple(map(", ".join, chains[: size.candidates])))


def _names(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(string.ascii_uppercase, k=3))] = None
    return list(found)


def _chain(names: Sequence[str], value: str) -> list[str]:
    first = f"Let {names[0]} = {value}."
    return [first, *(f"Let {b} = {a}." for a, b in itertools.pairwise(names))]


def common(rng: random.Random, size: Size) -> Puzzle:
    """The words that a list repeats most often, in the order of the alphabet."""
    words = _words(rng, COMMON * (size.candidates + 8))
    often, rare = words[:COMMON], words[COMMON:]
    text: list[str] = []
    while len(text) < size.words:
        block = often * 2 + rng.sample(rare, BLOCK - 2 * COMMON)
        rng.shuffle(block)
        text += block
    return Puzzle((), _count(COMMON), _sets(often, rare, size.candidates), tuple(text))


def frequent(rng: random.Random, size: Size) -> Puzzle:
    """The same for words whose counts fall as the square of their rank."""
    words = _words(rng, COMMON * (size.candidates + 8))
    weights = [1 / (1 + rank) ** 2 for rank in range(len(words))]
    weights[:COMMON] = [0.6] * COMMON
    text = rng.choices(words, weights, k=max(size.words, 40))
    often = words[:COMMON]
    head = often * 4  # also a short text has them most often
    rng.shuffle(head)
    return Puzzle((), _count(COMMON), _sets(often, words[COMMON:], size.candidates), (*head, *text))


def _words(rng: random.Random, count: int) -> list[str]:
    """Made-up words of two syllables."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    every = [first + second for first in syllables for second in syllables]
    return rng.sample(every, count)


def _sets(often: Sequence[str], rare: Sequence[str], candidates: int) -> tuple[str, ...]:
    groups = [often, *(rare[i * COMMON : (i + 1) * COMMON] for i in range(candidates - 1))]
    return tuple(", ".join(sorted(group)) for group in groups)


def _count(count: int) -> str:
    return f"Question: which {count} words are the most frequent ones above? Answer: they are"


def _story(steps: int) -> Maker:
    """Facts in noise with one to three supporting ones."""

    def maker(rng: random.Random, size: Size) -> Puzzle:
        person, *others = rng.sample(PEOPLE, 1 + min(size.keys, len(PEOPLE) - 1))
        thing = rng.choice(OBJECTS)
        places = rng.sample(PLACES, size.candidates + 1)
        answer, later = places[0], places[-1]
        facts = [f"{person} went to the {answer}."]
        question = f"Question: where is {person}? Answer: in the"
        if steps >= 2:
            facts.insert(0, f"{person} took the {thing}.")
            question = f"Question: where is the {thing}? Answer: in the"
        if steps == 3:
            facts.append(f"{person} went to the {later}.")
            question = f"Question: where was the {thing} before the {later}? Answer: in the"
        for other in others:
            fact = f"{other} went to the {rng.choice(places[: size.candidates])}."
            facts.insert(rng.randrange(len(facts) + 1), fact)
        return Puzzle(tuple(facts), question, tuple(places[: size.candidates]))

    return maker


MAKERS: dict[str, Maker] = {
    "single": single,
    "passkey": passkey,
    "multikey": multikey,
    "multivalue": multivalue,
    "multiquery": multiquery,
    "variables": variables,
    "common": common,
    "frequent": frequent,
    "facts1": _story(1),
    "facts2": _story(2),
    "facts3": _story(3),
}
