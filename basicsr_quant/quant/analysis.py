"""Where rounding hurts: what it costs each tensor, each layer by itself, and each layer after all those before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import named_quantizers, set_state
from basicsr_quant.quant.foreign import QuantizedModel
from basicsr_quant.quant.layers.weighted import QuantWeighted, weighted_layers
from basicsr_quant.quant.observers.histogram import Histogram
from basicsr_quant.quant.quantizer import Quantizer, State

BINS = 64
Forward = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class TensorAnalysis:
    """A tensor that is rounded, as it is in full precision.

    Attributes:
        name: Of its quantizer within the layer; empty for an operand.
        kind: ``weight``, ``bias`` or ``input``.
        bits: Width of a code.
        lower: Lower bound, the least if there is one for each channel.
        upper: Upper bound, the greatest if there is one for each channel.
        minimum: Least value.
        maximum: Greatest value.
        clipped: Part of the values outside of the bounds, 0 to 1.
        sqnr: Signal-to-quantization-noise ratio of the rounded tensor in dB; infinite without an error.
        counts: Number of values in equal bins from minimum to maximum.
    """

    name: str
    kind: str
    bits: int
    lower: float
    upper: float
    minimum: float
    maximum: float
    clipped: float
    sqnr: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LayerAnalysis:
    """A quantized layer, or a quantized operand of a product.

    Attributes:
        name: In the network.
        kind: ``linear``, ``conv2d`` or ``operand``.
        teacher_forced: SQNR of the layer's output in dB when its input is that of full precision: its own error.
        cumulative: The same when everything is quantized: its own error and that of all layers before it.
        tensors: What is rounded in it: weight, bias, input.
    """

    name: str
    kind: str
    teacher_forced: float
    cumulative: float
    tensors: tuple[TensorAnalysis, ...]


@dataclass(frozen=True)
class Analysis:
    """All quantized layers in the order in which they run.

    Attributes:
        layers: Those that ran.
        output: SQNR of the model's output in dB.
    """

    layers: tuple[LayerAnalysis, ...]
    output: float


@torch.no_grad()
def analyse(model: nn.Module, samples: Sequence[Any], *, forward: Forward | None = None, bins: int = BINS,
            on_progress: Callable[[int, int], None] | None = None) -> Analysis:
    """Compare a quantized model with itself in full precision, layer by layer.

    SQNR = 10 log10(sum y^2 / sum (y - y')^2), y in full precision, y' rounded, over all values of all samples. Each
    sample costs three passes: one finds the extremes of all tensors; in one nothing is rounded but, on the side, each
    layer by itself; in one everything is rounded. The second's outputs are kept for the third.

    Args:
        model: Prepared and calibrated.
        samples: Inputs; a pass must see the same tensors each time.
        forward: Runs the model on a sample and returns its output; default ``model(sample)``.
        bins: Of the histograms.
        on_progress: Called with (passes done, passes to do).

    Raises:
        UserError: Nothing is quantized, or the output is not finite.
    """
    probes = {name: _Probe(_shown(model, name), unit) for name, unit in _units(model)}
    if not probes:
        raise UserError("analysis: no tensor of this network has a quantizer; choose a quantized one")
    run, output, done = forward or model, _Noise(), 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, 3 * len(samples))

    with _states_kept(model):
        _watch(probes, lambda tensor: tensor.widen)
        for sample in samples:
            run(sample)
            step()
        for probe in probes.values():
            probe.start_counting(bins)
        order: dict[str, None] = {}
        for sample in samples:
            _watch(probes, lambda tensor: tensor.count)
            with _hooks(probes, lambda probe: probe.compare_alone, order):
                reference = run(sample)
            step()
            set_state(model, State.QUANTIZE)
            with _hooks(probes, lambda probe: probe.compare_all, order):
                output.add(reference, run(sample))
            step()
    if math.isnan(output.sqnr):
        raise UserError("analysis: the output holds NaN or infinite values; choose other weights")
    return Analysis(tuple(probes[name].result() for name in order), output.sqnr)


class _Noise:
    """Energies of a signal and of its error, in float64."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: torch.Tensor, rounded: torch.Tensor) -> None:
        exact = reference.double()
        self.signal += float(exact.square().sum())
        self.noise += float((exact - rounded.double()).square().sum())

    @property
    def sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


class _TensorProbe:
    """Watches what one quantizer sees."""

    def __init__(self, name: str, kind: str, quantizer: Quantizer) -> None:
        self.name, self.kind, self.quantizer = name, kind, quantizer
        self._minimum, self._maximum = math.inf, -math.inf
        self._histogram: Histogram | None = None
        self._noise = _Noise()
        self._outside = self._total = 0

    @property
    def was_seen(self) -> bool:
        return self._minimum <= self._maximum

    def widen(self, x: torch.Tensor) -> None:
        low, high = torch.aminmax(x)
        self._minimum, self._maximum = min(self._minimum, float(low)), max(self._maximum, float(high))

    def start_counting(self, bins: int) -> None:
        extremes = torch.tensor([self._minimum, self._maximum], dtype=torch.float64,
                                device=self.quantizer.lower_bound.device)
        self._histogram = Histogram(extremes[:1], extremes[1:], bins)

    def count(self, x: torch.Tensor) -> None:
        assert self._histogram is not None
        self._histogram.add((x if x.dtype == torch.float64 else x.float()).reshape(1, -1))
        lower, upper = self.quantizer.lower_bound, self.quantizer.upper_bound
        self._noise.add(x, self.quantizer.fake_quantize(x, lower, upper))
        self._outside += int(((x < lower) | (x > upper)).sum())
        self._total += x.numel()

    def result(self) -> TensorAnalysis:
        assert self._histogram is not None
        counts = tuple(int(count) for count in self._histogram.counts[0].tolist())
        lower, upper = float(self.quantizer.lower_bound.min()), float(self.quantizer.upper_bound.max())
        return TensorAnalysis(self.name, self.kind, self.quantizer.bits, lower, upper, self._minimum, self._maximum,
                              self._outside / self._total, self._noise.sqnr, counts)


class _Probe:
    """Compares the outputs of one layer or operand, and holds the probes of its tensors."""

    def __init__(self, name: str, unit: nn.Module) -> None:
        self.name, self.unit = name, unit
        self._quantizers = dict(named_quantizers(unit))
        fixed = list(unit.rounded_parameters()) if isinstance(unit, QuantWeighted) else []
        self._parameters = [(_TensorProbe(part, part.partition("_")[0], quantizer), tensor)
                            for part, quantizer, tensor in fixed]
        known = {id(quantizer) for _, quantizer, _ in fixed}
        self.inputs = [_TensorProbe(part, "input", quantizer) for part, quantizer in self._quantizers.items()
                       if id(quantizer) not in known]
        self._alone, self._all = _Noise(), _Noise()
        self._references: deque[torch.Tensor] = deque()

    def start_counting(self, bins: int) -> None:
        for probe, tensor in self._parameters:
            probe.widen(tensor)
            probe.start_counting(bins)
            probe.count(tensor)
        for probe in self.inputs:
            if probe.was_seen:
                probe.start_counting(bins)

    def compare_alone(self, arguments: Any, keywords: Any, output: torch.Tensor) -> None:
        before = {quantizer: quantizer.state for quantizer in self._quantizers.values()}
        for quantizer in before:
            quantizer.state = State.QUANTIZE
        self._alone.add(output, self.unit.forward(*arguments, **keywords))
        for quantizer, state in before.items():
            quantizer.state = state
        self._references.append(output.clone())

    def compare_all(self, arguments: Any, keywords: Any, output: torch.Tensor) -> None:
        self._all.add(self._references.popleft(), output)

    def result(self) -> LayerAnalysis:
        kind = "operand" if isinstance(self.unit, Quantizer) else type(self.unit).__name__.removeprefix("Quant").lower()
        tensors = [probe for probe, _ in self._parameters] + self.inputs
        return LayerAnalysis(self.name, kind, self._alone.sqnr, self._all.sqnr,
                             tuple(tensor.result() for tensor in tensors))


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the quantized layers, and the quantizers that stand outside of them."""
    inside = {id(quantizer) for _, layer in weighted_layers(model) for _, quantizer in named_quantizers(layer)}
    for name, module in model.named_modules():
        if isinstance(module, (QuantWeighted, Quantizer)) and id(module) not in inside:
            yield name, module


def _shown(model: nn.Module, name: str) -> str:
    """Return the network's own name of a layer, and ``module:matmul#0:lhs`` of an operand."""
    if not isinstance(model, QuantizedModel):
        return name
    return name.removeprefix("network.") if name.startswith("network.") else (
        name.removeprefix("operands.").replace("/", "."))


@contextmanager
def _states_kept(model: nn.Module) -> Iterator[None]:
    """Give all quantizers back the state and the watcher that they have now."""
    kept = [(quantizer, quantizer.state, quantizer.watcher) for _, quantizer in named_quantizers(model)]
    try:
        yield
    finally:
        for quantizer, state, watcher in kept:
            quantizer.state, quantizer.watcher = state, watcher


def _watch(probes: dict[str, _Probe], watcher: Callable[[_TensorProbe], Callable[[torch.Tensor], None]]) -> None:
    """Let nothing be rounded and show all inputs to their probes."""
    for probe in probes.values():
        set_state(probe.unit, State.OFF)
        for tensor in probe.inputs:
            tensor.quantizer.state, tensor.quantizer.watcher = State.OBSERVE, watcher(tensor)


@contextmanager
def _hooks(probes: dict[str, _Probe], compare: Callable[[_Probe], Callable[..., None]],
           order: dict[str, None]) -> Iterator[None]:
    """Call a method of each probe after its layer has run, and note in which order they run."""
    def hook(name: str, compared: Callable[..., None]) -> Callable[..., None]:
        def after(module: nn.Module, arguments: Any, keywords: Any, output: torch.Tensor) -> None:
            order.setdefault(name)
            compared(arguments, keywords, output)

        return after

    handles = [probe.unit.register_forward_hook(hook(name, compare(probe)), with_kwargs=True)
               for name, probe in probes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
