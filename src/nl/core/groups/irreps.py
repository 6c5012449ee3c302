"""Irreducible real representations, found from the multiplication table alone. Floor 0.

A random symmetric element of the right regular algebra commutes with every left translation, and
its eigenspaces are irreducible; one is kept per character. No tables of characters are stored.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

from nl.core.groups.finite import FiniteGroup, Floats, GroupError, Ints

TYPES = {1: "real", 2: "complex", 4: "quaternionic"}
ATTEMPTS = 5
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Irrep:
    """An irreducible real representation of a group of N elements.

    Attributes:
        name: dimension and a letter, ``1a`` the trivial one.
        matrices: (N, d, d) orthogonal.
        character: (N,) traces.
        schur: Frobenius-Schur number: 1 real, 2 complex, 4 quaternionic type.
    """

    name: str
    matrices: Floats
    character: Floats
    schur: int

    @property
    def dimension(self) -> int:
        """d."""
        return int(self.matrices.shape[1])

    @property
    def type(self) -> str:
        """real, complex or quaternionic."""
        return TYPES[self.schur]

    @property
    def complex_dimension(self) -> int:
        """Of the complex irreducible representations that it consists of."""
        return self.dimension if self.schur == 1 else self.dimension // 2

    def transform(self, values: Floats) -> Floats:
        """Fourier coefficient sum_g x(g) rho(g)^T, (..., d, d), of functions (..., N)."""
        return np.asarray(np.einsum("...g,gij->...ji", values, self.matrices))

    def part(self, group: FiniteGroup, values: Floats) -> Floats:
        """The component (..., N) of functions (..., N) that lies in this representation."""
        # (P x)(h) = d / (m N) sum_k chi(h k^-1) x(k)
        between = group.table[:, group.inverse]
        weight = self.dimension / (self.schur * group.order)
        return np.asarray(values @ (weight * self.character[between]).T)

    def power(self, group: FiniteGroup, values: Floats) -> Floats:
        """Squared norm (...,) of that component; over all irreps they sum to ||x||^2 (Parseval)."""
        return np.asarray(np.square(self.part(group, values)).sum(axis=-1))


@dataclass(frozen=True, eq=False)
class Decomposition:
    """All functions on a group as a sum of its irreps.

    Attributes:
        irreps: by dimension, the trivial one first.
        basis: (N, N) orthonormal columns, each in one isotypic component.
        owner: (N,) the number of the irrep that each column belongs to.
    """

    irreps: tuple[Irrep, ...]
    basis: Floats
    owner: Ints


_CACHE: dict[bytes, Decomposition] = {}


def decompose(group: FiniteGroup) -> Decomposition:
    """The regular representation of a group, taken apart.

    Raises:
        GroupError: the decomposition does not add up (a table that is no group's).
    """
    key = group.table.tobytes()
    if key not in _CACHE:
        _CACHE[key] = _decompose(group)
    return _CACHE[key]


def irreps(group: FiniteGroup) -> tuple[Irrep, ...]:
    """All irreducible real representations, by dimension, the trivial one first."""
    return decompose(group).irreps


def _decompose(group: FiniteGroup) -> Decomposition:
    for attempt in range(ATTEMPTS):
        found, basis, owner = _attempt(group, np.random.default_rng(attempt))
        # Every irrep of real dimension d and number m fills d^2 / m dimensions.
        if sum(d * d // m for _, d, m, _ in found) == group.order:
            return _named(found, basis, owner)
    raise GroupError(f"{group.name}: its representations do not add up to {group.order} dimensions")


Found = tuple[Floats, int, int, Floats]


def _attempt(group: FiniteGroup, rng: np.random.Generator) -> tuple[list[Found], Floats, list[int]]:
    n = group.order
    weights = rng.standard_normal(n)
    weights = weights + weights[group.inverse]
    # (A x)(h) = sum_g c_g x(h g): entry (h, k) is c_{h^-1 k}.
    values, vectors = np.linalg.eigh(weights[group.quotient])
    gap = TOLERANCE * max(1.0, float(np.abs(values).max()))
    cuts = np.flatnonzero(np.diff(values) > gap) + 1
    found: list[Found] = []
    owner: list[int] = []
    for basis in np.split(vectors, cuts, axis=1):
        # (L_g v)(h) = v(g^-1 h): the matrix of L_g in this basis.
        moved = basis[group.quotient]
        matrices = np.einsum("hi,ghj->gij", basis, moved)
        character = np.einsum("gii->g", matrices)
        known = [np.abs(character - chi).max() < 1e-3 for chi, *_ in found]
        same = [known.index(True)] if any(known) else []
        schur = float(character @ character) / n
        if abs(schur - round(schur)) > 1e-3 or round(schur) not in TYPES:
            return [], vectors, []
        if not same:
            same = [len(found)]
            found.append((character, basis.shape[1], round(schur), matrices))
        owner += same * basis.shape[1]
    return found, vectors, owner


def _named(found: list[Found], basis: Floats, owner: list[int]) -> Decomposition:
    """Sorted by dimension, then by characters, larger ones first."""

    def place(number: int) -> tuple[int, tuple[float, ...]]:
        return found[number][1], tuple(-np.round(found[number][0], 6) + 0.0)

    order = sorted(range(len(found)), key=place)
    named, count = [], dict[int, int]()
    for old in order:
        character, dimension, schur, matrices = found[old]
        number = count[dimension] = count.get(dimension, -1) + 1
        named.append(Irrep(f"{dimension}{letters(number)}", matrices, character, schur))
    new = np.argsort(np.asarray(order))
    return Decomposition(tuple(named), basis, np.asarray(new[np.asarray(owner)], dtype=np.int64))


def letters(number: int) -> str:
    """a to z, then aa, ab, ..."""
    alphabet = string.ascii_lowercase
    head, last = divmod(number, len(alphabet))
    return (letters(head - 1) if head else "") + alphabet[last]


def powers(group: FiniteGroup, values: Floats) -> dict[str, Floats]:
    """Power (...,) of functions (..., N) in every irrep, by name."""
    return {one.name: one.power(group, values) for one in irreps(group)}
