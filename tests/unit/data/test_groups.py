"""Group composition: targets against a loop over shifts, templates against known numbers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.data.groups import GroupCompositionConfig, cyclic_table, fourier_template


def shifts(template: np.ndarray, vectors: torch.Tensor) -> list[int]:
    """Which shift of the template each vector is."""
    rows = [np.roll(template, g).astype(np.float32) for g in range(template.size)]
    return [next(g for g, r in enumerate(rows) if np.array_equal(r, v)) for v in vectors.numpy()]


@pytest.mark.parametrize("targets", ["last", "prefixes"])
@pytest.mark.parametrize(("order", "length"), [(5, 2), (4, 3), (3, 4)])
def test_an_epoch_is_every_word_with_its_product(order: int, length: int, targets: str) -> None:
    space = order**length
    cfg = GroupCompositionConfig(
        order=order,
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
    cfg = GroupCompositionConfig(order=6, length=3, held_out=0.25, batch_size=1)

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


def test_templates() -> None:
    onehot = GroupCompositionConfig(order=10).values()
    assert onehot.var() == pytest.approx(0.09)
    power = 2 * np.abs(np.fft.rfft(onehot)) ** 2 / 10
    assert power[:5] == pytest.approx([0, 0.2, 0.2, 0.2, 0.2])
    known = [0.26571, -1.274499, 0.179874, -0.455594, 0.881799]
    known += [-0.75686, 0.410195, 1.70975, -1.737577, 0.777202]
    values = fourier_template(10, 3, seed=5)
    assert values == pytest.approx(known, abs=1e-5)
    power = 2 * np.abs(np.fft.rfft(values)) ** 2 / 10
    assert power[[1, 3, 4]] == pytest.approx([0.606061, 3.333333, 6.060606], abs=1e-5)


def test_table_is_a_group() -> None:
    table = cyclic_table(7)
    everything = set(range(7))
    assert all(set(row) == everything for row in (*table.tolist(), *table.T.tolist()))
    for a, b, c in itertools.product(range(7), repeat=3):
        assert table[table[a, b], c] == table[a, table[b, c]]
    assert table[0].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": 1}, "order: 1; must be >= 2"),
        ({"length": 1}, "length: 1; must be >= 2"),
        ({"order": 100, "length": 10}, "below 2..62, lower length"),
        ({"frequencies": 3}, "frequencies: 3; must be 1 to order // 2 = 2"),
        ({"held_out": 1.0}, "held_out: 1.0"),
        ({"template": "mnist"}, "template: unknown 'mnist'"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(StreamConfig, {"kind": "group_composition", **fields}, "stream")
    with pytest.raises(ConfigError, match="use train or val"):
        GroupCompositionConfig().build(str(Path("x")), seed=0, rank=0, world=1)
