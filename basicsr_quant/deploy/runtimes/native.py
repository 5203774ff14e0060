"""``native``: layers, attention and binary units by kernels in C that compute on codes and bits, on CPUs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch
from torch import nn

from basicsr_quant.archs.swinir import SwinBlock
from basicsr_quant.deploy import native
from basicsr_quant.deploy.freeze import frozen_layers, replace_module
from basicsr_quant.deploy.frozen import FrozenBinaryConv2d, FrozenConv2d, FrozenLinear
from basicsr_quant.deploy.native.attention import NativeSwinBlock
from basicsr_quant.deploy.native.binary_conv import NativeBinaryConv, NativeBinaryUnit
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.native.library import address, float_rows
from basicsr_quant.deploy.native.linear import LinearPart, NativeLinear
from basicsr_quant.deploy.runtimes.onednn import OneDnn, OneDnnConv2d, suits
from basicsr_quant.quant.binary.unit import BinaryUnit
from basicsr_quant.quant.layers.linear import SplitLinear
from basicsr_quant.quant.quantizer import Quantizer

logger = logging.getLogger("basicsr_quant")

FAST = "avx512-vnni"
"""In the names of the levels of instructions whose kernels are faster than the simulation."""


class Native:
    """The largest parts that a kernel knows, 8-bit convolutions by oneDNN; everything else stays simulated."""

    def missing(self) -> str | None:
        """Return why there are no kernels, or none that are faster than the simulation."""
        lacking = native.missing()
        if lacking is None and FAST not in native.best_kernels().level:
            return "this processor has no AVX-512 with VNNI"
        return lacking

    def attach(self, network: nn.Module) -> nn.Module:
        """Replace the parts that can be; a float32 network on the CPU."""
        layers = [name for name, _ in frozen_layers(network)]
        made = _makers()
        replaced: dict[str, nn.Module] = {}
        if all(value.dtype == torch.float32 and value.device.type == "cpu" for value in network.parameters()):
            for name, module in list(network.named_modules()):
                if not any(name.startswith(f"{taken}.") for taken in replaced):
                    native_form = _native_form(module, made)
                    if native_form is not None:
                        replaced[name] = native_form
        for name, module in replaced.items():
            replace_module(network, name, module)
        if replaced:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        taken = sum(any(f"{layer}.".startswith(f"{name}.") for name in replaced) for layer in layers)
        logger.info("backend 'native' executes %d of %d quantized layers (%s); the rest is simulated", taken,
                    len(layers), native.best_kernels().level)
        return network


class NativeLayer(nn.Module):
    """A layer whose forward is a kernel's.

    Args:
        layer: What it replaces.
        run: Maps the layer's input to its output.
    """

    def __init__(self, layer: nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self._run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output."""
        return self._run(x)


def native_linear(layer: FrozenLinear) -> NativeLayer:
    """Return a Linear in one pass, behind the transformation of its input if there is one.

    Raises:
        ValueError: The kernel does not know a part of it.
    """
    linear = NativeLinear([LinearPart.of(layer)])
    return NativeLayer(layer, lambda x: linear(layer.transformed_input(x)))


class NativeConv2d(OneDnnConv2d):
    """A frozen Conv2d by oneDNN, one pass before it and one behind.

    Args:
        layer: As in :class:`OneDnnConv2d`.

    Raises:
        ValueError: The kernel does not know the input's grid.
    """

    def __init__(self, layer: FrozenConv2d) -> None:
        if not suits(layer):
            raise ValueError("oneDNN takes convolutions without groups, with one quantizer each for weight and input")
        super().__init__(layer)
        assert isinstance(layer.activation_quantizer, Quantizer)
        encode = ActivationGrid.of(layer.activation_quantizer).encode
        self.input_codes = lambda x: encode(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def finished(self, y: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Return the output in one pass; see :class:`OneDnnConv2d`."""
        sums, added = float_rows(y.permute(0, 2, 3, 1)), float_rows(offset.permute(0, 2, 3, 1))
        outputs = added.shape[-1]
        result = torch.empty(*sums.shape[:-1], outputs)
        native.best_kernels().add_sums(
            address(sums), result.numel() // outputs, outputs, address(self.sum_factor), address(added),
            added.numel() // outputs, address(result), torch.get_num_threads())
        return result.permute(0, 3, 1, 2)


def _makers() -> dict[type[nn.Module], Callable[..., nn.Module]]:
    """Return kind of module -> its native form."""
    made: dict[type[nn.Module], Callable[..., nn.Module]] = {
        SwinBlock: NativeSwinBlock, BinaryUnit: NativeBinaryUnit, FrozenLinear: native_linear,
        SplitLinear: lambda layer: NativeLayer(layer, NativeLinear.of(layer)),
        FrozenBinaryConv2d: lambda layer: NativeLayer(layer, NativeBinaryConv.of(layer))}
    return made | ({FrozenConv2d: NativeConv2d} if OneDnn().missing() is None else {})


def _native_form(module: nn.Module, makers: dict[type[nn.Module], Callable[..., nn.Module]]) -> nn.Module | None:
    """Return what takes the place of a module, or None if no kernel knows it."""
    make = makers.get(type(module))
    if make is not None:
        with contextlib.suppress(ValueError):
            return make(module)
    return None
