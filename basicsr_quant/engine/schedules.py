"""Learning-rate schedules as pure functions of the iteration: a resumed run needs no scheduler state.

``factor(step, base)`` is the learning rate over ``base``; ``step`` counts finished optimizer steps, from 0.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence

from basicsr_quant.models.base import LearningRateSchedule


class Constant:
    """The base learning rate throughout."""

    def factor(self, step: int, base: float) -> float:
        """Return 1."""
        return 1.0


class MultiStepLR:
    """Multiply by ``gamma`` at each milestone (iterations)."""

    def __init__(self, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma

    def factor(self, step: int, base: float) -> float:
        """Return gamma to the power of the milestones passed."""
        return self.gamma ** sum(count for milestone, count in self.milestones.items() if milestone <= step)


class MultiStepRestartLR:
    """Multi-step decay that starts over from ``restart_weights[i]`` at ``restarts[i]``."""

    def __init__(self, milestones: Sequence[int], gamma: float = 0.1, restarts: Sequence[int] = (0,),
                 restart_weights: Sequence[float] = (1,)) -> None:
        if len(restarts) != len(restart_weights):
            raise ValueError("restarts and restart_weights differ in length")
        self.milestones = Counter(milestones)
        self.gamma = gamma
        self.restarts = tuple(restarts)
        self.restart_weights = tuple(restart_weights)

    def factor(self, step: int, base: float) -> float:
        """Return the weight of the last restart times gamma to the power of the milestones since."""
        begun = [index for index, restart in enumerate(self.restarts) if restart <= step]
        start, weight = (self.restarts[begun[-1]], self.restart_weights[begun[-1]]) if begun else (0, 1.0)
        return weight * self.gamma ** sum(count for m, count in self.milestones.items() if start < m <= step)


class CosineAnnealingLR:
    """Half a cosine from the base learning rate to ``eta_min`` at iteration ``T_max``."""

    def __init__(self, T_max: int, eta_min: float = 0.0) -> None:
        self.period = T_max
        self.eta_min = eta_min

    def factor(self, step: int, base: float) -> float:
        """Return the height of the half cosine."""
        low = self.eta_min / base
        return low + (1 - low) * (1 + math.cos(math.pi * step / self.period)) / 2


class CosineAnnealingRestartLR:
    """Half cosines one after the other, the i-th over ``periods[i]`` iterations from ``restart_weights[i]``."""

    def __init__(self, periods: Sequence[int], restart_weights: Sequence[float] = (1,), eta_min: float = 0.0) -> None:
        if len(periods) != len(restart_weights):
            raise ValueError("periods and restart_weights differ in length")
        self.periods = tuple(periods)
        self.restart_weights = tuple(restart_weights)
        self.ends = tuple(sum(self.periods[: index + 1]) for index in range(len(self.periods)))
        self.eta_min = eta_min

    def factor(self, step: int, base: float) -> float:
        """Return the height of the present half cosine."""
        index = min(bisect.bisect_left(self.ends, step), len(self.ends) - 1)
        start = self.ends[index] - self.periods[index]
        low = self.eta_min / base
        weight = self.restart_weights[index]
        return low + weight * (1 - low) * (1 + math.cos(math.pi * (step - start) / self.periods[index])) / 2


def learning_rate(schedule: LearningRateSchedule, base: float, iteration: int, warmup: int) -> float:
    """Return the learning rate of an iteration.

    Args:
        schedule: The schedule.
        base: Learning rate of the options.
        iteration: 1-based; the schedule advances once per iteration from the second on.
        warmup: Iterations of linear warm-up; at most 0 for none.
    """
    if iteration < warmup:
        return base * iteration / warmup
    return base * schedule.factor(iteration - 1, base)
