"""Averaging a network over the eight rotations and reflections of an image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def self_ensemble(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Average the network's answers to the eight dihedral views of an image, each turned back.

    Args:
        network: (B, C, h, w) -> (B, C, s * h, s * w) for any h and w; called eight times, one after the other.
        image: (B, C, h, w).

    Returns:
        (B, C, s * h, s * w).

    Source: EDSR (Lim et al., 2017), section 3.4.
    """
    total: Tensor | None = None
    for view in range(8):
        answer = _turn_back(network(_turn(image, view)), view)
        total = answer if total is None else total + answer
    assert total is not None
    return total / 8


def _flips(view: int) -> list[int]:
    return [dimension for bit, dimension in ((1, -1), (2, -2)) if view & bit]


def _turn(image: Tensor, view: int) -> Tensor:
    """Flip along the axes named by the two low bits of ``view``, then transpose if its third bit is set."""
    image = image.flip(_flips(view))
    return image.transpose(-1, -2) if view & 4 else image


def _turn_back(image: Tensor, view: int) -> Tensor:
    """Undo :func:`_turn`."""
    return (image.transpose(-1, -2) if view & 4 else image).flip(_flips(view))
