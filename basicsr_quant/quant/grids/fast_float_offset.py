"""The grid ``float_offset`` in single passes over large float32 tensors on the CPU, where numba is installed.

Rounded values and input gradients are those of plain torch to the bit, bounds' gradients up to the order of the sums.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from basicsr_quant.quant import fast

SMALLEST = 2**10
PIECE = 2**17


def _kernels() -> ModuleType:
    return fast.kernels("basicsr_quant.quant.grids.fast_float_offset_kernels")


def usable(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> bool:
    """Return whether the fast path takes a tensor: float32 on the CPU, large, one pair of bounds in all or per row.

    Small tensors gain nothing and would only cost the import. Tracers and compilers see torch's operations.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return False
    return (x.device.type == "cpu" and x.numel() >= SMALLEST and x.dtype == lower.dtype == upper.dtype == torch.float32
            and lower.shape == upper.shape and lower.device == upper.device == x.device and _by_rows(x, lower)
            and type(x) in (torch.Tensor, torch.nn.Parameter) and fast.switched_on())


def _by_rows(x: torch.Tensor, bound: torch.Tensor) -> bool:
    if bound.numel() == 1:
        return bound.dim() <= x.dim()
    return bound.dim() == x.dim() and bound.numel() == bound.shape[0] == x.shape[0]


def dense(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor without gaps in memory, its dimensions in memory in the order that they have already."""
    if x.is_contiguous() or torch.empty_like(x).stride() == x.stride():
        return x
    return x.clone()


def forward(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
    """Return a tensor rounded to the grid, laid out as it is itself.

    Args:
        x: For which :func:`usable`; :func:`dense`, or contiguous if there are several bounds.
        lower: One element, or one for each element of the first dimension.
        upper: As ``lower``.
        levels: 2^bits - 1.
    """
    rounded = torch.empty_like(x)
    bounds = [bound.detach().reshape(-1).numpy() for bound in (lower, upper, (upper - lower) / levels)]
    kernel = _kernels().forward

    def work(piece: list[torch.Tensor]) -> None:
        kernel(piece[0].numpy(), *bounds, piece[1].numpy())

    fast.in_threads(work, _pieces([x, rounded], len(bounds[0])))
    return rounded


def backward(x: torch.Tensor, gradient: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor,
             levels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of input, lower and upper bounds.

    Args:
        x: As in :func:`forward`.
        gradient: Of the rounded tensor.
        lower: As in :func:`forward`.
        upper: As ``lower``.
        levels: 2^bits - 1.
    """
    grad_x = torch.empty_like(x)
    if gradient.stride() != x.stride():
        gradient = torch.empty_like(x).copy_(gradient)
    bounds = [bound.detach().reshape(-1).numpy() for bound in (lower, upper, (upper - lower) / levels)]
    kernel = _kernels().backward

    def work(piece: list[torch.Tensor]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        sums = np.empty((len(bounds[0]), 3))
        kernel(piece[0].numpy(), piece[1].numpy(), *bounds, piece[2].numpy(), sums)
        return sums

    sums = np.sum(fast.in_threads(work, _pieces([x, gradient, grad_x], len(bounds[0]))), axis=0)
    through_step = sums[:, 0] / levels
    grad_lower, grad_upper = (torch.from_numpy(grad.astype(np.float32)).view(lower.shape)
                              for grad in (sums[:, 1] - through_step, sums[:, 2] + through_step))
    return grad_x, grad_lower, grad_upper


def _pieces(tensors: list[torch.Tensor], channels: int) -> list[list[torch.Tensor]]:
    """Cut tensors of equal layout, as (channels, elements), into a piece for each thread; several channels stay whole.

    One channel has its elements in the order of memory.
    """
    elements = tensors[0].numel() // channels
    rows = [tensor.detach().as_strided((channels, elements), (elements, 1)) for tensor in tensors]
    count = fast.thread_count(elements, PIECE) if channels == 1 else 1
    if count == 1:
        return [rows]
    return [list(pieces) for pieces in zip(*(tensor.chunk(count, 1) for tensor in rows), strict=True)]
