"""Names of ergodic sources: ranges, relabellings, files; what means nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nl.core.ergodic import SourceError, entropy_rate, expand, parse
from nl.core.ergodic.specs import permutation

FIRST = parse("mess3:0.05:0.85")


def test_names(tmp_path: Path) -> None:
    assert expand(["coin:0.5", "chain:3:1:0.5:2..4"]) == (
        "coin:0.5",
        "chain:3:1:0.5:2",
        "chain:3:1:0.5:3",
        "chain:3:1:0.5:4",
    )
    assert expand(["mess3:r0..3"]) == expand(["mess3:r0..7"])[:4]
    again = parse("chain:3:1:0.5:2")
    assert np.array_equal(again.matrices, parse("chain:3:1:0.5:2").matrices)
    moved = parse("chain:3:1:0.5:2@p1@+2")
    assert moved.alphabet == 5
    assert np.array_equal(moved.matrices[permutation(3, 1) + 2], again.matrices)
    assert entropy_rate(moved) == pytest.approx(entropy_rate(again))
    assert len({tuple(permutation(4, k)) for k in range(24)}) == 24
    assert permutation(4, 0).tolist() == [0, 1, 2, 3]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(FIRST.matrices.tolist()))
    assert np.array_equal(parse(f"file:{path}").matrices, FIRST.matrices)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mess4:0.1", "mess4:0.1: no source of that name; known: mess3:x:a"),
        ("coin", "coin: write coin:p or coin:r<seed>"),
        ("coin:1.5", "coin p: 1.5; must be 0 to 1"),
        ("coin:nan", "coin p: nan"),
        ("mess3:0.05:0.85:1", "write mess3:x:a"),
        ("mess3:0:0.85", "reducible"),
        ("chain:3:1:0:0", "chain alpha: 0; must be > 0"),
        ("chain:1:1:1:0", "chain V: 1; must be >= 2"),
        ("chain:10:5:1:0", "at most 4096"),
        ("coin:0.5@q", "@q is no relabelling"),
        ("coin:0.5@p2", "2 symbols have 2 permutations, 0 to 1"),
        ("file:nowhere.json", "cannot be read"),
    ],
)
def test_names_that_mean_nothing(name: str, text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(name)
    assert text in str(caught.value)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="go up"):
        expand(["coin:r3..1"])
    with pytest.raises(SourceError, match="two ranges"):
        expand(["chain:3:1..2:0.5:0..1"])
    with pytest.raises(SourceError, match="named twice"):
        expand(["z1r", "z1r"])
    path = tmp_path / "bad.json"
    path.write_text("{}")
    with pytest.raises(SourceError, match="no list of V matrices"):
        parse(f"file:{path}")
