"""Alternating gradient flows: when each irreducible representation is learned. Floor 0.

Neurons are dormant, unit vectors theta_i = (u_1, ..., u_k, w) with a norm n_i, until they are large
enough to matter. While dormant each one climbs its utility with what is left of the target, y_S,

    U(theta) = E <w, y_S> (sum_t <u_t, x_{g_t}>)^k = k! / N^k sum_p (c_1 * ... * c_k)(p) e(p)

with c_t(g) = <u_t, L_g x>, e(g) = <w, L_g x_S>, * the convolution on the group: of the power only
the product of all k places correlates with a target of zero mean. No words are enumerated. One step
of SGD whose rate is lr n_i^exponent changes norm and direction by

    r_i = lr (2 / N) (k + 1) U n_i^a        n_i <- (1 + r_i) n_i        a = exponent + k - 1
    theta_i <- theta_i + lr (2 / N) n_i^a (grad U - (k + 1) U theta_i) / (1 + r_i)

of which many are taken at once, as many as change nothing by more than ``change``. A representation
escapes when its share of the output, sum_i n_i^(k+1) U_rho(theta_i), would reach its power: since
what is learned slows its own growth, half of the target's amplitude is there then. Fitting what
has escaped is not simulated: its outcome, the whole representation learned by the neurons that
carried it, is taken, and the others go on with the rest. Where none of the others points to the
rest, one of them has to turn first: such an escape hangs on single neurons, and its time is rough.
Source: arXiv 2602.03655.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nl.core.groups.finite import FiniteGroup, Floats
from nl.core.groups.irreps import irreps
from nl.core.groups.staircase import SMALLEST_SHARE

MOST_TURNS = 20_000
"""Evaluations of all utilities before a simulation ends by itself."""
LATE = 0.01
"""A neuron with less than this share of the largest one's output stays dormant."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Escape:
    """One representation is learned.

    Attributes:
        name: of the irrep.
        step: of the optimizer, at which half of its amplitude is there.
        before: mean squared error until then.
        after: mean squared error from then on.
    """

    name: str
    step: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the optimizer steps.

    Attributes:
        lr: learning rate.
        exponent: of a neuron's norm in its rate; 1 - k makes growth independent of size, 0 is SGD.
        horizon: steps after which the simulation ends.
        change: largest relative change of a norm or direction that is taken at once.
    """

    lr: float
    exponent: float
    horizon: float = math.inf
    change: float = 0.04


class Dormant:
    """Neurons that do not matter yet.

    Args:
        group: N elements.
        template: (N,) of zero mean.
        reads: (H, k, N) what each neuron asks of each place.
        writes: (H, N) what it adds to the output.
        scale: factor of the output.
    """

    def __init__(
        self,
        group: FiniteGroup,
        template: Floats,
        reads: Floats,
        writes: Floats,
        scale: float = 1.0,
    ) -> None:
        theta = np.concatenate([reads, writes[:, None]], axis=1).astype(np.float64)
        norms = np.sqrt(np.square(theta).sum(axis=(1, 2)))
        kept = norms > 0
        self.group, self.length = group, reads.shape[1]
        self.theta, self.log_norm = theta[kept] / norms[kept, None, None], np.log(norms[kept])
        self.shown = group.shown(template)
        k = self.length
        self.front = scale * math.factorial(k) / float(group.order) ** k

    def utilities(self, parts: Floats) -> tuple[Floats, Floats]:
        """U of every neuron with each part of the target (S, H), and the gradient of their sum.

        Args:
            parts: (S, N) components of the template.

        Returns:
            (S, H) and (H, k + 1, N).
        """
        group, k = self.group, self.length
        answers = np.einsum("htn,gn->htg", self.theta[:, :k], self.shown)
        moved = [answers[:, t][:, group.quotient] for t in range(1, k)]
        prefixes = [answers[:, 0]]
        for one in moved:
            prefixes.append(np.matmul(prefixes[-1][:, None], one)[:, 0])
        # (S, N, N): L_p of each part.
        targets = parts[:, group.quotient]
        toward = self.front * np.einsum("hp,spn->shn", prefixes[-1], targets)
        found = np.einsum("shn,hn->sh", toward, self.theta[:, k])
        slope = self.front * self.theta[:, k] @ targets.sum(axis=0).T
        grad = np.empty_like(self.theta)
        grad[:, k] = toward.sum(axis=0)
        for t in range(k - 1, 0, -1):
            asked = np.matmul(prefixes[t - 1][:, None], slope[:, group.table])[:, 0]
            grad[:, t] = asked @ self.shown
            slope = np.matmul(moved[t - 1], slope[:, :, None])[:, :, 0]
        grad[:, 0] = slope @ self.shown
        return found, grad

    def keep(self, chosen: Mask) -> None:
        """Forget the neurons that are not chosen."""
        self.theta, self.log_norm = self.theta[chosen], self.log_norm[chosen]


def simulate(group: FiniteGroup, template: Floats, dormant: Dormant, steps: Steps) -> list[Escape]:
    """The irreps that are learned within the horizon, in order, and when.

    Args:
        group: N elements.
        template: (N,) of zero mean.
        dormant: neurons as they are initialised; they are used up.
        steps: how the optimizer steps.
    """
    total = float(np.square(template).sum())
    found = [(one, float(one.power(group, template))) for one in irreps(group)]
    left = {
        one.name: (one.part(group, template), p) for one, p in found if p > SMALLEST_SHARE * total
    }
    escapes: list[Escape] = []
    step, loss = 0.0, sum(power for _, power in left.values()) / group.order
    for _ in range(MOST_TURNS):
        if not left or not len(dormant.theta) or step >= steps.horizon:
            break
        names = list(left)
        each, grad = dormant.utilities(np.stack([left[name][0] for name in names]))
        shares = _log_share(each, dormant) - np.log([left[name][1] for name in names])
        over = int(np.argmax(shares))
        if shares[over] >= 0:
            name, power = names[over], left.pop(names[over])[1]
            after = max(0.0, loss - power / group.order)
            escapes.append(Escape(name, step, loss, after))
            loss = after
            dormant.keep(_still_dormant(each, over, dormant))
            continue
        step += _advance(dormant, each.sum(axis=0), grad, steps, step, float(-shares[over]))
    return escapes


def _still_dormant(each: Floats, over: int, dormant: Dormant) -> Mask:
    """Neurons that did not carry a representation: they point elsewhere, or were late."""
    held = np.exp((dormant.length + 1) * (dormant.log_norm - dormant.log_norm.max())) * each[over]
    elsewhere = each[over] <= 0.5 * np.maximum(each.sum(axis=0), 0)
    return np.asarray(elsewhere | (held < LATE * held.max()))


def _log_share(each: Floats, dormant: Dormant) -> Floats:
    """log sum_i n_i^(k+1) U_rho(theta_i) of every part (S,); -inf where the sum is not positive."""
    logs = (dormant.length + 1) * dormant.log_norm
    top = float(logs.max())
    sums = each @ np.exp(logs - top)
    return np.asarray(np.where(sums > 0, np.log(np.maximum(sums, 1e-300)), -np.inf) + top)


def _advance(
    dormant: Dormant, utility: Floats, grad: Floats, steps: Steps, step: float, missing: float
) -> float:
    """Take as many steps as change little, and no more than ``missing`` e-folds need; how many."""
    k = dormant.length
    pace = steps.lr * 2 / dormant.group.order
    pace = pace * np.exp((steps.exponent + k - 1) * dormant.log_norm)
    growth = np.maximum((k + 1) * pace * utility, -0.5)
    slope = grad - (k + 1) * utility[:, None, None] * dormant.theta
    turn = pace[:, None, None] * slope / (1 + growth)[:, None, None]
    fastest = max(float(np.abs(growth).max()), float(np.sqrt(np.square(turn).sum((1, 2)).max())))
    count = min(steps.change / max(fastest, 1e-300), steps.horizon - step)
    grown = float(np.log1p(growth).max())
    if grown > 0 and missing < (k + 1) * grown * count:
        count = max(missing / ((k + 1) * grown), 1e-9)
    dormant.log_norm = dormant.log_norm + count * np.log1p(growth)
    moved = dormant.theta + count * turn
    dormant.theta = moved / np.sqrt(np.square(moved).sum((1, 2)))[:, None, None]
    return count
