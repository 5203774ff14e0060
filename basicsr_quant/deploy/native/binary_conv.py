"""Binary convolutions on packed bits."""

from __future__ import annotations

import ctypes

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.deploy.frozen import FrozenBinaryConv2d
from basicsr_quant.deploy.native.library import Library, ShapeLayout, UnitLayout, address, best_kernels, float_rows
from basicsr_quant.quant.binary.activations import SignActivation, StepActivation
from basicsr_quant.quant.binary.shifts import LearnableBias, RPReLU
from basicsr_quant.quant.binary.timestep import Group
from basicsr_quant.quant.binary.unit import BinaryUnit

SIGN_ZERO, SIGN_PLUS_ONE, STEP = 0, 1, 2
GROUP, WORD = 8, 64


class NativeBinaryConv:
    """y = (RPReLU) (scale * conv(sign(x + shift), signs) + bias) (+ x), equal to the simulation to the bit.

    Args:
        signs: (O, C, k, k) of -1, 0 and +1, k 1 or 3; zeros take a slower way.
        scale: (O,), (1,) or None.
        activation: The layer's activation binarizer, or None if the input is made of -1, 0 and +1 already.
        bias: (O,) or None.
        kernels: Those of another level than the processor's best.

    Raises:
        ValueError: The kernel's side is another, or the activation is unknown.
    """

    def __init__(self, signs: torch.Tensor, scale: torch.Tensor | None, activation: nn.Module | None,
                 bias: torch.Tensor | None = None, kernels: Library | None = None) -> None:
        self.outputs, self.channels, self.kernel, side = signs.shape
        if self.kernel not in (1, 3) or side != self.kernel:
            raise ValueError(f"native binary convolutions are 1x1 or 3x3, found {self.kernel}x{side}")
        self.kernels, self.activation = kernels or best_kernels(), _activation(activation)
        signs = signs.detach().float()
        self._weight = _packed(signs > 0)
        self._mask = _packed(signs != 0) if bool((signs == 0).any()) else None
        self._base = _base(signs)
        self._scale = None if scale is None else scale.detach().float().flatten().expand(self.outputs).contiguous()
        self._bias = None if bias is None else bias.detach().float().contiguous()

    @classmethod
    def of(cls, layer: nn.Module, kernels: Library | None = None) -> NativeBinaryConv:
        """Return the native form of a :class:`FrozenBinaryConv2d`.

        Raises:
            ValueError: See the class; or the layer is of another kind or has a spatial scale.
        """
        if not isinstance(layer, FrozenBinaryConv2d) or layer.spatial_scale:
            raise ValueError("native binary convolutions are made of frozen ones without a spatial scale")
        return cls(layer.signs, layer.scale, layer.activation_binarizer, layer.bias, kernels)

    def __call__(self, x: torch.Tensor, shift: torch.Tensor | None = None, activation: RPReLU | None = None,
                 identity: bool = False, identity_first: bool = False) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W), fastest in channels-last memory, in which the result is.

        Args:
            x: float32.
            shift: C values added before the sign.
            activation: Comes after the convolution; its parameters are of one group.
            identity: Whether x is added in the end.
            identity_first: Whether it is added before the activation instead.

        Raises:
            ValueError: Shapes do not fit.
        """
        rows = float_rows(x.permute(0, 2, 3, 1))
        batch, height, width, channels = rows.shape
        if channels != self.channels or (identity and channels != self.outputs):
            raise ValueError(f"a binary convolution from {self.channels} to {self.outputs} channels cannot take "
                             f"{tuple(x.shape)}{' with an identity' if identity else ''}")
        shift = None if shift is None else shift.detach().flatten().contiguous()
        bent = [None] * 3 if activation is None else [parameter.detach().flatten().contiguous() for parameter in
                                                      (activation.shift_in, activation.slope, activation.shift_out)]
        if any(part is not None and part.numel() != wanted
               for part, wanted in [(shift, channels), *((part, self.outputs) for part in bent)]):
            raise ValueError("shift and activation of a native binary convolution have one value for each channel")
        words = -(-channels // WORD)
        border = 2 * (self.kernel // 2)
        space = torch.empty(2 * batch * (height + border) * (width + border) * words, dtype=torch.int64)
        y = torch.empty(batch, height, width, self.outputs)
        unit = UnitLayout(*map(address, (self._scale, self._bias, *bent)), address(rows) if identity else None,
                          int(identity_first))
        shape = ShapeLayout(batch, height, width, channels, self.outputs, self.kernel)
        self.kernels.binary_conv(address(rows), ctypes.byref(shape), address(shift), self.activation,
                                 *map(address, (self._weight, self._mask, self._base)), ctypes.byref(unit),
                                 address(space), address(y), torch.get_num_threads())
        return y.permute(0, 3, 1, 2)


class NativeBinaryUnit(BinaryUnit):
    """A :class:`BinaryUnit` in one pass over its input and one over its output.

    Args:
        unit: With a frozen convolution. Shifts and slopes are read at each call.
        kernels: As in :class:`NativeBinaryConv`.

    Raises:
        ValueError: As in :class:`NativeBinaryConv`.
    """

    def __init__(self, unit: BinaryUnit, kernels: Library | None = None) -> None:
        nn.Module.__init__(self)
        self.shift, self.binary, self.activation = unit.shift, unit.binary, unit.activation
        self.identity, self.identity_first = unit.identity, unit.identity_first
        self._convolution = NativeBinaryConv.of(unit.binary, kernels)

    def forward(self, x: torch.Tensor, group: Group = 0) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W); ``group`` is the timestep group of all samples, or of each."""
        if isinstance(group, torch.Tensor):
            groups: list[int] = group.tolist()
            if len(set(groups)) > 1:
                return torch.cat([self(sample, own) for sample, own in zip(x.split(1), groups, strict=True)])
            return self(x, groups[0])  # type: ignore[no-any-return]
        shift, activation = (None if aware is None else aware.members[group if aware.groups > 1 else 0]
                             for aware in (self.shift, self.activation))
        assert shift is None or isinstance(shift, LearnableBias)
        assert activation is None or isinstance(activation, RPReLU)
        return self._convolution(x, None if shift is None else shift.bias, activation, self.identity,
                                 self.identity_first)


def _activation(activation: nn.Module | None) -> int:
    if activation is None:
        return SIGN_ZERO
    if isinstance(activation, SignActivation):
        return SIGN_ZERO if activation.sign_zero == "zero" else SIGN_PLUS_ONE
    if isinstance(activation, StepActivation):
        return STEP
    raise ValueError(f"native binary convolutions do not know {type(activation).__name__}")


def _packed(bits: torch.Tensor) -> torch.Tensor:
    """Return (O, C, k, k) bits as int64 [O / GROUP][k][k][words][GROUP], outputs and channels filled with zeros."""
    outputs, channels = bits.shape[:2]
    rows = functional.pad(bits.permute(0, 2, 3, 1), (0, -channels % WORD, 0, 0, 0, 0, 0, -outputs % GROUP))
    words = (rows.unflatten(-1, (-1, WORD)).long() << torch.arange(WORD)).sum(-1)
    return words.view(-1, GROUP, words[0].numel()).transpose(1, 2).contiguous()


def _base(signs: torch.Tensor) -> torch.Tensor:
    """Return (16, O filled up) int32: products of a pixel, plus the weights of the taps outside, by border class.

    Class: 4 * vertical + horizontal, of which bit 0 means that the first taps are outside, bit 1 the last.
    """
    outputs, channels, side, _ = signs.shape
    taps = functional.pad(signs.sum(1), (0, 0, 0, 0, 0, -outputs % GROUP))
    place = torch.arange(side)
    outside = torch.stack([(place == 0) & bool(border & 1) | (place == side - 1) & bool(border & 2)
                           for border in range(4)])
    missing = outside[:, None, :, None] | outside[None, :, None, :]
    base = channels * side * side + torch.einsum("oyx,vhyx->vho", taps, missing.float())
    return base.reshape(16, -1).round().int().contiguous()
