"""How papers count: one row of data per convention, beside the honest numbers."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

from basicsr_quant.quant.accounting import BITS_OF_FLOAT, Account, LayerCount


@dataclass(frozen=True)
class Convention:
    """A way to count parameters and operations.

    Attributes:
        name: Shown in tables.
        source: Where it comes from.
        skipped_parameters: fnmatch patterns of parameters that are left out.
        factors: Pattern of layer names -> factor on their operations.
        counted_norms: Patterns of norms of which each element counts as one operation.
    """

    name: str
    source: str
    skipped_parameters: tuple[str, ...] = ()
    factors: dict[str, float] = field(default_factory=dict)
    counted_norms: tuple[str, ...] = ()

    def parameter_ratio(self, account: Account) -> float:
        """Return how many times smaller the parameters get: full precision over b/32 of what is quantized."""
        total = sum(count for name, count in account.parameters.items() if not _matches(name, self.skipped_parameters))
        codes = sum(count * bits / BITS_OF_FLOAT for count, bits in account.codes.values())
        return total / (total - account.quantized_parameters + codes)

    def operations(self, account: Account) -> tuple[float, float]:
        """Return operations in full precision and quantized; those of a quantized layer count b/32, b of its input."""
        full = quantized = 0.0
        for layer in account.layers:
            count = self._operations(layer)
            full += count
            quantized += count * (layer.activation_bits / BITS_OF_FLOAT if layer.is_quantized else 1)
        return full, quantized

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
