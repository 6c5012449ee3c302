"""Judges each step before it is committed: finite numbers, no loss spike, within limits. Floor 5.

Robust spread: 1.4826 times the median absolute deviation is the standard deviation of a normal
distribution (Rousseeuw and Croux, 1993).
"""

from __future__ import annotations

from collections import Counter
from statistics import median

from nl.config.run import TrainConfig
from nl.core.logs import get_logger
from nl.train.state import TrainState

log = get_logger(__name__)

KEPT_STEPS = 1000


class NonFiniteError(RuntimeError):
    """Loss, gradient norm or State stopped being finite and the policy says to end."""


class SpikeError(RuntimeError):
    """Loss spikes used up the limits of ``train.nonfinite``."""


def is_outlier(losses: list[float], loss: float, *, multiplier: float, z: float) -> bool:
    """Whether ``loss`` is over ``multiplier`` medians and ``z`` robust deviations above them.

    >>> is_outlier([1.0, 1.1, 0.9, 1.0], 10.0, multiplier=2, z=6)
    True
    """
    centre = median(losses)
    spread = 1.4826 * median(abs(x - centre) for x in losses)
    return loss > multiplier * abs(centre) and loss - centre > z * spread


class Guard:
    """Counts what went wrong and says what to do about it, by ``train.nonfinite`` and ``spike``.

    What has to survive a resume is in TrainState (``losses``, ``outliers``, ``troubles``).
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.seen: Counter[str] = Counter()
        self._in_a_row = 0
        self._rolled_back = 0
        self._stuck_before = 0

    @property
    def patient(self) -> bool:
        """Whether a verdict may be read some steps later: nothing is left out, only ended."""
        return self.config.nonfinite.policy == "abort" and self.config.spike.policy in (
            "off",
            "log",
        )

    def judge(self, bad: bool, loss: float, step: int, state: TrainState) -> tuple[str, str]:
        """What to do with ``step`` (being attempted, or committed and read late).

        Args:
            bad: a number is not finite, on any rank.
            loss: mean over the scored targets of all ranks.
            step: its number.
            state: of the run; the loss enters its window unless the step is refused.

        Returns:
            (commit, skip, rollback or abort; why, empty for commit).
        """
        if bad:
            return self._refuse(self.config.nonfinite.policy, "non-finite numbers", step, state)
        if self._spike(loss, step, state):
            policy = self.config.spike.policy
            if policy in ("skip", "rollback"):
                return self._refuse(policy, "loss spike", step, state)
        if step >= self._stuck_before:  # a rollback repeats steps that were fine
            self._in_a_row = self._rolled_back = 0
        if self.config.spike.policy != "off":
            state.losses = [*state.losses, loss][-self.config.spike.window :]
        return "commit", ""

    def _spike(self, loss: float, step: int, state: TrainState) -> bool:
        """Whether this step belongs to a spike: an outlier after enough outliers in a row."""
        config = self.config.spike
        if config.policy == "off" or len(state.losses) < config.window // 5:
            return False
        if not is_outlier(state.losses, loss, multiplier=config.multiplier, z=config.z):
            state.outliers = 0
            return False
        state.outliers += 1
        if state.outliers == config.patience:
            self.seen["spikes"] += 1
            log.warning(
                "loss spike: %.4g at step %d, %d outliers in a row over a median of %.4g "
                "(train.spike.policy=%s)",
                loss,
                step,
                state.outliers,
                median(state.losses),
                config.policy,
            )
        return state.outliers >= config.patience

    def _refuse(self, policy: str, what: str, step: int, state: TrainState) -> tuple[str, str]:
        limits = self.config.nonfinite
        self._in_a_row += 1
        self._stuck_before = max(self._stuck_before, step)
        recent = [s for s in state.troubles if s > step - KEPT_STEPS]
        state.troubles = [*recent, step][-limits.max_per_1000 - 1 :]
        why = f"{what} at step {step}"
        if policy == "abort":
            return "abort", why
        over = ""
        if self._in_a_row > limits.max_consecutive:
            over = f"{why}, {self._in_a_row} times in a row"
        elif len(state.troubles) > limits.max_per_1000:
            over = f"{why}, {len(state.troubles)} bad steps in {KEPT_STEPS}"
        if not over:
            return policy, why
        willing = policy == "skip" and limits.after_limit == "rollback"
        if willing and self._rolled_back < limits.max_consecutive:
            self._in_a_row, state.troubles = 0, []
            self._rolled_back += 1
            return "rollback", over
        return "abort", over

    def ending(self, why: str) -> RuntimeError:
        """The error of a run that ends for ``why``."""
        config = self.config.nonfinite
        limits = f"max_consecutive={config.max_consecutive}, max_per_1000={config.max_per_1000}"
        if why.startswith("loss spike"):
            return SpikeError(
                f"{why} (train.spike.policy={self.config.spike.policy}, train.nonfinite: {limits})."
                " The last checkpoint is intact: lower optim.lr, or resume with another policy."
            )
        return NonFiniteError(
            f"non-finite loss, gradient norm or State: {why} (train.nonfinite.policy="
            f"{config.policy}, {limits}). The last checkpoint is intact: lower optim.lr, set "
            "train.max_norm, or resume with another policy."
        )
