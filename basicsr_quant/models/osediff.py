"""``model_type: OSEDiffModel``: one-step diffusion super-resolution at full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr_quant.archs.osediff_lora import (
    add_lora,
    has_lora,
    load_trained_state,
    merged_state,
    trained_state,
    unet_layers,
    vae_layers,
)
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict
from basicsr_quant.models.base import Stage
from basicsr_quant.models.one_step import OneStepModel
from basicsr_quant.models.osediff_networks import loaded_pipeline
from basicsr_quant.models.osediff_steps import AutoencoderStep, OSEDiffStep
from basicsr_quant.options.methods.osediff import OSEDiffOptions, UnetStageOptions, stages_of
from basicsr_quant.options.optimization import stage_optimizer, stage_schedule
from basicsr_quant.options.stage import StageOptions
from basicsr_quant.registry import LOSSES

_NAMES = {"vae": "VAE", "unet": "one-step UNet", "lora": "LoRA"}
_LABELS = {"vae": "vae", "unet": "unet", "lora": "osediff"}


class OSEDiffModel(OneStepModel):
    """Train or test OSEDiff.

    Stages ``vae`` and ``unet`` train the networks themselves, saved as ``net_vae`` and ``net_unet`` under diffusers'
    names (low-rank factors merged); stage ``lora`` is the method's training, saved as ``net_osediff``: the factors and
    ``conv_in`` under their published names, each behind ``unet.`` or ``vae.``.
    """

    options: OSEDiffOptions

    @property
    def _stages(self) -> list[tuple[str, StageOptions]]:
        return stages_of(self.options.train) if self.options.train is not None else []

    @property
    def stage_lengths(self) -> Sequence[int]:
        """Iterations of each stage."""
        return [stage.iterations for _, stage in self._stages]

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """Both networks if one of them is trained in full, and the pipeline for its low-rank factors."""
        kinds = {kind for kind, _ in self._stages}
        networks: dict[str, nn.Module] = {}
        if kinds & {"vae", "unet"}:
            networks |= {"unet": self._network.unet, "vae": self._network.vae}
        return networks | ({"osediff": self._network} if "lora" in kinds else {})

    def load_pretrained(self, training: bool) -> None:
        """Load what the ``path`` options name; what a stage trains from scratch needs no weights."""
        pipeline = loaded_pipeline(self.options, [kind for kind, _ in self._stages] if training else ())
        double = training and self.options.train is not None and self.options.train.precision == "fp64"
        self._network = pipeline.to(self.device, torch.float64 if double else torch.float32).eval()
        self._network.requires_grad_(False)

    def stage(self, index: int = 0) -> Stage:
        """Return a stage with everything frozen but what it trains."""
        train = self.options.train
        assert train is not None
        kind, settings = self._stages[index]
        network = self._network.requires_grad_(False)
        if train.gradient_checkpointing:
            network.unet.enable_gradient_checkpointing()
            network.vae.enable_gradient_checkpointing()
        parameters = self._learning(kind, settings)
        optimizer = stage_optimizer(train.optim, parameters, settings.lr)
        schedule = stage_schedule(settings.scheduler, settings.iterations)
        return Stage(_NAMES[kind], _LABELS[kind], self._step(kind), [optimizer], schedule=schedule)

    def _learning(self, kind: str, settings: StageOptions) -> list[nn.Parameter]:
        """Make trainable what a stage trains, and return it."""
        network, options = self._network, self.options
        if kind != "lora":
            parts = [getattr(network, kind)]
            if isinstance(settings, UnetStageOptions) and settings.train_encoder:
                parts += [network.vae.encoder, network.vae.quant_conv]
            return [parameter for part in parts for parameter in part.requires_grad_(True).parameters()]
        lora, seed = options.lora, options.manual_seed
        factors = [*add_lora(network.unet, unet_layers(network.unet), lora.rank_unet, lora.alpha, seed, "unet"),
                   *add_lora(network.vae, vae_layers(network.vae), lora.rank_vae, lora.alpha, seed, "vae")]
        if lora.train_conv_in:
            factors += list(network.unet.conv_in.base_layer.requires_grad_(True).parameters())
        return factors

    def _step(self, kind: str) -> nn.Module:
        train = self.options.train
        assert train is not None
        seed, compiled = self.options.manual_seed, train.compile
        pixel: nn.Module = train.pixel_opt.build(LOSSES).to(self.device)
        if kind == "vae":
            return AutoencoderStep(self._network, pixel, train.kl_weight, seed, compiled)
        perceptual = None if train.perceptual_opt is None else train.perceptual_opt.build(LOSSES).to(self.device)
        sampled = self.options.pipeline.posterior == "sample"
        return OSEDiffStep(self._network, pixel, perceptual, seed, sampled, kind == "lora", compiled)

    def export_state(self, label: str, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return a network under diffusers' names, or what the LoRA stage trains (nothing before it begins)."""
        if label != "osediff":
            return merged_state(network, self.options.lora.alpha)
        return {f"{part}.{name}": tensor for part in ("unet", "vae") if has_lora(getattr(network, part))
                for name, tensor in trained_state(getattr(network, part), self._has_conv_in(part)).items()}

    def import_state(self, label: str, network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
        """Load what :meth:`export_state` returned; in the LoRA stage the networks under the factors are there already.

        Raises:
            UserError: Names or shapes disagree.
        """
        if label != "osediff":
            if not has_lora(network):
                apply_state_dict(network, state, path)
            return
        for part in ("unet", "vae"):
            own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(part)}
            if has_lora(getattr(network, part)):
                load_trained_state(getattr(network, part), own, self._has_conv_in(part), str(path))
            elif own:
                raise UserError(f"'{path}' belongs to another stage of the training; resume with the options of the "
                                "interrupted run")

    def _has_conv_in(self, part: str) -> bool:
        return part == "unet" and self.options.lora.train_conv_in

    def metadata(self, label: str) -> dict[str, Any]:
        """Return plain facts to be stored with a network."""
        step, lora = self.options.one_step, self.options.lora
        facts: dict[str, Any] = {"timestep": step.timestep, "scaled_input": step.scaled_input}
        if label == "osediff":
            facts |= {"lora_alpha": lora.alpha, "rank_unet": lora.rank_unet, "rank_vae": lora.rank_vae}
        return super().metadata(label) | facts
