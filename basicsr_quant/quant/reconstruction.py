"""Block reconstruction: one block after another learns to give what it gives in full precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basicsr_quant.quant.adaround import decided_roundings, has_rounded_weight, rounding_penalty
from basicsr_quant.quant.block_samples import Call, Forward, first_call, joined, tensor_of
from basicsr_quant.quant.calibrate import activation_names, activation_quantizers, named_quantizers, set_state
from basicsr_quant.quant.foreign import inner_network
from basicsr_quant.quant.layers.weighted import frozen_weights, merge_weights
from basicsr_quant.quant.quantizer import State


class Phase:
    """One pass over the blocks; this one rounds everything and is for the bounds of activations.

    Source: Li et al., "Q-Diffusion" (ICCV 2023), section 4.
    """

    def prepare(self, model: nn.Module) -> None:
        """Put the quantizers of the whole model in the states of this phase."""
        set_state(model, State.QUANTIZE)

    def concerns(self, block: nn.Module) -> bool:
        """Whether something in a block learns."""
        return bool(activation_names(block))

    def penalty(self, block: nn.Module, progress: float) -> torch.Tensor | None:
        """Return what is added to a block's loss at the finished part of its iterations, 0 to below 1; None: nothing.

        Args:
            block: That learns.
            progress: As said.
        """
        return None

    def finish(self, block: nn.Module) -> None:
        """Make final what a block has learned."""


@dataclass(frozen=True)
class RoundingPhase(Phase):
    """AdaRound on all weights of a block, while no activation is rounded; the weights then stay rounded as learned.

    Attributes:
        weight: Of the penalty that drives every h to 0 or 1.
        warmup: Part of the iterations without penalty.
        exponents: Of the penalty, at the end of the warm-up and at the end; linear in between.

    Source: Q-Diffusion, section 4; Nagel et al. (ICML 2020), section 3.2.
    """

    weight: float = 0.01
    warmup: float = 0.2
    exponents: tuple[float, float] = (20.0, 2.0)

    def prepare(self, model: nn.Module) -> None:
        """Switch off the quantizers of activations."""
        set_state(model, State.QUANTIZE)
        for _, quantizer in activation_quantizers(model):
            quantizer.state = State.OFF

    def concerns(self, block: nn.Module) -> bool:
        """Whether a block has rounded weights."""
        return has_rounded_weight(block)

    def penalty(self, block: nn.Module, progress: float) -> torch.Tensor | None:
        """Return the penalty, 0 during the warm-up."""
        if progress < self.warmup:
            return torch.zeros((), device=next(block.parameters()).device)
        return self.weight * rounding_penalty(block, self.exponent(progress))

    def exponent(self, progress: float) -> float:
        """Return the penalty's exponent."""
        start, end = self.exponents
        return start + (end - start) * (progress - self.warmup) / (1 - self.warmup)

    def finish(self, block: nn.Module) -> None:
        """Put the weights where they were learned to be rounded to."""
        merge_weights(block)


PHASES: Mapping[str, Phase] = {"rounding": RoundingPhase(), "activation_bounds": Phase()}
"""Name of a selector -> phase in which its selection learns block by block."""


class Reconstruction:
    """Losses of blocks that learn one after another, each on inputs for which all earlier ones have learned.

    The target of a block is its output in the teacher's own run. Inputs and outputs of one block at a time are kept, on
    the CPU; they are made when the block's turn comes, so that going on in the middle needs nothing but the model.
    Operands of ``op:`` lines lie between modules and are not rounded here.

    Args:
        model: Prepared and calibrated, in eval mode, weights not frozen; ``phase.prepare`` has seen it.
        teacher: The full-precision network with the same module names; it may share parameters with ``model``.
        samples: Inputs of model and teacher, one image each.
        blocks: Names, of :func:`~basicsr_quant.quant.block_samples.blocks_in_order`; something in each of them learns.
        phase: What learns.
        forward: Called with one of the networks and its input, to run it.
        iterations: Of each block.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, samples: Sequence[tuple[Any, Any]], blocks: Sequence[str],
                 phase: Phase, *, forward: Forward, iterations: int) -> None:
        self._model, self._teacher, self._samples = model, teacher, samples
        self._blocks, self._phase, self._forward, self._iterations = blocks, phase, forward, iterations
        self._calls: tuple[str, list[Call]] = ("", [])

    @property
    def length(self) -> int:
        """Iterations of all blocks together."""
        return len(self._blocks) * self._iterations

    def loss(self, iteration: int, items: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return ``block``, the distance of the iteration's block from its targets, and ``penalty`` if there is one.

        Args:
            iteration: From 0; all earlier ones are done.
            items: Numbers of the samples to be used.
        """
        name, block = self._block(iteration)
        if self._calls[0] != name:
            self._calls = (name, [self._call(name, *pair) for pair in self._samples])
        call = joined([self._calls[1][item] for item in items], next(block.parameters()).device)
        losses = {"block": block_distance(tensor_of(block(*call.arguments, **call.keywords)), call.output)}
        penalty = self._phase.penalty(block, iteration % self._iterations / self._iterations)
        return losses if penalty is None else {**losses, "penalty": penalty}

    def after_step(self, iteration: int) -> None:
        """Make final what a block has learned, if the iteration was its last."""
        if (iteration + 1) % self._iterations == 0:
            self._phase.finish(self._block(iteration)[1])

    def _block(self, iteration: int) -> tuple[str, nn.Module]:
        name = self._blocks[iteration // self._iterations]
        return name, inner_network(self._model).get_submodule(name)

    def _call(self, name: str, own: Any, teachers: Any) -> Call:
        """Return a block's inputs in the model with its output in the teacher."""
        call = first_call(self._model, name, own, self._forward)
        call.output = first_call(self._teacher, name, teachers, self._forward).output
        return call


def block_distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error, summed over channels and averaged over all else.

    Args:
        output: (B, C, H, W) or (..., C).
        target: As ``output``.
    """
    return (output - target).square().sum(1 if output.dim() == 4 else -1).mean()


@contextmanager
def finished_form(model: nn.Module) -> Iterator[None]:
    """Context in which a model that is learning is as it would be at the end: all quantizers round, each weight once.

    Weights whose rounding is being learned go where they tend to.
    """
    states = [(quantizer, quantizer.state) for _, quantizer in named_quantizers(model)]
    set_state(model, State.QUANTIZE)
    try:
        with decided_roundings(model), frozen_weights(model):
            yield
    finally:
        for quantizer, state in states:
            quantizer.state = state
