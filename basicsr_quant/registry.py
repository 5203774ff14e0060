"""Names for everything that an option file can choose: name -> "module:attribute", imported on first use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from basicsr_quant.errors import UserError


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name most like ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Registry:
    """A table of names of one kind.

    Args:
        kind: What the names stand for, in the singular, for error messages.
        entries: name -> ``"module:attribute"``; nothing is imported before the name is used.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = dict(entries)

    def register(self, name: str, target: str | Any | None = None) -> Callable[[Any], Any] | None:
        """Add an entry; without ``target``, return a decorator that adds what it decorates.

        Raises:
            ValueError: The name is taken.
        """
        if target is None:
            def decorate(thing: Any) -> Any:
                self.register(name, thing)
                return thing

            return decorate
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered already")
        self._entries[name] = target
        return None

    def get(self, name: str) -> Any:
        """Return what ``name`` stands for, importing it if need be.

        Raises:
            UserError: The name is unknown; the nearest known name is suggested.
        """
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} '{name}'{nearest(name, list(self))}; known: {', '.join(self)}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
        return entry

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call what ``name`` stands for with the given arguments."""
        return self.get(name)(*args, **kwargs)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


ARCHS = Registry("network", {
    "SwinIR": "basicsr_quant.archs.swinir:SwinIR",
    "spandrel": "basicsr_quant.archs.external:spandrel_network",
    "outlined": "basicsr_quant.archs.external:outlined_network",
    "BIDiffSRUNet": "basicsr_quant.archs.bi_diffsr_unet:BIDiffSRUNet",
    "BinaryBaselineUNet": "basicsr_quant.archs.binary_baseline_unet:BinaryBaselineUNet",
    "SR3UNet": "basicsr_quant.archs.sr3_unet:SR3UNet",
    "SDUNet": "basicsr_quant.archs.osediff:sd_unet",
    "SDVAE": "basicsr_quant.archs.osediff:sd_vae",
})
MODELS = Registry("model_type", {
    "SRModel": "basicsr_quant.models.sr:SRModel",
    "BIDiffSRModel": "basicsr_quant.models.bi_diffsr:BIDiffSRModel",
    "OSEDiffModel": "basicsr_quant.models.osediff:OSEDiffModel",
    "PassionSRModel": "basicsr_quant.models.passionsr:PassionSRModel",
    "TDQuantModel": "basicsr_quant.models.tdquant:TDQuantModel",
})
OBSERVERS = Registry("observer", {
    "minmax": "basicsr_quant.quant.observers.minmax:MinMaxObserver",
    "ema_minmax": "basicsr_quant.quant.observers.ema_minmax:EmaMinMaxObserver",
    "dbdc": "basicsr_quant.quant.observers.dbdc:DbdcObserver",
    "percentile": "basicsr_quant.quant.observers.percentile:PercentileObserver",
    "dobi": "basicsr_quant.quant.observers.dobi:DobiObserver",
    "step_size": "basicsr_quant.quant.observers.step_size:StepSizeObserver",
})
QUANTIZERS = Registry("quantization grid", {
    "float_offset": "basicsr_quant.quant.grids.float_offset:FloatOffsetGrid",
    "int_zero_point": "basicsr_quant.quant.grids.int_zero_point:IntZeroPointGrid",
    "symmetric_step": "basicsr_quant.quant.grids.symmetric_step:SymmetricStepGrid",
})
BINARIZERS = Registry("binarizer", {
    "bi_conv": "basicsr_quant.quant.binary.binarizers:bi_conv",
    "bbcu": "basicsr_quant.quant.binary.binarizers:bi_conv",
    "bnn": "basicsr_quant.quant.binary.binarizers:bnn",
    "dorefa": "basicsr_quant.quant.binary.binarizers:dorefa",
    "xnor_net": "basicsr_quant.quant.binary.binarizers:xnor_net",
    "ir_net": "basicsr_quant.quant.binary.binarizers:ir_net",
    "react_net": "basicsr_quant.quant.binary.binarizers:react_net",
})
SELECTORS = Registry("selector", {
    "transformations": "basicsr_quant.quant.selection:transformations",
    "bounds": "basicsr_quant.quant.selection:bounds",
    "activation_bounds": "basicsr_quant.quant.selection:activation_bounds",
    "transformations_and_bounds": "basicsr_quant.quant.selection:transformations_and_bounds",
    "rounding": "basicsr_quant.quant.adaround:learned_roundings",
    "low_rank_changes": "basicsr_quant.quant.quantization_aware_lora:low_rank_changes",
})
DATASETS = Registry("data set type", {
    "PairedImageDataset": "basicsr_quant.data.paired:PairedImageDataset",
    "CentralPatchDataset": "basicsr_quant.data.central_patch:CentralPatchDataset",
    "MultiPairedImageDataset": "basicsr_quant.data.multi_paired:MultiPairedImageDataset",
})
LOSSES = Registry("loss", {
    "L1Loss": "basicsr_quant.losses.pixel:L1Loss",
    "MSELoss": "basicsr_quant.losses.pixel:MSELoss",
    "CharbonnierLoss": "basicsr_quant.losses.pixel:CharbonnierLoss",
    "LPIPSLoss": "basicsr_quant.losses.perceptual:LPIPSLoss",
})
METRICS = Registry("metric", {
    "calculate_psnr": "basicsr_quant.metrics.psnr_ssim:calculate_psnr",
    "calculate_ssim": "basicsr_quant.metrics.psnr_ssim:calculate_ssim",
    "calculate_osediff_psnr": "basicsr_quant.metrics.osediff:calculate_osediff_psnr",
    "calculate_osediff_ssim": "basicsr_quant.metrics.osediff:calculate_osediff_ssim",
    "calculate_lpips": "basicsr_quant.metrics.perceptual:calculate_lpips",
    "calculate_iqa": "basicsr_quant.metrics.perceptual:calculate_iqa",
})
RUNTIMES = Registry("backend", {
    "simulate": "basicsr_quant.deploy.runtimes.simulate:Simulate",
    "reference": "basicsr_quant.deploy.runtimes.reference:Reference",
    "onednn": "basicsr_quant.deploy.runtimes.onednn:OneDnn",
    "native": "basicsr_quant.deploy.runtimes.native:Native",
    "native_bf16": "basicsr_quant.deploy.runtimes.native_bf16:NativeBf16",
})
