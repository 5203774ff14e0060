"""The bound search as 2DQuant's released code does it: one pass over the tensor for each of 100 candidates."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import nn

from basicsr_quant.io.progress import FIRST_LINE_SECONDS, progress_line
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.quantizer import Quantizer, State

logger = logging.getLogger("basicsr_quant")

CANDIDATES = 100
PROGRESS_SECONDS = 30.0


@dataclass(frozen=True)
class Found:
    """The best candidate.

    Attributes:
        index: Its number, from the outside.
        lower: Its lower bound.
        upper: Its upper bound.
        squared_error: Of rounding the tensor between them, as the search saw it.
    """

    index: int
    lower: float
    upper: float
    squared_error: float


def search(x: torch.Tensor, bits: int) -> Found:
    """Return the first candidate with the least error norm, everything in the precision of ``x``.

    Source: 2DQuant specification 3.2 (two-sided, strict comparison).

    Args:
        x: Any shape.
        bits: 1 to 8.
    """
    low, high, levels = x.min(), x.max(), 2**bits - 1
    part = (high - low) / (2 * CANDIDATES)
    best = Found(-1, 0.0, 0.0, float("inf"))
    for index in range(CANDIDATES):
        lower, upper = low + index * part, high - index * part
        step = (upper - lower) / levels
        codes = torch.round((torch.clip(x, lower.item(), upper.item()) - lower) / step)
        error = torch.norm(x - (step * codes + lower)).item() ** 2
        if error < best.squared_error:
            best = Found(index, lower.item(), upper.item(), error)
    return best


def exact_errors(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the squared errors of all candidates, (100,) float64: bounds in the precision of ``x``, all else float64.

    Args:
        x: Any shape.
        bits: 1 to 8.
    """
    low, high, levels = x.min(), x.max(), 2**bits - 1
    part = (high - low) / (2 * CANDIDATES)
    exact, errors = x.double(), []
    for index in range(CANDIDATES):
        lower, upper = (low + index * part).double(), (high - index * part).double()
        step = (upper - lower) / levels
        codes = torch.round((exact.clamp(lower, upper) - lower) / step)
        errors.append((exact - (step * codes + lower)).square().sum())
    return torch.stack(errors)


class _Watch:
    """Searches the bounds of one quantizer at its first tensor."""

    def __init__(self, quantizer: Quantizer, progress: _Progress) -> None:
        self.quantizer, self.progress, self.done = quantizer, progress, False

    def __call__(self, x: torch.Tensor) -> None:
        if not self.done:
            found = search(x, self.quantizer.bits)
            self.quantizer.set_bounds(x.new_tensor([found.lower]), x.new_tensor([found.upper]))
            self.done = True
            self.progress.advance()


class _Progress:
    """A line in the log now and then, as this takes minutes."""

    def __init__(self, total: int) -> None:
        self.done, self.total, self.began, self.due = 0, total, time.monotonic(), FIRST_LINE_SECONDS

    def advance(self) -> None:
        self.done += 1
        elapsed = time.monotonic() - self.began
        if elapsed >= self.due:
            logger.info("%s", progress_line("brute-force search", self.done, self.total, elapsed))
            self.due = elapsed + PROGRESS_SECONDS


@torch.no_grad()
def calibrate(model: nn.Module, batch: torch.Tensor) -> None:
    """Calibrate a prepared network as the released code does: each quantizer searches when its tensor comes by.

    Weights too, and the q, k, v parts of a layer each on their own, although they see the same tensor.

    Source: 2DQuant specification 3.3 (in eval mode), 9.26.

    Args:
        model: Prepared network with bounds per tensor.
        batch: (B, 3, h, w).
    """
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    progress = _Progress(len(quantizers))
    for quantizer in quantizers:
        quantizer.state, quantizer.watcher = State.OBSERVE, _Watch(quantizer, progress)
    model(batch)
    for quantizer in quantizers:
        quantizer.state, quantizer.watcher = State.QUANTIZE, None
