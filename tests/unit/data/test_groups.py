"""Group composition: targets against a loop over shifts, templates against known numbers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.core.groups import irreps, parse_group
from nl.core.groups.irreps import powers
from nl.core.groups.staircase import levels, staircase
from nl.data.group_templates import bumps, of_powers, planar
from nl.data.groups import GroupCompositionConfig


def shifts(template: np.ndarray, vectors: torch.Tensor) -> list[int]:
    """Which shift of the template each vector is."""
    rows = [np.roll(template, g).astype(np.float32) for g in range(template.size)]
    return [next(g for g, r in enumerate(rows) if np.array_equal(r, v)) for v in vectors.numpy()]


@pytest.mark.parametrize("targets", ["last", "prefixes"])
@pytest.mark.parametrize(("order", "length"), [(5, 2), (4, 3), (3, 4)])
def test_an_epoch_is_every_word_with_its_product(order: int, length: int, targets: str) -> None:
    space = order**length
    cfg = GroupCompositionConfig(
        group_name=f"C{order}",
        length=length,
        template="fourier" if order == 5 else "onehot",
        targets=targets,  # type: ignore[arg-type]
        batch_size=space,
    )
    batch = next(iter(cfg.build("train", seed=0, rank=0, world=1)))
    template = cfg.values()
    assert batch.inputs.shape == (space, length, order)
    assert batch.weight == batch.targets.numel()
    words = set()
    for word, target in zip(batch.inputs, batch.targets, strict=True):
        elements = shifts(template, word)
        words.add(tuple(elements))
        sums = [sum(elements[: i + 1]) % order for i in range(1, length)]
        got = shifts(template, target[None] if targets == "last" else target)
        assert got == (sums[-1:] if targets == "last" else sums)
    assert words == set(itertools.product(range(order), repeat=length))


def test_words_kept_for_validation_are_never_trained_on() -> None:
    cfg = GroupCompositionConfig(group_name="C6", length=3, held_out=0.25, batch_size=1)

    def word(inputs: torch.Tensor) -> tuple[int, ...]:
        return tuple(shifts(cfg.values(), inputs[0]))

    val = [word(b.inputs) for b in cfg.build("val", seed=3, rank=0, world=1)]
    stream = cfg.build("train", seed=3, rank=0, world=1)
    train = [word(b.inputs) for b in itertools.islice(stream, 2 * 162)]
    assert len(val) == len(set(val)) == 54
    assert len(set(train)) == 162
    assert not set(val) & set(train)
    other = [word(b.inputs) for b in cfg.build("val", seed=4, rank=0, world=1)]
    assert set(val) != set(other)


def on(group: str, **fields: Any) -> tuple[np.ndarray, dict[str, float], list[float]]:
    """Template, its powers and its plateaus for two elements."""
    cfg = GroupCompositionConfig(group_name=group, **fields)
    found, values = cfg.finite_group(), cfg.values()
    power = {name: float(one) for name, one in powers(found, values).items() if one > 1e-9}
    return values, power, levels(staircase(found, values, 2))


def test_one_hot_templates() -> None:
    values, power, _ = on("C10")
    assert values.var() == pytest.approx(0.09)
    assert power == pytest.approx({"1b": 0.1, "2a": 0.2, "2b": 0.2, "2c": 0.2, "2d": 0.2})
    values, power, _ = on("D3", template_at=1, template_scale=10)
    assert power == pytest.approx({"1b": 16.666667, "2a": 66.666667})


def test_fourier_templates() -> None:
    known = [0.26571, -1.274499, 0.179874, -0.455594, 0.881799]
    known += [-0.75686, 0.410195, 1.70975, -1.737577, 0.777202]
    values, power, steps = on("C10", template="fourier", frequencies=3, template_seed=5)
    assert values == pytest.approx(known, abs=1e-5)
    assert power == pytest.approx({"2a": 0.606061, "2c": 3.333333, "2d": 6.060606}, abs=1e-5)
    assert steps == pytest.approx([1, 0.393939, 0.060606, 0], abs=1e-5)
    _, power, steps = on("C11", template="fourier", frequencies=3)
    assert sorted(power.values()) == pytest.approx([0.666667, 3.666667, 6.666667], abs=1e-5)
    assert steps == pytest.approx([1, 0.393939, 0.060606, 0], abs=1e-5)


def test_planar_templates() -> None:
    values, power, steps = on("C3xC3", template="fourier", frequencies=4)
    known = [0.162443, 0.236432, -0.695637, -1.805147, 0.442125, -0.545149]
    assert values == pytest.approx([*known, -0.222315, 2.132154, 0.295094], abs=1e-5)
    assert sorted(power.values()) == pytest.approx(
        [0.409091, 1.636364, 2.863636, 4.090909], abs=1e-5
    )
    assert steps == pytest.approx([1, 0.545455, 0.227273, 0.045455, 0], abs=1e-5)
    two = planar((3, 3), 2, (100, 50), 0)
    known = [-0.85413, 1.0334, -0.48301, -1.40391, 0.48362, -1.03279, -0.00061, 1.88692, 0.37051]
    assert two == pytest.approx(known, abs=1e-5)
    _, power, steps = on("C4xC4", template="fourier", frequencies=1, template_seed=10)
    assert list(power.values()) == pytest.approx([16])
    assert steps == pytest.approx([1, 0])
    _, _, steps = on("C10xC10", template="fourier", frequencies=10, template_seed=5)
    expected = [1, 0.818182, 0.654545, 0.509091, 0.381818, 0.272727, 0.181818, 0.109091, 0.054545]
    assert steps == pytest.approx([*expected, 0.018182, 0], abs=1e-5)


def test_bells() -> None:
    group = parse_group("C10")
    spectrum = np.square(np.abs(np.fft.rfft(bumps(10, 3, 5)))) / 10
    spectrum[1:5] *= 2
    known = [0, 0.999111, 7.949779, 0.950017, 0.096583, 0.00451]
    assert spectrum == pytest.approx(known, abs=1e-5)
    assert sum(powers(group, bumps(10, 3, 5)).values()) == pytest.approx(10)


def test_templates_of_given_powers() -> None:
    values, power, steps = on("D3", template="powers", powers={"1b": 30, "2a": 3000})
    expected = [46.957428, -20.124612, -20.124612, -2.236068, -2.236068, -2.236068]
    assert values == pytest.approx(expected, abs=1e-5)
    assert power == pytest.approx({"1b": 30, "2a": 3000})
    assert steps == pytest.approx([505, 5, 0])
    values, _, steps = on("D3", template="powers", powers={"1b": 2000, "2a": 400})
    assert values[0] == pytest.approx(34.58735, abs=1e-5)
    assert steps == pytest.approx([400, 66.666667, 0])
    _, _, steps = on("O", template="powers", powers={"2a": 300, "1b": 500})
    assert steps == pytest.approx([33.333333, 12.5, 0], abs=1e-5)
    for name in ("C6", "H3"):  # irreps of complex type
        group = parse_group(name)
        given = {one.name: 1.0 + n for n, one in enumerate(irreps(group)[1:])}
        found = {key: float(one) for key, one in powers(group, of_powers(group, given)).items()}
        assert found.pop("1a") == pytest.approx(0, abs=1e-12)
        assert found == pytest.approx(given)


def test_a_template_and_a_group_of_files(tmp_path: Path) -> None:
    table = tmp_path / "klein.json"
    table.write_text(json.dumps(parse_group("C2xC2").table.tolist()))
    numbers = tmp_path / "x.json"
    numbers.write_text("[1, 2, 3, 6]")
    cfg = GroupCompositionConfig(group_name=str(table), template="file", template_file=str(numbers))
    assert cfg.values().tolist() == [-2, -1, 0, 3]
    batch = next(iter(cfg.build("val", seed=0, rank=0, world=1)))
    assert batch.inputs.shape == (25, 2, 4)
    np.save(tmp_path / "x.npy", np.ones(3))
    for name, text in (
        ("x.npy", "holds 3 numbers; 4 finite ones"),
        ("y.json", "cannot be read"),
        ("klein.json", "holds 16 numbers"),
    ):
        with pytest.raises(ConfigError, match=text):
            GroupCompositionConfig(
                group_name=str(table), template="file", template_file=str(tmp_path / name)
            )


@pytest.mark.parametrize("name", ["D3", "A4"])
def test_targets_are_products_from_left_to_right(name: str) -> None:
    """Not the other way round: half of the words of two reflections and turns differ."""
    cfg = GroupCompositionConfig(group_name=name, length=3, targets="prefixes", batch_size=40)
    group, template = cfg.finite_group(), cfg.values()
    shown = [group.shown(template)[g].astype(np.float32) for g in range(group.order)]
    batch = next(iter(cfg.build("val", seed=0, rank=0, world=1)))
    differs = 0
    for word, target in zip(batch.inputs.numpy(), batch.targets.numpy(), strict=True):
        a, b, c = (next(g for g, r in enumerate(shown) if np.array_equal(r, v)) for v in word)
        ab = group.table[a, b]
        assert np.array_equal(target[0], shown[ab])
        assert np.array_equal(target[1], shown[group.table[ab, c]])
        differs += int(group.table[b, a] != ab)
    assert differs > 0


def test_an_online_stream_draws_words_independently_and_resumes() -> None:
    cfg = GroupCompositionConfig(group_name="C4", length=3, sampling="fresh", batch_size=64)
    stream = cfg.build("train", seed=1, rank=0, world=1)
    batches = [b.inputs for b in itertools.islice(stream, 50)]
    words = [tuple(np.argmax(w, axis=1)) for batch in batches for w in batch.numpy()]
    counts = np.asarray([words.count(w) for w in itertools.product(range(4), repeat=3)])
    # 3200 draws of 64 words: a chi-squared of 63 degrees of freedom, far from an even 50 each
    chi = float(np.square(counts - 50).sum() / 50)
    assert 25 < chi < 120
    again = cfg.build("train", seed=1, rank=0, world=1)
    again.load_state_dict({**stream.state_dict(), "row": 64})
    assert torch.equal(next(iter(again)).inputs, batches[1])


def test_validation_on_a_fixed_choice_of_words() -> None:
    cfg = GroupCompositionConfig(group_name="C5", length=4, val_words=30, batch_size=30)
    (batch,) = cfg.build("val", seed=0, rank=0, world=1)
    (again,) = cfg.build("val", seed=0, rank=0, world=1)
    assert torch.equal(batch.inputs, again.inputs)
    assert len(batch.inputs) == 30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_name": "C1"}, "group_name: C1; one element has nothing to compose"),
        ({"group_name": "O_h"}, "O_h has 48 elements"),
        ({"group_name": "none.json"}, "cannot be read"),
        ({"group_name": "D3", "template": "fourier"}, "template: fourier; for C_n and C_p x C_q"),
        ({"group_name": "C2xC2", "template": "gaussian"}, "template: gaussian; for C_n, not C2xC2"),
        ({"template": "powers", "powers": {"9z": 1}}, "powers.9z: no irrep of C5"),
        ({"template": "powers"}, "powers: all zero"),
        ({"frequencies": 2}, "frequencies: 2; template=onehot has no use for it"),
        ({"template": "fourier", "powers": {"1b": 1}}, "powers: .* has no use for it, only powers"),
        ({"template": "file"}, "template_file: missing"),
        ({"template_at": 5}, "template_at: 5; must be 0 to 4"),
        ({"length": 1}, "length: 1; must be >= 2"),
        ({"group_name": "C100", "length": 10}, "below 2..62, lower length"),
        ({"template": "fourier", "frequencies": 3}, "frequencies: 3; must be 1 to order // 2 = 2"),
        ({"held_out": 1.0}, "held_out: 1.0"),
        ({"template": "mnist"}, "template: unknown 'mnist'"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(StreamConfig, {"kind": "group_composition", **fields}, "stream")
    with pytest.raises(ConfigError, match="use train or val"):
        GroupCompositionConfig().build(str(Path("x")), seed=0, rank=0, world=1)
