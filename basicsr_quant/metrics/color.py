"""The luma channel of 8-bit images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RGB_WEIGHTS = np.array([65.481, 128.553, 24.966])


def rgb_to_y(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the luma Y = 65.481 R + 128.553 G + 24.966 B + 16 (channels / 255), unrounded, in fp32.

    Args:
        image: (H, W, 3), uint8, RGB.

    Returns:
        (H, W), 16 for black to 235 for white.

    Source: ITU-R BT.601. The passage through fp32 at 1/255 of the scale gives BasicSR's values to the last bit.
    """
    channels = image.astype(np.float32) / np.float32(255)
    luma = ((channels @ _RGB_WEIGHTS + 16.0) / 255.0).astype(np.float32)
    return luma * np.float32(255)


def bgr_to_y(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the luma of a BGR image (H, W, 3); see :func:`rgb_to_y`."""
    return rgb_to_y(image[..., ::-1])
