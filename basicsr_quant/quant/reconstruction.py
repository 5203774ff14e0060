"""Block reconstruction: one block after another learns to give what it gives in full precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from basicsr_quant import randomness
from basicsr_quant.quant.adaround import (
    has_rounded_weight,
    install_learned_rounding,
    rounding_parameters,
    rounding_penalty,
)
from basicsr_quant.quant.block_samples import Call, Forward, first_call, joined, tensor_of
from basicsr_quant.quant.bounds import RelativeSteps, bound_parameters, order_keeper, range_scales
from basicsr_quant.quant.calibrate import activation_names, activation_quantizers, set_state
from basicsr_quant.quant.foreign import inner_network
from basicsr_quant.quant.layers.weighted import merge_weights
from basicsr_quant.quant.quantizer import State

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class BlockLearning:
    """What learns in one block.

    Attributes:
        optimizer: Over its parameters.
        penalty: Maps the finished part of the iterations, 0 to below 1, to what is added to the loss.
        after_step: Called after each step.
        finish: Called after the last.
    """

    optimizer: torch.optim.Optimizer
    penalty: Callable[[float], torch.Tensor | float] = lambda progress: 0.0
    after_step: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None


class Phase(Protocol):
    """One pass over the blocks."""

    @property
    def name(self) -> str:
        """Keys the random draws."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Put the quantizers of the whole model in the states of this phase."""
        ...

    def concerns(self, block: nn.Module) -> bool:
        """Whether something in a block learns."""
        ...

    def begin(self, block: nn.Module) -> BlockLearning:
        """Make a block ready to learn."""
        ...


@dataclass(frozen=True)
class RoundingPhase:
    """AdaRound on all weights of a block, while no activation is rounded; the weights then stay rounded as learned.

    Attributes:
        optimizer: Makes the optimizer.
        weight: Of the penalty that drives every h to 0 or 1.
        warmup: Part of the iterations without penalty.
        exponents: Of the penalty, at the end of the warm-up and at the end; linear in between.

    Source: Li et al., "Q-Diffusion" (ICCV 2023), section 4; Nagel et al. (ICML 2020), section 3.2.
    """

    optimizer: MakeOptimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    weight: float = 0.01
    warmup: float = 0.2
    exponents: tuple[float, float] = (20.0, 2.0)
    name: str = "rounding"

    def prepare(self, model: nn.Module) -> None:
        """Switch off the quantizers of activations."""
        set_state(model, State.QUANTIZE)
        for _, quantizer in activation_quantizers(model):
            quantizer.state = State.OFF

    def concerns(self, block: nn.Module) -> bool:
        """Whether a block has rounded weights."""
        return has_rounded_weight(block)

    def begin(self, block: nn.Module) -> BlockLearning:
        """Install learned rounding; at the end the weights become the rounded ones."""
        install_learned_rounding(block)
        return BlockLearning(self.optimizer(rounding_parameters(block)), functools.partial(self._penalty, block),
                             finish=functools.partial(merge_weights, block))

    def _penalty(self, block: nn.Module, progress: float) -> torch.Tensor | float:
        return self.weight * rounding_penalty(block, self.exponent(progress)) if progress >= self.warmup else 0.0

    def exponent(self, progress: float) -> float:
        """Return the penalty's exponent."""
        start, end = self.exponents
        return start + (end - start) * (progress - self.warmup) / (1 - self.warmup)


@dataclass(frozen=True)
class StepPhase:
    """The bounds of a block's activations, with everything rounded.

    Attributes:
        optimizer: Makes the optimizer; its rate is in units of each quantizer's calibrated width.
        minimum_width: Part of its width that each range keeps.

    Source: Q-Diffusion, section 4.
    """

    optimizer: MakeOptimizer = functools.partial(torch.optim.Adam, lr=4e-4)
    minimum_width: float = 0.01
    name: str = "steps"

    def prepare(self, model: nn.Module) -> None:
        """Switch on all quantizers."""
        set_state(model, State.QUANTIZE)

    def concerns(self, block: nn.Module) -> bool:
        """Whether a block has rounded activations."""
        return bool(activation_names(block))

    def begin(self, block: nn.Module) -> BlockLearning:
        """Select the bounds."""
        names = activation_names(block)
        optimizer = self.optimizer(bound_parameters(block, names))
        RelativeSteps(optimizer, range_scales(block, names))
        return BlockLearning(optimizer, after_step=order_keeper(block, self.minimum_width))


def reconstruct(model: nn.Module, teacher: nn.Module, batches: Sequence[Any], blocks: Sequence[str], phase: Phase, *,
                forward: Forward, iterations: int, batch_size: int = 32, seed: int = 0, start: int = 0,
                on_progress: Callable[[int, int], None] | None = None,
                after_block: Callable[[int], None] | None = None) -> None:
    """Let one block after another learn, each on inputs for which all earlier ones round already.

    The target of a block is its output in the teacher's own run. Inputs and outputs of one block at a time are kept, on
    the CPU. Operands of ``op:`` lines lie between modules and are not rounded here. Everything is quantized afterwards.

    Args:
        model: Prepared and calibrated model, in eval mode, weights not frozen.
        teacher: The full-precision network with the same module names; it may share parameters with ``model``.
        batches: Calibration inputs, one image each for batches by the image; as ``forward`` takes them.
        blocks: Of :func:`~basicsr_quant.quant.block_samples.blocks_in_order`.
        phase: What learns.
        forward: Called with one of the networks and a batch, to run it.
        iterations: Of each block.
        batch_size: How many of ``batches`` are drawn for an iteration, without repetition.
        seed: Of these draws.
        start: First block; those before it have learned in an earlier run, whose weights are loaded.
        on_progress: Called with (iterations done, iterations to do).
        after_block: Called with the number of blocks that are done, for saving.
    """
    phase.prepare(model)
    numbers = [number for number in range(start, len(blocks))
               if phase.concerns(inner_network(model).get_submodule(blocks[number]))]
    for position, number in enumerate(numbers):
        calls = _calls(model, teacher, batches, blocks[number], forward)
        block = inner_network(model).get_submodule(blocks[number])

        def report(done: int, first: int = position * iterations) -> None:
            if on_progress is not None:
                on_progress(first + done, len(numbers) * iterations)

        def draw(iteration: int, count: int = len(calls), name: str = blocks[number]) -> list[int]:
            generator = randomness.generator(seed, f"{phase.name} {name}", iteration)
            return [int(index) for index in generator.permutation(count)[:batch_size]]

        _learn(block, phase.begin(block), calls, draw, iterations, report)
        if after_block is not None:
            after_block(number + 1)
    set_state(model, State.QUANTIZE)


def _calls(model: nn.Module, teacher: nn.Module, batches: Sequence[Any], name: str, forward: Forward) -> list[Call]:
    """Return a block's inputs in the model with its outputs in the teacher, batch by batch."""
    calls = []
    for batch in batches:
        call = first_call(model, name, batch, forward)
        call.output = first_call(teacher, name, batch, forward).output
        calls.append(call)
    return calls


def _learn(block: nn.Module, learning: BlockLearning, calls: Sequence[Call], draw: Callable[[int], list[int]],
           iterations: int, report: Callable[[int], None]) -> None:
    device = next(block.parameters()).device
    for iteration in range(iterations):
        call = joined([calls[index] for index in draw(iteration)], device)
        with torch.enable_grad():
            output = tensor_of(block(*call.arguments, **call.keywords))
            loss = block_distance(output, call.output) + learning.penalty(iteration / iterations)
            learning.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        learning.optimizer.step()
        learning.after_step()
        report(iteration + 1)
    learning.finish()


def block_distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error, summed over channels and averaged over all else.

    Args:
        output: (B, C, H, W) or (..., C).
        target: As ``output``.
    """
    return (output - target).square().sum(1 if output.dim() == 4 else -1).mean()
