"""A stage of a training whose stages the option file lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from basicsr_quant.options.component import Component
from basicsr_quant.options.method import Problem
from basicsr_quant.options.optimization import SCHEDULERS
from basicsr_quant.options.types import PositiveInteger


class StageOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of a training."""

    iterations: Annotated[PositiveInteger, Meta(description="Optimizer steps.")]
    lr: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(
        description="Learning rate in place of the optimizer's.")] = None
    scheduler: Annotated[Component | None, Meta(
        description="In place of train:scheduler; CosineAnnealingLR without T_max ends with the stage.",
        extra={"registry": SCHEDULERS})] = None


def stage_problems(stages: Sequence[StageOptions], total: int, names: str) -> list[Problem]:
    """Return what is wrong if there are no stages, or if they do not add up to ``train:total_iter``.

    Args:
        stages: Of the training.
        total: ``train:total_iter``.
        names: Which stages there can be, for the message.
    """
    if not stages:
        return [(("train", "stages"), f"names no stage; add {names}, or leave it out")]
    length = sum(stage.iterations for stage in stages)
    if length == total:
        return []
    return [(("train", "total_iter"), f"is {total}, but the stages have {length} iterations; make it {length}")]
