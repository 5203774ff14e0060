"""``val:backend``: a test whose quantized layers compute on the codes, as the packed model will."""

from __future__ import annotations

from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.runtimes.base import runtime
from basicsr_quant.models.base import RestorationModel

TRAINED = "simulate"


def execute(model: RestorationModel) -> None:
    """Freeze the network of a model and let its backend execute it; ``simulate`` leaves it as training has it.

    Args:
        model: Ready to test, with a ``val`` block.
    """
    assert model.options.val is not None
    name = model.options.val.backend
    if name != TRAINED:
        model.adopt(runtime(name, model.device).attach(freeze(model.network)))
