"""The parts of ``nl.ops.fast_write``: what memories share, what one bank does, and back. Floor 1.

Names follow the equations there. ``by_x`` is the gradient of the loss by x. A part computes its
forward pass in ``__init__`` and ``finish``, between which the systems of all parts are inverted at
once; ``keep`` says whether its own backward pass follows, otherwise tensors are written over.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from nl.ops.delta_rule import LOG_DECAY_MIN, chunk_decay
from nl.ops.fast_mlp import Bank, FastWeights, WriteRule, bend, in_force, slope_of

NORM_EPS = 1e-6
"""Added to |a|^2, so that a zero feature vector divides by something."""
FEW_OUTPUTS = 4
"""Up to so many outputs a triangular solve is cheaper than an inverse."""


class Frame:
    """What all memories share: keys (N, K, C), decays, inner products; sums of their gradients."""

    def __init__(self, keys: Tensor, log_decay: Tensor, keep: bool) -> None:
        self.keys, self.log_decay = keys, log_decay
        self.decay = chunk_decay(log_decay)
        self.before, self.after = self.decay.before.unsqueeze(1), self.decay.after.unsqueeze(1)
        self.gram = keys.mT @ keys
        if keep:
            self.by_keys = torch.zeros_like(keys)
            self.by_before = torch.zeros_like(log_decay)
            self.by_after = torch.zeros_like(log_decay)
            self.by_total = torch.zeros_like(self.decay.total)
            self.by_log_ratio = torch.zeros_like(self.gram)
            self.by_gram = torch.zeros_like(self.gram)

    def adjoint(self) -> tuple[Tensor, Tensor]:
        """Gradients of keys and log decay, after all other parts."""
        decay, by_keys = self.decay, self.by_keys
        by_keys.baddbmm_(self.keys, self.by_gram + self.by_gram.mT)
        before = (self.by_before * decay.before).add_(self.by_log_ratio.sum(-1)).double()
        after = (self.by_after * decay.after).double()
        sums = pad(before[..., 1:], (0, 1)) - after - self.by_log_ratio.sum(-2)
        sums[..., -1] += after.sum(-1) + self.by_total * decay.total
        sums = sums.sum(-1, keepdim=True) - sums.cumsum(-1) + sums
        by_log = sums.to(self.log_decay.dtype)
        return by_keys, by_log.masked_fill_(self.log_decay < LOG_DECAY_MIN, 0.0)


class Rates:
    """What memories with the same rates share: the system of their first layers.

    ``spread`` (N, C, K) is diag(s) X^T diag(after) K^T, ``solved`` the same without diag(s).
    """

    def __init__(
        self, frame: Frame, rate: Tensor, slow: Tensor, system: Tensor, keep: bool
    ) -> None:
        self.rate, self.slow, self.system = rate.unsqueeze(1), slow.unsqueeze(-1), system
        self.pull = rate.unsqueeze(-1) * frame.decay.ratio
        self.slow_pull = self.pull
        if slow is not rate:
            self.slow_pull = self.slow * frame.decay.ratio
        torch.mul(self.slow_pull, frame.gram, out=system)
        if keep:
            self.by_rate, self.by_slow = torch.zeros_like(rate), torch.zeros_like(rate)

    def finish(self, frame: Frame, inverse: Tensor) -> None:
        """With the inverse (N, C, C) of the system."""
        self.inverse = inverse
        self.solved = inverse.mT @ (frame.keys * frame.after).mT
        self.spread = self.slow * self.solved
        self.by_spread = torch.zeros_like(self.spread)

    def adjoint(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Gradients of the rates of second and first layers, after all banks."""
        self.by_slow += (self.by_spread * self.solved).sum(-1)
        by_late = (self.inverse @ self.by_spread.mul_(self.slow)).mT
        by_system = (self.solved @ by_late).neg_()
        by_pull = (by_system * frame.gram).mul_(frame.decay.ratio)
        self.by_slow += by_pull.sum(-1)
        frame.by_log_ratio.addcmul_(by_pull, self.slow)
        frame.by_gram.addcmul_(by_system, self.slow_pull)
        frame.by_keys.addcmul_(by_late, frame.after)
        frame.by_after += (by_late * frame.keys).sum(1)
        return self.by_rate, self.by_slow


class BankWrite:
    """One bank on its way to new weights; memories (N, M) are one dimension R where possible."""

    def __init__(self, bank: Bank, frame: Frame, rates: Rates, rule: WriteRule, keep: bool) -> None:
        self.bank, self.frame, self.rates, self.rule = bank, frame, rates, rule
        self.rows, self.memories, self.outputs, self.size = bank.targets.shape
        pairs = zip(bank.initial, bank.added, strict=True)
        weights = FastWeights(*(in_force(b, d) for b, d in pairs))
        self.w2, self.w1 = weights.hidden, weights.output.flatten(0, 1)
        self.d2, self.d1 = self.w2, self.w1
        if rule.anchored:
            self.d2, self.d1 = bank.added.hidden, bank.added.output.flatten(0, 1)
        self.z = self.w2 @ frame.keys
        a, self.slope, self.kept = slope_of(self.z, rule.activation)
        self.a = a.view(len(self.w1), -1, self.size)
        targets = bank.targets.flatten(0, 1)
        if rule.objective == "dot":
            self.error = -targets
        else:
            self.error = torch.baddbmm(targets, self.w1, self.a, beta=-1)
            if bank.skip:
                self._split(self.error).add_(frame.keys.unsqueeze(1))
        self.back = (self.w1.mT @ self.error).view_as(self.slope)
        self.wanted = self.back * self.slope if keep else self.back.mul_(self.slope)
        if math.isfinite(rule.clip):
            if keep:
                self.clipped = self.wanted.abs() > rule.clip
            self.wanted.clamp_(-rule.clip, rule.clip)
        seen = self.z if self.d2 is self.w2 else self.d2 @ frame.keys
        self.wanted.addcmul_(seen, frame.before)
        if rule.output != "decay":
            self._system(keep)

    def _split(self, x: Tensor) -> Tensor:
        """(R, ...) -> (N, M, ...)."""
        return x.unflatten(0, (self.rows, self.memories))

    def _system(self, keep: bool) -> None:
        """The system of the second layers by the delta rule."""
        before = self.frame.before.unsqueeze(1)
        self.shrink = self.a.square().sum(-2, keepdim=True).add_(NORM_EPS).rsqrt_()
        self.x = self.a * self.shrink if keep else self.a.mul_(self.shrink)
        self.seen = self.d1 @ self.x
        if self.rule.output == "delta":
            self.taught = self.error / self.shrink
        else:
            self.taught = self.error * self.shrink if keep else self.error.mul_(self.shrink)
            before = before - 1
        self._split(self.taught).addcmul_(self._split(self.seen), before)
        self.gram = self.x.mT @ self.x

    @property
    def systems(self) -> int:
        """How many systems of this bank need an inverse."""
        few = self.rule.output == "decay" or self.outputs <= FEW_OUTPUTS
        return 0 if few else len(self.w1)

    def system(self, out: Tensor) -> None:
        """L (R, C, C) of the second layers into a given tensor."""
        torch.mul(self._split(self.gram), self.rates.pull.unsqueeze(1), out=self._split(out))

    def finish(self, inverse: Tensor, keep: bool) -> None:
        """Solve the systems; ``inverse`` (R, C, C) where there is one for each."""
        if self.rule.output == "decay":
            return
        rate = self.rates.rate.unsqueeze(1)
        taught = self._split(self.taught)
        right = (taught * rate if keep else taught.mul_(rate)).flatten(0, 1)
        self.inverse = inverse
        if self.systems:
            self.update = right @ inverse.mT
        else:
            self.strict = torch.empty_like(self.gram)
            self.system(self.strict)
            self.update = _solve(self.strict, right.mT, upper=False).mT

    def written(self) -> tuple[Tensor, Tensor]:
        """The D of the bank after the chunk."""
        decay, after = self.frame.decay, self.frame.after.unsqueeze(1)
        hidden = self.d2 * decay.total[:, None, None]
        hidden.baddbmm_(self.wanted, self.rates.spread, alpha=-1)
        output = self._split(self.d1) * decay.total[:, None, None, None]
        if self.rule.output == "decay":
            change, x = self._split(self.error) * (after * self.rates.rate.unsqueeze(1)), self.a
        else:
            change, x = self._split(self.update) * after, self.x
        output.view_as(self.d1).baddbmm_(change.flatten(0, 1), x.mT, alpha=-1)
        return hidden, output

    def adjoint(
        self, by_hidden: Tensor, by_output: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Gradients of initial weights, of what was added, of the targets."""
        frame, bank, rule, keys = self.frame, self.bank, self.rule, self.frame.keys
        by_output = by_output.flatten(0, 1)
        frame.by_total += self._split(by_output * self.d1).sum((1, 2, 3))
        frame.by_total += (by_hidden * self.d2).sum((1, 2))
        by_d1, by_a, by_error = self._output_backward(by_output)
        self.rates.by_spread.baddbmm_(self.wanted.mT, by_hidden, alpha=-1)
        by_wanted = (by_hidden @ self.rates.spread.mT).neg_()
        # seen = D2 k is not kept: <seen, by_seen> = <k, D2^T by_seen>.
        pulled = self.d2.mT @ by_wanted
        frame.by_before += (pulled * keys).sum(1)
        frame.by_keys.addcmul_(pulled, frame.before)
        by_d2 = by_hidden * frame.decay.total[:, None, None]
        by_d2.baddbmm_(by_wanted * frame.before, keys.mT)
        if math.isfinite(rule.clip):
            by_wanted.masked_fill_(self.clipped, 0.0)
        by_back = (by_wanted * self.slope).view_as(self.a)
        by_error.baddbmm_(self.w1, by_back)
        by_w1 = self.error @ by_back.mT
        if rule.objective == "l2":
            by_w1.baddbmm_(by_error, self.a.mT)
            by_a.baddbmm_(self.w1.mT, by_error)
            if bank.skip:
                frame.by_keys += self._split(by_error).sum(1)
        curve = bend(self.z, self.a.view_as(self.z), self.slope, self.kept, rule.activation)
        by_z = by_a.view_as(self.slope).mul_(self.slope)
        by_z.addcmul_(by_wanted.mul_(self.back), curve)
        by_w2 = by_z @ keys.mT
        frame.by_keys.baddbmm_(self.w2.mT, by_z)
        by_w1, by_d1 = self._split(by_w1), self._split(by_d1)
        added = by_d2.add_(by_w2), by_d1.add_(by_w1)
        heads = bank.initial.hidden.shape[0]
        initial = (by_w2, by_w1) if rule.anchored else added
        summed = tuple(g.unflatten(0, (-1, heads)).sum(0) for g in initial)
        return summed, added, self._split(by_error).neg()

    def _output_backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of D1, a and the error through the second layers' rule; all new tensors."""
        frame, rates = self.frame, self.rates
        after, rate = frame.after.unsqueeze(1), rates.rate.unsqueeze(1)
        by_d1 = (self._split(grad) * frame.decay.total[:, None, None, None]).flatten(0, 1)
        grad = -grad
        if self.rule.output == "decay":
            by_step = self._split(grad @ self.a)
            both = (by_step * self._split(self.error)).sum((1, 2))
            frame.by_after += both * rates.rate.squeeze(1)
            rates.by_rate += both * frame.decay.after
            step = after * rate
            by_a = grad.mT @ (self._split(self.error) * step).flatten(0, 1)
            return by_d1, by_a, (by_step * step).flatten(0, 1)
        update = self._split(self.update)
        by_update = self._split(grad @ self.x)
        by_x = grad.mT @ (update * after).flatten(0, 1)
        frame.by_after += (by_update * update).sum((1, 2))
        by_update = by_update.mul_(after).flatten(0, 1)
        if self.systems:
            by_right = by_update @ self.inverse
        else:
            by_right = _solve(self.strict.mT, by_update.mT, upper=True).mT
        self._system_backward(by_right, by_x)
        by_taught = self._split(by_right)
        rates.by_rate += (by_taught * self._split(self.taught)).sum((1, 2))
        by_taught = by_taught * rate
        frame.by_before += (by_taught * self._split(self.seen)).sum((1, 2))
        before = frame.before.unsqueeze(1) - float(self.rule.output == "delta_error")
        by_seen = (by_taught * before).flatten(0, 1)
        by_d1.baddbmm_(by_seen, self.x.mT)
        by_x.baddbmm_(self.d1.mT, by_seen)
        return by_d1, *self._norm_backward(by_x, by_taught.flatten(0, 1))

    def _system_backward(self, by_right: Tensor, by_x: Tensor) -> None:
        """From the right side of U = R X^T to the system (L' = -R'^T U) and its inner products."""
        frame, rates = self.frame, self.rates
        less = by_right.mT @ self.update
        by_pull = self._split(less * self.gram).sum(1).mul_(frame.decay.ratio)
        rates.by_rate -= by_pull.sum(-1)
        frame.by_log_ratio.addcmul_(by_pull, rates.rate.mT, value=-1)
        self._split(less).mul_(rates.pull.unsqueeze(1))
        by_x.baddbmm_(self.x, less + less.mT, alpha=-1)

    def _norm_backward(self, by_x: Tensor, by_taught: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a and the error; |a| is in x = a / |a| and beside the error."""
        scale = (by_taught * self.error).sum(-2, keepdim=True)
        along = (by_x * self.x).sum(-2, keepdim=True)
        by_a = by_x.mul_(self.shrink)
        if self.rule.output == "delta":
            by_a.addcmul_(self.x, scale - along * self.shrink)
            return by_a, by_taught / self.shrink
        by_a.addcmul_(self.x, (scale * self.shrink + along) * self.shrink, value=-1)
        return by_a, by_taught * self.shrink


def _solve(triangle: Tensor, right: Tensor, upper: bool) -> Tensor:
    """(I + L)^-1 B for few columns B, L strictly triangular."""
    return torch.linalg.solve_triangular(triangle, right, upper=upper, unitriangular=True)
