"""Sources by name: ``mess3:0.05:0.85``, ``chain:5:1:0.5:3``; ranges, relabellings. Floor 0.

A name is a kind and its numbers, joined by colons; suffixes relabel its symbols:

    coin:p            independent bits      coin:r<seed>   p drawn evenly from (0, 1)
    mess3:x:a         Mess3                 mess3:r<seed>  x from (0.02, 0.2), a from (0.5, 0.95)
    chain:V:m:alpha:seed    Markov chain of order m on V symbols, rows from Dirichlet(alpha)
    hmm:V:S:seed            random hidden Markov source          unifilar:V:S:seed  a unifilar one
    z1r  golden  even  rrxor
    file:<path.json>        matrices (V, S, S) as JSON
    @p<k>   symbols permuted by permutation k (0 leaves them, all k < V! differ)
    @+<k>   symbols moved up by k: disjoint supports

One range a..b in a name, both ends meant, makes several of it: ``chain:5:1:0.5:0..7``, or
``chain:5:1:0.5:3@p0..7`` for one chain in eight labellings. Which one a number means does not
depend on the range, so that 0..3 are the first half of 0..7.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nl.core.ergodic import sources
from nl.core.ergodic.sources import Floats, Ints, Source, SourceError

MOST = 4096
"""Sources that one range may make."""
Maker = Callable[..., Source]
KINDS: dict[str, tuple[Maker, tuple[type, ...], str]] = {
    "mess3": (sources.mess3, (float, float), "mess3:x:a"),
    "coin": (sources.coin, (float,), "coin:p"),
    "chain": (sources.dirichlet_chain, (int, int, float, int), "chain:V:m:alpha:seed"),
    "hmm": (sources.random_hmm, (int, int, int), "hmm:V:S:seed"),
    "unifilar": (sources.random_unifilar, (int, int, int), "unifilar:V:S:seed"),
    "z1r": (sources.z1r, (), "z1r"),
    "golden": (sources.golden, (), "golden"),
    "even": (sources.even, (), "even"),
    "rrxor": (sources.rrxor, (), "rrxor"),
}
DRAWN = {"mess3": ((0.02, 0.2), (0.5, 0.95)), "coin": ((0.0, 1.0),)}
"""Ranges of the numbers that kind:r<seed> draws."""


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Names with ranges as single names, in order.

    Raises:
        SourceError: an empty or huge range, two in one name, or a name twice.
    """
    found: list[str] = []
    for name in names:
        places = [] if name.startswith("file:") else list(re.finditer(r"(\d+)\.\.(\d+)", name))
        if len(places) > 1:
            raise SourceError(f"{name}: two ranges; one a..b per name")
        if not places:
            found.append(name)
            continue
        first, last = int(places[0][1]), int(places[0][2])
        if not 0 <= last - first < MOST:
            raise SourceError(f"{name}: range {first}..{last}; must go up, by at most {MOST}")
        head, tail = name[: places[0].start()], name[places[0].end() :]
        found += [f"{head}{number}{tail}" for number in range(first, last + 1)]
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise SourceError(f"{twice[0]}: named twice; each component once")
    return tuple(found)


def parse(name: str) -> Source:
    """The source of a name without ranges.

    Raises:
        SourceError: what is wrong with it, and what is known.
    """
    base, *suffixes = name.split("@")
    source = _base(base)
    for suffix in suffixes:
        source = _suffixed(source, suffix, name)
    return Source(name, source.matrices)


def _base(text: str) -> Source:
    kind, _, rest = text.partition(":")
    if kind == "file":
        return _from_file(rest)
    if kind not in KINDS:
        known = ", ".join([*(usage for _, _, usage in KINDS.values()), "file:<path.json>"])
        raise SourceError(f"{text}: no source of that name; known: {known}")
    make, types, usage = KINDS[kind]
    given = rest.split(":") if rest else []
    if kind in DRAWN and len(given) == 1 and re.fullmatch(r"r\d+", given[0]):
        seed = int(given[0][1:])
        rng = np.random.default_rng([int.from_bytes(kind.encode(), "big"), seed])
        return make(*(float(rng.uniform(low, high)) for low, high in DRAWN[kind]))
    try:
        if len(given) != len(types):
            raise ValueError
        values = [kind_of(word) for kind_of, word in zip(types, given, strict=True)]
    except ValueError:
        drawn = f" or {kind}:r<seed>" if kind in DRAWN else ""
        raise SourceError(f"{text}: write {usage}{drawn}, numbers for the letters") from None
    return make(*values)


def _from_file(path: str) -> Source:
    try:
        found: Floats = np.asarray(json.loads(Path(path).read_text()), dtype=np.float64)
    except OSError as error:
        raise SourceError(f"file:{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SourceError(f"file:{path}: no list of V matrices (S, S): {error}") from error
    return Source(f"file:{path}", found)


def _suffixed(source: Source, suffix: str, name: str) -> Source:
    size = source.alphabet
    if re.fullmatch(r"p\d+", suffix):
        return source.relabelled(permutation(size, int(suffix[1:])), size, name)
    if re.fullmatch(r"\+\d+", suffix):
        shift = int(suffix[1:])
        return source.relabelled(np.arange(size) + shift, size + shift, name)
    raise SourceError(f"{name}: @{suffix} is no relabelling; use @p<k> or @+<k>")


def permutation(size: int, number: int) -> Ints:
    """Permutation ``number`` of range(size); 0 is the identity, those below size! all differ.

    Numbers step through the lexicographic order by about 0.618 of its length, so that the first
    few are unlike each other.

    Raises:
        SourceError: there are not so many.
    """
    count = math.factorial(size)
    if number >= count:
        raise SourceError(f"@p{number}: {size} symbols have {count} permutations, 0 to {count - 1}")
    step = next(
        one for one in itertools.count(max(1, round(0.618034 * count))) if math.gcd(one, count) == 1
    )
    rank, left, found = number * step % count, list(range(size)), []
    for place in range(size, 0, -1):
        chosen, rank = divmod(rank, math.factorial(place - 1))
        found.append(left.pop(chosen))
    return np.asarray(found, dtype=np.int64)
