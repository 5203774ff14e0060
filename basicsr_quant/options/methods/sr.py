"""Options of plain super-resolution training (``model_type: SRModel``)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from basicsr_quant.options.component import Component
from basicsr_quant.options.method import Method
from basicsr_quant.options.optimization import OPTIMIZERS
from basicsr_quant.options.types import Options, PathOptions, TrainOptions
from basicsr_quant.registry import ARCHS, LOSSES


class SRPathOptions(PathOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders, and the weights to start from or to test."""

    pretrain_network_g: Annotated[str | None, Meta(description="Weights of network_g.")] = None
    strict_load_g: Annotated[bool, Meta(description="Refuse missing and unexpected keys.")] = True
    param_key_g: Annotated[str | None, Meta(description="Key of the weights in the file; absent: found.")] = None


class SRTrainOptions(TrainOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training of network_g."""

    optim_g: Annotated[Component, Meta(description="Optimizer of the weights.",
                                       extra={"registry": OPTIMIZERS, "supplied": ("params",)})]
    pixel_opt: Annotated[Component, Meta(description="Loss between output and HR.", extra={"registry": LOSSES})]


class SROptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network, trained or tested at full precision."""

    network_g: Annotated[Component, Meta(description="The network.", extra={"registry": ARCHS})]
    path: Annotated[SRPathOptions, Meta(description="Folders and files.")] = SRPathOptions()
    train: Annotated[SRTrainOptions | None, Meta(description="Training; needed to train.")] = None


METHOD = Method(options=SROptions)
