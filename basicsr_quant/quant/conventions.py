"""How papers count: one row of data per convention, beside the honest numbers."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

from basicsr_quant.quant.accounting import BITS_OF_FLOAT, Account, LayerCount
from basicsr_quant.quant.binary.accounting import StepAccount

BORDER = ":border"


@dataclass(frozen=True)
class Convention:
    """A way to count parameters and operations.

    Attributes:
        name: Shown in tables.
        source: Where it comes from.
        skipped_parameters: fnmatch patterns of parameters that are left out.
        reference_parameters: Those of the network that is compared with; 0 = the same network in full precision.
        factors: Pattern of layer names -> factor on their operations.
        counted_norms: Patterns of norms of which each element counts as one operation.
        both_widths: Whether an operation on operands of a and b bits counts ab/32^2, not a/32.
    """

    name: str
    source: str
    skipped_parameters: tuple[str, ...] = ()
    reference_parameters: int = 0
    factors: dict[str, float] = field(default_factory=dict)
    counted_norms: tuple[str, ...] = ()
    both_widths: bool = False

    def parameter_ratio(self, account: Account) -> float:
        """Return how many times smaller the parameters get: full precision over b/32 of what is quantized."""
        total = sum(count for name, count in account.parameters.items() if not _matches(name, self.skipped_parameters))
        codes = sum(count * bits / BITS_OF_FLOAT for count, bits in account.codes.values())
        return (self.reference_parameters or total) / (total - account.quantized_parameters + codes)

    def operations(self, account: Account) -> tuple[float, float]:
        """Return operations in full precision and quantized; those of a quantized layer count b/32, b of its input.

        What a transformation's offset adds at image borders is part of the quantized network alone.
        """
        full = quantized = 0.0
        for layer in account.layers:
            count = self._operations(layer)
            full += 0 if layer.name.endswith(BORDER) else count
            quantized += count * (self._share(layer) if layer.is_quantized else 1)
        return full, quantized

    def _share(self, layer: LayerCount) -> float:
        share = layer.activation_bits / BITS_OF_FLOAT
        return share * layer.weight_bits / BITS_OF_FLOAT if self.both_widths else share

    def _operations(self, layer: LayerCount) -> float:
        if layer.kind == "norm":
            return layer.macs if _matches(layer.name, self.counted_norms) else 0
        for pattern, factor in self.factors.items():
            if fnmatch.fnmatchcase(layer.name, pattern):
                return layer.macs * factor
        return layer.macs


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


HONEST = Convention("all parameters, all multiply-accumulates", "nothing left out")


def swinir_light_conventions(scale: int) -> list[Convention]:
    """Return how 2DQuant counts SwinIR-light that enlarges by ``scale``: as published, and with its slips corrected.

    Source: 2DQuant, tables 1 and 2; specification 7.
    """
    biases = ("*relative_position_bias_table",)
    return [
        Convention("2DQuant, with its operation counts corrected", "position bias tables are not counted",
                   skipped_parameters=biases),
        Convention("2DQuant, as published", "a third of conv_after_body, and the upsampler as if its output were one "
                   "image at low resolution",
                   skipped_parameters=biases,
                   factors={"conv_after_body": 1 / 3, "upsample.0": 1 / scale**2},
                   counted_norms=("*.norm1", "*.norm2", "patch_embed.norm")),
    ]


TRANSFORMATIONS = ("*.let.scale.value", "*.let.offset", "*.processor.scale_*.value")
OSEDIFF_PARAMETERS = 1_303_000_000


def transformation_parameters(account: Account) -> int:
    """Return how many scales and offsets of equivalent transformations a network has."""
    return sum(count for name, count in account.parameters.items() if _matches(name, TRANSFORMATIONS))


def passionsr_conventions() -> list[Convention]:
    """Return how the size and the operations of PassionSR are given: against OSEDiff, and two ways to count products.

    Source: PassionSR, table 2 as summarized; specification 6.3.
    """
    return [
        Convention("PassionSR, b/32", "against the 1303 M parameters of OSEDiff with its text encoder; bounds, scales "
                   "and offsets not counted", TRANSFORMATIONS, OSEDIFF_PARAMETERS),
        Convention("PassionSR, bit operations", "ab/32^2 for a product of a and b bits; parameters against the same "
                   "network", TRANSFORMATIONS, both_widths=True),
    ]


@dataclass(frozen=True)
class Parts:
    """A count in two parts.

    Attributes:
        full: What is in full precision.
        binary: What is binary, by its share.
    """

    full: float
    binary: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.full + self.binary

    def printed(self, unit: float) -> float:
        """Return the number of a published table: both parts in ``unit`` rounded to two decimals, then added.

        Rounding the sum gives the same in all but two rows: the published 4.10 M of the ablation's ``Add`` is
        2.65 + 1.45 (sum: 4.094), the 4.82 M of BBCU 2.82 + 2.00 (sum: 4.813). That the parts were rounded is inferred
        from this; no text says so.
        """
        return round(round(self.full / unit, 2) + round(self.binary / unit, 2), 2)


@dataclass(frozen=True)
class StepConvention:
    """A way to count the parameters and operations of one denoising step.

    A multiply-accumulate in full precision is one operation.

    Attributes:
        name: Shown in tables.
        source: Where it comes from.
        binary_parameter: What a binary weight counts.
        binary_operation: What a multiply-accumulate of two binary operands counts.
        normalized: Operations per element of a normalization.
        resized: Operations per element of a nearest-neighbour resizing.
    """

    name: str
    source: str
    binary_parameter: float
    binary_operation: float
    normalized: float
    resized: float

    def parameters(self, step: StepAccount) -> Parts:
        """Return the parameters of a network; scales of binary weights are not counted."""
        return Parts(step.float_parameters, step.binary_parameters * self.binary_parameter)

    def operations(self, step: StepAccount) -> Parts:
        """Return the operations of one step; activations, sums, biases and shuffles are not counted."""
        others = step.normalized * self.normalized + step.resized * self.resized
        return Parts(step.float_macs + others, step.binary_macs * self.binary_operation)


BI_DIFFSR = StepConvention(
    name="BI-DiffSR, as published",
    source="fvcore's counts; binary weights / 32, binary operations / 64",
    binary_parameter=1 / BITS_OF_FLOAT,
    binary_operation=1 / 64,
    normalized=5,
    resized=1,
)
"""Source: BI-DiffSR, section 4.1; specification 5."""
