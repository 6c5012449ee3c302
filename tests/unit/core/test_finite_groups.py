"""Groups, their representations and the staircase against hand-made facts and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nl.core.groups.finite import (
    FiniteGroup,
    Floats,
    GroupError,
    dihedral,
    generated,
    group_of,
    parse_group,
)
from nl.core.groups.irreps import Irrep, irreps, letters, powers
from nl.core.groups.staircase import fitting_lr, growth_rate, levels, staircase, utility

ORDERS = {
    "C1": 1,
    "C7": 7,
    "C3xC3": 9,
    "C_2xC_3": 6,
    "D1": 2,
    "D2": 4,
    "D5": 10,
    "S3": 6,
    "S4": 24,
    "S5": 120,
    "A4": 12,
    "A5": 60,
    "O": 24,
    "OxC2": 48,
    "Q8": 8,
    "H3": 27,
}
DIMENSIONS = {
    "C10": [1, 1, 2, 2, 2, 2],
    "D3": [1, 1, 2],
    "D4": [1, 1, 1, 1, 2],
    "O": [1, 1, 2, 3, 3],
    "A5": [1, 3, 3, 4, 5],
    "S5": [1, 1, 4, 4, 5, 5, 6],
    "Q8": [1, 1, 1, 1, 4],
    "H3": [1, 2, 2, 2, 2, 6],
}


def rows(name: str) -> tuple[FiniteGroup, Floats]:
    """A group and a centred random template."""
    group = parse_group(name)
    values = np.random.default_rng(3).standard_normal(group.order)
    return group, values - values.mean()


@pytest.mark.parametrize("name", ORDERS)
def test_named_groups_obey_the_laws(name: str) -> None:
    group = parse_group(name)
    assert group.order == ORDERS[name]
    again = group_of(group.table.tolist())  # checks identity, inverses, associativity
    assert (again.table == group.table).all()
    everything = np.arange(group.order)
    assert (group.table[everything, group.inverse] == 0).all()
    assert (group.table[0] == everything).all()


def test_conventions_of_dihedral_elements() -> None:
    group = dihedral(3)
    turn, flip = 1, 3
    assert group.table[turn, turn] == 2
    assert group.table[flip, turn] == group.table[2, flip] == 5  # s r = r^-1 s
    commuting = parse_group("C3xC4").table
    assert (commuting == commuting.T).all()


def test_words_multiply_from_the_left_to_the_right() -> None:
    group = dihedral(3)
    words = np.asarray([[3, 1, 3], [1, 3, 1]])
    expected = [[3, 5, group.table[5, 3]], [1, 4, group.table[4, 1]]]
    assert group.products(words).tolist() == expected


def test_the_orbit_is_the_left_regular_representation() -> None:
    group, template = rows("D3")
    shown = group.shown(template)
    for g in range(group.order):
        for h in range(group.order):
            assert shown[g, group.table[g, h]] == template[h]  # (L_g x)(g h) = x(h)
    assert (parse_group("C5").shown(np.arange(5.0))[2] == np.roll(np.arange(5.0), 2)).all()


@pytest.mark.parametrize("name", DIMENSIONS)
def test_irreps_are_homomorphisms_and_orthogonal(name: str) -> None:
    group = parse_group(name)
    found = irreps(group)
    assert [one.dimension for one in found] == DIMENSIONS[name]
    assert (found[0].character == pytest.approx(np.ones(group.order))) is True
    for one in found:
        pairs = np.einsum("gij,hjk->ghik", one.matrices, one.matrices)
        assert np.abs(pairs - one.matrices[group.table]).max() < 1e-10
    characters = np.stack([one.character for one in found])
    gram = characters @ characters.T / group.order
    assert gram == pytest.approx(np.diag([one.schur for one in found]), abs=1e-9)


def test_types_of_irreps() -> None:
    def types(name: str) -> set[str]:
        return {one.type for one in irreps(parse_group(name))}

    assert types("C5") == {"real", "complex"}
    assert types("D5") == types("A5") == types("O") == {"real"}
    assert types("Q8") == {"real", "quaternionic"}


def test_characters_of_the_cube_and_of_the_icosahedron() -> None:
    """Values of the classes: 2 on threefold turns is E; the golden ratio tells 3a from 3b."""
    cube = {one.name: sorted(set(np.round(one.character, 6))) for one in irreps(parse_group("O"))}
    assert cube["2a"] == [-1, 0, 2]
    assert cube["3a"] == cube["3b"] == [-1, 0, 1, 3]
    golden = (1 + math.sqrt(5)) / 2
    icosahedron = {one.name: one.character for one in irreps(parse_group("A5"))}
    for name in ("3a", "3b"):
        assert set(np.round(icosahedron[name], 6)) == {
            3.0,
            -1.0,
            0.0,
            round(golden, 6),
            round(1 - golden, 6),
        }
    assert np.abs(icosahedron["3a"] - icosahedron["3b"]).max() > 2


@pytest.mark.parametrize("name", ["C6", "C3xC3", "D4", "O", "A5", "Q8", "H3"])
def test_powers_add_up(name: str) -> None:
    group, template = rows(name)
    found = powers(group, template)
    assert sum(map(float, found.values())) == pytest.approx(float(template @ template))
    assert float(found["1a"]) == pytest.approx(0, abs=1e-12)
    coefficients = {
        one.name: one.dimension
        / (one.schur * group.order)
        * np.square(one.transform(template)).sum()
        for one in irreps(group)
    }
    assert coefficients == pytest.approx({key: float(value) for key, value in found.items()})


def test_powers_of_cyclic_groups_are_those_of_the_fourier_transform() -> None:
    group, template = rows("C10")
    spectrum = np.square(np.abs(np.fft.rfft(template))) / 10
    expected = [spectrum[0], spectrum[5], *(2 * spectrum[1:5])]
    assert [float(one) for one in powers(group, template).values()] == pytest.approx(expected)


def test_powers_of_many_functions_at_once() -> None:
    group, _ = rows("D4")
    many = np.random.default_rng(0).standard_normal((3, 2, 8))
    for one in irreps(group):
        found = one.power(group, many)
        assert found.shape == (3, 2)
        assert found[1, 1] == pytest.approx(float(one.power(group, many[1, 1])))


# Order of learning


def best_utility(group: FiniteGroup, irrep: Irrep, template: Floats, length: int) -> float:
    """The maximum of E <f, y> over neurons of unit norm, by gradient ascent from many starts."""
    import torch

    part = torch.tensor(irrep.part(group, template), dtype=torch.float64)
    shown = part[torch.from_numpy(group.quotient)]
    words = torch.cartesian_prod(*[torch.arange(group.order)] * length).reshape(-1, length)
    product = torch.from_numpy(group.products(words.numpy())[:, -1])
    inputs, targets = shown[words], shown[product]
    starts, n = 48, group.order
    theta = torch.randn(starts, length + 1, n, dtype=torch.float64, requires_grad=True)
    best = torch.zeros(starts)
    optimizer = torch.optim.LBFGS([theta], max_iter=600, tolerance_grad=1e-12, tolerance_change=0)

    def value() -> torch.Tensor:
        unit = theta / theta.flatten(1).norm(dim=1)[:, None, None]
        drive = torch.einsum("bkn,skn->sb", inputs, unit[:, :-1])
        found: torch.Tensor = (drive**length * (unit[:, -1] @ targets.T)).mean(dim=1)
        return found

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -value().sum() / scale
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    scale = utility(group, irrep, template, length)
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        best = value()
    return float(best.max())


@pytest.mark.parametrize(
    ("name", "length"), [("C5", 2), ("C6", 2), ("C6", 3), ("D3", 2), ("D3", 3), ("D4", 2)]
)
def test_the_closed_form_of_the_utility_is_the_maximum(name: str, length: int) -> None:
    group, template = rows(name)
    for irrep in irreps(group)[1:]:
        expected = utility(group, irrep, template, length)
        assert best_utility(group, irrep, template, length) == pytest.approx(expected, rel=1e-6)


def test_one_hot_templates_leave_the_highest_frequency_first() -> None:
    group = parse_group("C10")
    template = np.eye(10)[0] - 0.1
    steps = staircase(group, template, 2)
    assert levels(steps) == pytest.approx([0.09, 0.08, 0.0])
    assert steps[0].names == ("1b",)
    assert len(steps[1].names) == 4


def test_one_hot_templates_of_d3_leave_the_sign_first() -> None:
    group = parse_group("D3")
    template = 10 * (np.eye(6)[1] - 1 / 6)
    for length in (2, 3):
        steps = staircase(group, template, length)
        assert levels(steps) == pytest.approx([13.888889, 11.111111, 0.0], abs=1e-5)
        assert steps[0].names == ("1b",)


def test_growth_and_the_rate_that_fits() -> None:
    group = parse_group("C10")
    template = np.eye(10)[0] - 0.1
    first, second = staircase(group, template, 2)
    assert growth_rate(group, first.utility, 2, 1.0) == pytest.approx(0.00730, abs=5e-6)
    assert growth_rate(group, second.utility, 2, 1.0) == pytest.approx(0.00516, abs=5e-6)
    lr = fitting_lr(group, first.utility, 2)
    assert growth_rate(group, first.utility, 2, lr) == pytest.approx(0.05)


def test_quaternionic_power_is_refused() -> None:
    group, template = rows("Q8")
    with pytest.raises(GroupError, match="irrep 4a is quaternionic"):
        staircase(group, template, 2)


# What is no group


def test_a_table_with_another_identity_is_renumbered() -> None:
    order = np.asarray([2, 0, 1])
    back = np.argsort(order)
    table = back[parse_group("C3").table[np.ix_(order, order)]]
    assert table[0].tolist() != [0, 1, 2]
    assert group_of(table.tolist()).table[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ([[0, 1]], "a square"),
        ([[0, 1], [1]], "not a square"),
        ([[0, "x"], [1, 0]], "not a square of whole numbers"),
        ([[0, 1], [1, 2]], r"entry \(1, 1\) is 2; must be 0 to 1"),
        ([[0, 1], [1, 1]], "row 1 has an element twice"),
        ([[0, 1], [0, 1]], "column 0 has an element twice"),
        ([[1, 2, 0], [0, 1, 2], [2, 0, 1]], "no identity"),
        (
            [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]],
            "not associative",
        ),
    ],
)
def test_tables_of_no_group_are_refused(table: list[list[int]], text: str) -> None:
    with pytest.raises(GroupError, match=text):
        group_of(table)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "no group"),
        ("Z5", "no group"),
        ("C0", "out of range"),
        ("S9", "S9 is out of range, S1 to S6"),
        ("H4", "4 is no prime"),
        ("O_h", "O_h has 48 elements: write OxC2"),
        ("C100xC100", "10000 elements; at most 1024"),
    ],
)
def test_names_of_no_group_are_refused(name: str, text: str) -> None:
    with pytest.raises(GroupError, match=text):
        parse_group(name)


def test_too_many_permutations_are_refused() -> None:
    with pytest.raises(GroupError, match="more than 1024"):
        generated("S8", [[1, 2, 3, 4, 5, 6, 7, 0], [1, 0, 2, 3, 4, 5, 6, 7]])


def test_letters_go_on_after_z() -> None:
    assert [letters(n) for n in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]
