"""Names of optimizers and learning-rate schedules that an option file can choose."""

from __future__ import annotations

from basicsr_quant.registry import Registry

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
