"""Gradients that add up over an epoch, as in code that forgets to reset them."""

from __future__ import annotations

from typing import Any

import torch

_SUM = "gradient_sum"


class EpochGradients:
    """Give each step of an optimizer the sum of all gradients since the epoch began.

    The sums are part of the optimizer's state, and the number of its steps tells where in the epoch it is: resuming
    needs nothing else. The optimizer must count its steps, as Adam does.

    Source: the released PassionSR; specification 9, trap 3.

    Args:
        optimizer: Its ``step`` is wrapped by hooks.
        epoch: Steps of an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        self._epoch = epoch
        optimizer.register_step_pre_hook(self._add)
        optimizer.register_step_post_hook(self._remember)

    def _add(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in _learning(optimizer):
            state = optimizer.state.get(parameter, {})
            if _SUM in state and int(state["step"]) % self._epoch:
                parameter.grad.add_(state[_SUM])

    def _remember(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in _learning(optimizer):
            optimizer.state[parameter][_SUM] = parameter.grad.clone()


def _learning(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]
            if parameter.grad is not None]
