"""The published binarization methods, each composed of the same few parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from basicsr_quant import registry
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.activations import SignActivation, StepActivation
from basicsr_quant.quant.binary.sign import SignZero
from basicsr_quant.quant.binary.slopes import (
    ClippedSlope,
    ErrorDecaySlope,
    PolynomialSlope,
    ScaledClippedSlope,
    Slope,
)
from basicsr_quant.quant.binary.unit import Binarizer
from basicsr_quant.quant.binary.weights import WeightBinarizer
from basicsr_quant.quant.recipe import Spec


def bi_conv(sign_zero: SignZero = "zero", identity: bool = True) -> Binarizer:
    """Return BI-DiffSR's: RPReLU(conv(sign(x + b))) + x; with one timestep group it is BBCU's.

    Source: BI-DiffSR section 3.3; BBCU: Basic Binary Convolution Unit (Xia et al., 2023).
    """
    return Binarizer(activation=lambda: SignActivation(PolynomialSlope(), sign_zero),
                     weight=lambda: WeightBinarizer(ClippedSlope(), "channel", sign_zero),
                     learnable=True, identity=identity)


def react_net(sign_zero: SignZero = "zero") -> Binarizer:
    """Return ReActNet's: RPReLU(conv(sign(x + b)) + x), without batch normalization.

    Source: ReActNet (Liu et al., 2020).
    """
    return Binarizer(activation=lambda: SignActivation(PolynomialSlope(), sign_zero),
                     weight=lambda: WeightBinarizer(ClippedSlope(), "channel", sign_zero),
                     learnable=True, identity=True, identity_first=True)


def bnn(sign_zero: SignZero = "zero") -> Binarizer:
    """Return BNN's: conv(sign x) with weights of -1 and +1 whose latent values stay in [-1, 1].

    Source: BinaryNet (Courbariaux et al., 2016).
    """
    return Binarizer(activation=lambda: SignActivation(ClippedSlope(), sign_zero),
                     weight=lambda: WeightBinarizer(ClippedSlope(), "none", sign_zero, latent_bound=1.0))


def dorefa(sign_zero: SignZero = "zero", levels: Literal["zero_one", "plus_minus_one"] = "zero_one") -> Binarizer:
    """Return DoReFa's with one bit each.

    Args:
        sign_zero: Of the weights, and of activations of -1 and +1.
        levels: Values of an activation: {0, 1} as in its paper, or -1 and +1 as in many super-resolution ports.

    Source: DoReFa-Net (Zhou et al., 2016), eq. 5, 7 and 9.
    """
    return Binarizer(activation=lambda: (StepActivation() if levels == "zero_one"
                                         else SignActivation(ClippedSlope(), sign_zero)),
                     weight=lambda: WeightBinarizer(Slope(), "layer", sign_zero))


def xnor_net(sign_zero: SignZero = "zero", spatial_scale: bool = True,
             weight_gradient: Literal["scaled", "clipped"] = "scaled") -> Binarizer:
    """Return XNOR-Net's: conv(sign x) * K with scaled weights.

    Args:
        sign_zero: Of weights and activations.
        spatial_scale: Whether there is a K.
        weight_gradient: ``scaled`` is the paper's 1/n + scale * 1[abs(W) <= 1], ``clipped`` the usual simplification.

    Source: XNOR-Net (Rastegari et al., 2016), eq. 11.
    """
    slope = ScaledClippedSlope if weight_gradient == "scaled" else ClippedSlope
    return Binarizer(activation=lambda: SignActivation(ClippedSlope(), sign_zero),
                     weight=lambda: WeightBinarizer(slope(), "channel", sign_zero), spatial_scale=spatial_scale)


def ir_net(sign_zero: SignZero = "zero", lowest: float = 0.1, highest: float = 10.0) -> Binarizer:
    """Return IR-Net's: standardized weights with scales that are powers of two, and the error decay estimator.

    Args:
        sign_zero: Of weights and activations.
        lowest: See :class:`basicsr_quant.quant.binary.slopes.ErrorDecaySlope`; tell it the training's progress by
            :func:`basicsr_quant.quant.binary.slopes.set_progress`.
        highest: As ``lowest``.

    Source: IR-Net (Qin et al., 2020).
    """
    return Binarizer(activation=lambda: SignActivation(ErrorDecaySlope(lowest, highest), sign_zero),
                     weight=lambda: WeightBinarizer(ErrorDecaySlope(lowest, highest), "power_of_two", sign_zero,
                                                    standardize=True))


def make_binarizer(value: Binarizer | str | Mapping[str, Any], sign_zero: SignZero = "zero") -> Binarizer:
    """Return the binarizer that an option names.

    Args:
        value: A name in BINARIZERS, or ``{type: name, argument: value}``; a binarizer is returned as it is.
        sign_zero: Argument of the same name, unless ``value`` has one.

    Raises:
        UserError: Unknown name or argument.
    """
    if isinstance(value, Binarizer):
        return value
    spec = Spec.parse(value, "binarizer")
    make = registry.BINARIZERS.get(spec.type)
    try:
        binarizer: Binarizer = make(**{"sign_zero": sign_zero, **spec.arguments})
    except TypeError as error:
        raise UserError(f"binarizer {spec.describe()}: {error}") from error
    return binarizer
