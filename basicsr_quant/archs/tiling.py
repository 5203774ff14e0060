"""Running a network on an image that is too large for memory, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor


def _spans(size: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Return (start, stop, keep_start, keep_stop) of the tiles along one axis; the kept parts cover it once."""
    spans = []
    start, kept = 0, 0
    while True:
        stop = min(start + tile, size)
        keep_stop = size if stop == size else stop - overlap + overlap // 2
        spans.append((start, stop, kept, keep_stop))
        if stop == size:
            return spans
        start, kept = start + tile - overlap, keep_stop


@torch.no_grad()
def parts(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device | str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Upscale an image in overlapping tiles and yield of every tile the part that is far from its cuts.

    Arguments and errors are those of :func:`tiled`.

    Yields:
        Rows and columns of the result, and what belongs there, (1, C, rows, columns), where the network left it.
    """
    height, width = image.shape[-2:]
    if tile and not 0 <= overlap < tile:
        raise ValueError(f"tile overlap {overlap} is not in [0, {tile}), the tile size")
    rows = _spans(height, tile or height, overlap if tile else 0)
    columns = _spans(width, tile or width, overlap if tile else 0)
    for done, ((top, bottom, keep_top, keep_bottom), (left, right, keep_left, keep_right)) in enumerate(
        product(rows, columns), start=1
    ):
        piece = image[..., top:bottom, left:right]
        result = network(piece.to(device) if device is not None else piece)
        yield (slice(scale * keep_top, scale * keep_bottom), slice(scale * keep_left, scale * keep_right),
               result[..., scale * (keep_top - top):scale * (keep_bottom - top),
                      scale * (keep_left - left):scale * (keep_right - left)])
        if on_progress is not None:
            on_progress(done, len(rows) * len(columns))


def tiled(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device | str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Upscale an image in overlapping tiles, keeping of every tile the part that is far from its cuts.

    Tiles start at multiples of ``tile - overlap``, so if both are multiples of a network's window, all tiles see the
    window grid of the whole image. Tiles at the bottom and right are as small as what is left. The result equals that
    of the whole image if the network's receptive field is no wider than ``overlap``.

    Args:
        network: (1, C, h, w) -> (1, C, scale * h, scale * w), called on one tile at a time, without gradients.
        image: (1, C, h, w); stays where it is, as does the result.
        scale: Factor of the network.
        tile: Side of a tile in input pixels; 0 for the whole image in one piece.
        overlap: Input pixels that neighbouring tiles share; less than ``tile``.
        device: Where tiles go before they enter the network; None leaves them on the image's device.
        on_progress: Called with (tiles done, tiles in all) after every tile.

    Returns:
        (1, C, scale * h, scale * w) on the image's device.

    Raises:
        ValueError: ``overlap`` is negative or not less than ``tile``.
    """
    output: Tensor | None = None
    for rows, columns, part in parts(network, image, scale, tile, overlap, device, on_progress):
        if output is None:
            shape = (*part.shape[:-2], scale * image.shape[-2], scale * image.shape[-1])
            output = torch.empty(shape, dtype=part.dtype, device=image.device)
        output[..., rows, columns] = part
    assert output is not None
    return output
