"""A frozen network as three tensors and its full-precision rest, and back; addressed by the order of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from basicsr_quant.deploy.freeze import frozen_layers, rest_parameters
from basicsr_quant.deploy.frozen import FrozenBinaryConv2d
from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.codec import pack_codes, stream_bytes, unpack_codes

CODES, SCALES, ZEROS, BUFFER = "codes", "scales", "zeros", "buffer:"
RESERVED = (CODES, SCALES, ZEROS)


@dataclass(frozen=True)
class Stream:
    """One tensor that is stored as codes.

    Attributes:
        module: Frozen layer.
        attribute: Name of the tensor in it: ``weight_codes``, ``bias_codes`` or ``signs``.
        bits: Width of a code; 1 for signs.
    """

    module: nn.Module
    attribute: str
    bits: int

    @property
    def tensor(self) -> torch.Tensor:
        """The codes, or the signs."""
        found: torch.Tensor = getattr(self.module, self.attribute)
        return found

    @property
    def size(self) -> int:
        """Bytes of the stream."""
        return stream_bytes(self.tensor.numel(), self.bits)

    def ordered(self) -> torch.Tensor:
        """Return the tensor with the input channels last: (O, kh, kw, I)."""
        return self.tensor.movedim(1, -1) if self.tensor.dim() > 2 else self.tensor

    def set(self, values: torch.Tensor) -> None:
        """Take values in the order of :meth:`ordered`; they are laid out anew, since strides decide on roundings."""
        values = values.view(self.ordered().shape)
        values = values.movedim(-1, 1) if values.dim() > 2 else values
        setattr(self.module, self.attribute, values.clone(memory_format=torch.contiguous_format))


def streams(network: nn.Module) -> Iterator[Stream]:
    """Yield what is stored as codes, in the order of the file."""
    for _, layer in frozen_layers(network):
        if isinstance(layer, FrozenBinaryConv2d):
            yield Stream(layer, "signs", 1)
            continue
        for attribute, quantizer in (("weight_codes", layer.weight_quantizer), ("bias_codes", layer.bias_quantizer)):
            if quantizer is not None and getattr(layer, attribute) is not None:
                yield Stream(layer, attribute, quantizer.bits)


def scales(network: nn.Module) -> Iterator[torch.Tensor]:
    """Yield bounds of quantizers and scales of binary weights, in the order of the file."""
    for _, quantizer in named_quantizers(network):
        yield quantizer.lower_bound
        yield quantizer.upper_bound
    for _, layer in frozen_layers(network):
        if isinstance(layer, FrozenBinaryConv2d) and layer.scale is not None:
            yield layer.scale


def named_buffers(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers of a network that are no codes."""
    coded = {id(stream.tensor) for stream in streams(network)}
    for name, buffer in network.named_buffers():
        if id(buffer) not in coded:
            yield name, buffer


def to_tensors(network: nn.Module, fresh: nn.Module, rest: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return the tensors of a packed file.

    Args:
        network: Frozen.
        fresh: The same without weights; its buffers need not be stored.
        rest: Dtype of floating-point parameters that are not quantized; None leaves them as they are.

    Raises:
        UserError: A parameter has a name that packed files reserve.
    """
    packed, zeros, begin = [], [], 0
    for stream in streams(network):
        values = stream.ordered().reshape(-1)
        if stream.attribute == "signs":
            zeros.append((values == 0).nonzero().view(-1) + begin)
            begin += values.numel()
            values = (values > 0).to(torch.uint8)
        packed.append(pack_codes(values, stream.bits))
    found = {CODES: torch.cat(packed)} if packed else {}
    if any(len(places) for places in zeros):
        found[ZEROS] = torch.cat(zeros)
    numbers = [scale.detach().float().reshape(-1) for scale in scales(network)]
    if numbers:
        found[SCALES] = torch.cat(numbers)
    for name, parameter in rest_parameters(network).items():
        if name in RESERVED or name.startswith(BUFFER):
            raise UserError(f"a parameter of the network is named '{name}', which means something else in a packed "
                            "file; rename it")
        value = parameter.detach()
        found[name] = value.to(rest) if rest is not None and value.is_floating_point() else value
    known = dict(named_buffers(fresh))
    for name, buffer in named_buffers(network):
        if name not in known or known[name].shape != buffer.shape or not torch.equal(known[name], buffer):
            found[BUFFER + name] = buffer
    return {name: tensor.cpu() for name, tensor in found.items()}


def from_tensors(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a frozen network with the tensors of a packed file, in place.

    Raises:
        ValueError: They do not fit; the message says which and why.
    """
    _fill_codes(network, tensors)
    _fill_scales(network, tensors)
    rest = rest_parameters(network)
    given = {name for name in tensors if name not in RESERVED and not name.startswith(BUFFER)}
    for name in sorted(given ^ rest.keys()):
        raise ValueError(f"'{name}' is {'missing' if name in rest else 'not part of the network'}")
    for name, parameter in rest.items():
        value = tensors[name]
        if parameter.shape != value.shape:
            raise ValueError(f"'{name}' has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
        if parameter.is_floating_point() != value.is_floating_point():
            raise ValueError(f"'{name}' has dtype {value.dtype}, expected {parameter.dtype}")
        parameter.data = value.to(parameter.dtype)
    _fill_buffers(network, tensors)


def _fill_buffers(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    buffers = dict(named_buffers(network))
    for stored, value in tensors.items():
        name = stored.removeprefix(BUFFER)
        if name == stored:
            continue
        if name not in buffers:
            raise ValueError(f"'{name}' is not part of the network")
        if buffers[name].dtype != value.dtype or buffers[name].dim() != value.dim():
            raise ValueError(f"'{name}' is {value.dim()}-dimensional {value.dtype}, expected {buffers[name].dim()}-"
                             f"dimensional {buffers[name].dtype}")
        owner, _, own = name.rpartition(".")
        setattr(network.get_submodule(owner), own, value)


def _fill_codes(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    found = list(streams(network))
    signs = sum(stream.tensor.numel() for stream in found if stream.attribute == "signs")
    codes = tensors.get(CODES, torch.empty(0, dtype=torch.uint8))
    wanted = [stream.size for stream in found]
    if codes.dtype != torch.uint8 or codes.dim() != 1 or codes.numel() != sum(wanted):
        raise ValueError(f"there are {codes.numel()} bytes of codes, the network has {sum(wanted)}")
    zeros, begin = tensors.get(ZEROS), 0
    if zeros is not None:
        _check_places(zeros, signs)
    for stream, piece in zip(found, codes.split(wanted), strict=True):
        values = unpack_codes(piece, stream.bits, stream.tensor.numel())
        if stream.attribute == "signs":
            values = values.to(torch.int8) * 2 - 1
            if zeros is not None:
                here = zeros[(zeros >= begin) & (zeros < begin + values.numel())]
                values[here - begin] = 0
            begin += values.numel()
        stream.set(values)


def _check_places(zeros: torch.Tensor, signs: int) -> None:
    if zeros.dtype != torch.int64 or zeros.dim() != 1 or not bool((zeros.diff() > 0).all()) or not bool(
            ((zeros >= 0) & (zeros < signs)).all()):
        raise ValueError(f"'{ZEROS}' holds no ascending places among {signs} signs")


def _fill_scales(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    found = list(scales(network))
    numbers = tensors.get(SCALES, torch.empty(0))
    wanted = [scale.numel() for scale in found]
    if not numbers.is_floating_point() or numbers.dim() != 1 or numbers.numel() != sum(wanted):
        raise ValueError(f"there are {numbers.numel()} scales and bounds, the network has {sum(wanted)}")
    with torch.no_grad():
        for scale, piece in zip(found, numbers.split(wanted), strict=True):
            scale.copy_(piece.view(scale.shape))
