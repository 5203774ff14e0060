"""The short names of metrics, which way each is better, and which were checked against reference values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from basicsr_quant.errors import UserError
from basicsr_quant.metrics.osediff import calculate_osediff_psnr, calculate_osediff_ssim
from basicsr_quant.metrics.perceptual import calculate_iqa, calculate_lpips, load_iqa, load_lpips
from basicsr_quant.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr_quant.registry import nearest

Protocol = Literal["basicsr", "osediff"]
PROTOCOLS: tuple[Protocol, ...] = ("basicsr", "osediff")


@dataclass(frozen=True)
class NamedMetric:
    """A metric under a short name.

    Args:
        calculate: Takes (sr, gt, **arguments) as uint8 RGB images (H, W, 3) and returns a number.
        better: Which direction is better.
        needs_reference: Whether it compares with the GT image.
        accepts: Settings of an evaluation that it takes: of crop_border, test_y_channel, crop, weights, device.
        arguments: Further arguments, fixed by the name.
        load: Builds its network ahead of the first image; None if it has none.
    """

    calculate: Callable[..., float]
    better: Literal["higher", "lower"]
    needs_reference: bool
    accepts: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[..., object] | None = None

    def bind(self, settings: Mapping[str, Any]) -> Callable[[Any, Any], float]:
        """Fix the settings that this metric takes; the rest are passed over. Return a function of (sr, gt)."""
        keywords = {**self.arguments, **{key: settings[key] for key in self.accepts if key in settings}}

        def score(sr: Any, gt: Any) -> float:
            return self.calculate(sr, gt, **keywords)

        return score

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Build the network, if there is one, so that a missing file is noticed before the first image."""
        if self.load is not None:
            taken = {key: settings[key] for key in ("weights", "device") if key in settings}
            self.load(**self.arguments, **taken)


def _iqa(name: str, better: Literal["higher", "lower"], needs_reference: bool = False) -> NamedMetric:
    accepts = ("crop_border", "weights", "device") if needs_reference else ("weights", "device")
    return NamedMetric(calculate_iqa, better, needs_reference, accepts, {"name": name}, load_iqa)


NAMES: Mapping[str, NamedMetric] = {
    "psnr": NamedMetric(calculate_psnr, "higher", True, ("crop_border", "test_y_channel")),
    "ssim": NamedMetric(calculate_ssim, "higher", True, ("crop_border", "test_y_channel")),
    "lpips": NamedMetric(calculate_lpips, "lower", True, ("crop_border", "crop", "weights", "device"), load=load_lpips),
    "dists": _iqa("dists", "lower", needs_reference=True),
    "clipiqa": _iqa("clipiqa", "higher"),
    "niqe": _iqa("niqe", "lower"),
    "musiq": _iqa("musiq", "higher"),
    "maniqa": _iqa("maniqa", "higher"),
}
_OSEDIFF: Mapping[str, NamedMetric] = {
    **NAMES,
    "psnr": NamedMetric(calculate_osediff_psnr, "higher", True),
    "ssim": NamedMetric(calculate_osediff_ssim, "higher", True),
    "maniqa": _iqa("maniqa-pipal", "higher"),
}

VERIFIED: Mapping[str, str] = {
    "psnr": "2DQuant's released code, RGB and Y, within 1e-5 dB; protocol osediff: logs of 32 images, within 1e-5 dB",
    "ssim": "2DQuant's released code, Y, within 1e-12; protocol osediff: logs of 32 images, within 2e-6",
    "niqe": "OSEDiff's logs of 32 images: median deviation 1e-4, largest 0.02 (with the parameters in basicsr)",
    "lpips": "",
    "dists": "",
    "clipiqa": "",
    "musiq": "",
    "maniqa": "",
}
"""Metric -> what its values were compared with; an empty text says: not verified, for want of the weights."""


def named_metric(name: str, protocol: Protocol = "basicsr") -> NamedMetric:
    """Return the metric of a short name.

    Args:
        name: ``psnr``, ``ssim``, ``lpips``, ``dists``, ``clipiqa``, ``niqe``, ``musiq`` or ``maniqa``.
        protocol: ``osediff`` puts OSEDiff's formulas under psnr and ssim, and MANIQA's PIPAL weights under maniqa.

    Raises:
        UserError: The name or the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol '{protocol}' is unknown; write one of {', '.join(PROTOCOLS)}")
    names = _OSEDIFF if protocol == "osediff" else NAMES
    if name not in names:
        raise UserError(f"metric '{name}' is unknown{nearest(name, list(names))}; known: {', '.join(names)}")
    return names[name]
