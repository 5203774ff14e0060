"""Optimizers and learning-rate schedules that an option file can choose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from basicsr_quant.options.component import Component
from basicsr_quant.registry import Registry

COSINES = ("CosineAnnealingLR", "TrueCosineAnnealingLR")

OPTIMIZERS = Registry("optimizer", {
    "Adam": "torch.optim:Adam",
    "AdamW": "torch.optim:AdamW",
    "SGD": "torch.optim:SGD",
})
SCHEDULERS = Registry("scheduler", {
    "Constant": "basicsr_quant.engine.schedules:Constant",
    "MultiStepLR": "basicsr_quant.engine.schedules:MultiStepLR",
    "MultiStepRestartLR": "basicsr_quant.engine.schedules:MultiStepRestartLR",
    "CosineAnnealingRestartLR": "basicsr_quant.engine.schedules:CosineAnnealingRestartLR",
    "CosineAnnealingLR": "basicsr_quant.engine.schedules:CosineAnnealingLR",
    "TrueCosineAnnealingLR": "basicsr_quant.engine.schedules:CosineAnnealingLR",
})


def stage_optimizer(component: Component, parameters: Iterable[Any], rate: float | None) -> Any:
    """Build the optimizer of one stage.

    Args:
        component: Of the option file.
        parameters: What learns.
        rate: Learning rate in place of the component's, or None.
    """
    return OPTIMIZERS.build(component.type, parameters,
                            **(component.arguments | ({} if rate is None else {"lr": rate})))


def stage_schedule(component: Component | None, length: int) -> Any:
    """Build the schedule of one stage, or return None; a cosine without ``T_max`` ends with the stage.

    Args:
        component: Of the option file; None = none of its own.
        length: Iterations of the stage.
    """
    if component is None:
        return None
    return component.build(SCHEDULERS, **({"T_max": length} if component.type in COSINES else {}))
