"""One image restored to 8 bits, with one line that names its file for whatever goes wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from basicsr_quant.errors import UserError, is_out_of_memory
from basicsr_quant.io.images import Image, to_image
from basicsr_quant.io.weights import first_not_finite, is_finite
from basicsr_quant.models.base import RestorationModel


def restore_file(model: RestorationModel, image: torch.Tensor, network: nn.Module, sample: int, path: str) -> Image:
    """Enlarge one image; with tiles, no float copy of the whole result is ever made.

    Args:
        model: Its :meth:`~basicsr_quant.models.base.RestorationModel.restore_parts` is used.
        image: (1, 3, h, w) float in [0, 1].
        network: With its weights in inference form.
        sample: Index of the image in its data set, for random draws.
        path: Its file, for the message.

    Returns:
        uint8 RGB (H, W, 3); of tiles, a view of memory in the order that encoding needs, which then copies nothing.

    Raises:
        UserError: The result is not finite, or the memory does not suffice.
    """
    scale = 1 if model.condition_at_target_size else model.options.scale
    try:
        restored: Image = np.empty((scale * image.shape[-2], scale * image.shape[-1], 3), np.uint8)[:, :, ::-1]
        for rows, columns, part in model.restore_parts(image, network, sample):
            if not is_finite(part):
                raise UserError(f"'{path}': {_cause(network)}")
            if rows == columns == slice(None):  # the whole image, which a method may give another size
                return to_image(part)
            restored[rows, columns] = to_image(part)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "work in tiles: val:tile=256 (infer: --tile 256)" if model.knows_tiles else "cut it into parts"
        raise UserError(f"'{path}' ({image.shape[-2]}x{image.shape[-1]}) does not fit into memory; {advice}") from error
    return restored


def _cause(network: nn.Module) -> str:
    """Say why an output is not finite."""
    name = first_not_finite(network.named_parameters())
    if name is not None:
        return f"the network's weight '{name}' holds NaN or infinite values; choose an earlier checkpoint"
    return "the network's output holds NaN or infinite values; its activations overflow"
