"""Nearly orthogonal matrices by Newton-Schulz iteration, batched. Floor 1.

X_0 = M / ||M||_F,  X <- a X + b (X X^T) X + c (X X^T)^2 X: every singular value s goes through
p(s) = a s + b s^3 + c s^5, its vectors stay. The quintic of Muon (Jordan et al. 2024) lifts small
singular values fast and ends in a band around 1; the cubic of M3 as printed in Nested Learning
(p = (3 s - s^3) / 2) converges to 1 exactly, but three steps leave small values small.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.775, 2.0315)
"""Coefficients (a, b, c) of Muon."""
CUBIC = (1.5, -0.5, 0.0)
"""The classical Newton-Schulz step."""


def orthogonalize(
    matrices: Tensor,
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    smallest: float = 0.0,
) -> Tensor:
    """The polar factor U V^T of each matrix, approximately, in the dtype of the input.

    Args:
        matrices: (..., M, N), any batch shape.
        steps: iterations; 5 of the quintic take s / ||M||_F in [0.0016, 1] to [0.68, 1.21].
        coefficients: (a, b, c) of the step.
        smallest: matrices with a smaller norm are divided by this instead, and end below 1.

    Returns:
        (..., M, N); a zero matrix stays zero.
    """
    a, b, c = coefficients
    # Squares of small numbers are zero: the largest entry becomes 1 first.
    largest = matrices.detach().abs().amax((-2, -1), keepdim=True)
    largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
    x = matrices / largest
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / norm.clamp(min=1.0)
    if smallest:
        x = x * (norm * (largest / smallest)).clamp(max=1.0)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        change = b * gram + c * (gram @ gram) if c else b * gram
        x = a * x + change @ x
    return x.mT if tall else x


def orthogonalize_reference(
    matrices: Tensor,
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    smallest: float = 0.0,
) -> Tensor:
    """The same through singular values: U p(...p(s / ||s||)) V^T, one matrix after the other."""
    a, b, c = coefficients
    out = torch.zeros_like(matrices).reshape(-1, *matrices.shape[-2:])
    for i, matrix in enumerate(matrices.reshape(-1, *matrices.shape[-2:])):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        norm = s.double().square().sum().sqrt()
        s = s / norm.clamp(min=max(smallest, torch.finfo(s.dtype).tiny)).to(s.dtype)
        for _ in range(steps):
            s = a * s + b * s**3 + c * s**5
        out[i] = u @ torch.diag(s) @ vh
    return out.reshape(matrices.shape)
