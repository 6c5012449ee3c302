"""Newton-Schulz against singular values, batched, tall and wide; how near to orthogonal it is."""

from __future__ import annotations

import pytest
import torch

from nl.ops.orthogonal import CUBIC, QUINTIC, orthogonalize, orthogonalize_reference


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (2, 3, 4, 6), (3, 6, 1)])
@pytest.mark.parametrize(("coefficients", "steps"), [(QUINTIC, 5), (CUBIC, 3), (CUBIC, 12)])
def test_the_iteration_is_a_polynomial_of_the_singular_values(
    shape: tuple[int, ...], coefficients: tuple[float, float, float], steps: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 7
    got = orthogonalize(x, steps=steps, coefficients=coefficients)
    want = orthogonalize_reference(x, steps=steps, coefficients=coefficients)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (8, 32, 128), (48, 160)])
def test_five_quintic_steps_bring_every_singular_value_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape) * 1e-3))
    assert float(values.min()) > 0.68  # the quintic maps [0.0016, 1] into [0.68, 1.21]
    assert float(values.max()) < 1.21


def test_three_cubic_steps_are_not_orthogonal_and_many_are() -> None:
    torch.manual_seed(2)
    x = torch.randn(64, 64, dtype=torch.float64)
    few = torch.linalg.svdvals(orthogonalize(x, steps=3, coefficients=CUBIC))
    assert float(few.median()) < 0.5
    many = orthogonalize(x, steps=40, coefficients=CUBIC)
    torch.testing.assert_close(
        many @ many.mT, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_zero_stays_zero_and_scale_does_not_matter() -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert orthogonalize(torch.zeros(2, 3, 4)).abs().sum() == 0
    torch.testing.assert_close(orthogonalize(x), orthogonalize(1e4 * x))


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-36])
def test_small_matrices_are_orthogonalised_in_single_precision(scale: float) -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 8, 5)
    torch.testing.assert_close(orthogonalize(x * scale), orthogonalize(x), rtol=1e-4, atol=1e-5)


def test_below_the_smallest_norm_results_shrink() -> None:
    torch.manual_seed(5)
    x = torch.randn(4, 6, dtype=torch.float64)
    x /= x.norm()
    for scale in (1e-3, 1e-7, 1e-12, 1e-30):
        got = orthogonalize(x * scale, smallest=1e-7)
        want = orthogonalize_reference(x * scale, smallest=1e-7)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-20)
        assert (got.norm() > 0.5) == (scale > 1e-8)
