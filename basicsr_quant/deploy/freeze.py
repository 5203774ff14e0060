"""Freezing: weights become codes and scales, once and for all."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from basicsr_quant.deploy.frozen import FrozenBinaryConv2d, FrozenConv2d, FrozenLinear, FrozenWeighted
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.conv2d import BinaryConv2d
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.layers.conv2d import QuantConv2d
from basicsr_quant.quant.layers.linear import QuantLinear
from basicsr_quant.quant.layers.weighted import QuantWeighted, merge_weights, weighted_layers


def freeze(network: nn.Module, empty: bool = False) -> nn.Module:
    """Replace quantized and binary layers by frozen ones, in place; quantizers of activations and operands stay.

    Args:
        network: Prepared and calibrated, or binary, or in full precision; in eval mode afterwards, without gradients.
        empty: Whether values come later, from a file; codes are then not computed.

    Returns:
        ``network``, or the frozen layer if it is one itself.

    Raises:
        UserError: A layer is of a kind that cannot be frozen.
    """
    merge_weights(network)
    layers = [(name, module) for name, module in network.named_modules()
              if isinstance(module, (QuantWeighted, BinaryConv2d))]
    for name, module in layers:
        replacement = _frozen(name, module, empty)
        if not name:
            return replacement.eval()
        replace_module(network, name, replacement)
    return network.eval().requires_grad_(False)


def _frozen(name: str, module: nn.Module, empty: bool) -> nn.Module:
    if isinstance(module, QuantLinear):
        return FrozenLinear(module, empty)
    if isinstance(module, QuantConv2d):
        return FrozenConv2d(module, empty)
    if isinstance(module, BinaryConv2d):
        return FrozenBinaryConv2d(module)
    raise UserError(f"'{name}' is a {type(module).__name__}, which cannot be frozen; leave it out by 'none'")


def replace_module(network: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put a module in the place of the one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, replacement)


def frozen_layers(network: nn.Module) -> Iterator[tuple[str, FrozenWeighted | FrozenBinaryConv2d]]:
    """Yield names and modules of all frozen layers, in module order."""
    for name, module in network.named_modules():
        if isinstance(module, (FrozenWeighted, FrozenBinaryConv2d)):
            yield name, module


def rest_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a frozen network that are neither bounds nor scales of binary weights, by name."""
    shipped = {id(bound) for _, quantizer in named_quantizers(network) for bound in quantizer.parameters()}
    shipped |= {id(layer.scale) for _, layer in frozen_layers(network) if isinstance(layer, FrozenBinaryConv2d)}
    return {name: value for name, value in network.named_parameters() if id(value) not in shipped}


def folded_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers, frozen or not, whose transformation the norm in front of them does."""
    quantized = [name for name, layer in weighted_layers(network)
                 if layer.let is not None and layer.let.input_is_transformed]
    return quantized + [name for name, layer in frozen_layers(network) if isinstance(layer, FrozenWeighted)
                        and layer.let is None and (layer.border is not None or layer.term is not None)]


def shell(network: nn.Module, folded: Collection[str], bits: dict[str, int]) -> nn.Module:
    """Freeze a prepared network without weights, to be filled from a file.

    Args:
        network: Prepared; its values do not matter.
        folded: See :func:`folded_layers`.
        bits: Width of the codes of quantizers where it is not that of the plan.
    """
    layers, quantizers = dict(weighted_layers(network)), dict(named_quantizers(network))
    for name, width in bits.items():
        quantizers[name].set_bits(width)
    for name in folded:
        transformation = layers[name].let
        assert transformation is not None
        transformation.input_is_transformed = True
    return freeze(network, empty=True)
