"""Building and filling OSEDiff's pipeline: from Stable Diffusion's folder, from single files, or from scratch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from basicsr_quant import randomness
from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.osediff import CONTEXT_SHAPE, build_unet, build_vae
from basicsr_quant.archs.osediff_pipeline import OSEDiff, Tiles
from basicsr_quant.archs.published.osediff import LORA_ALPHA, import_osediff
from basicsr_quant.archs.published.stable_diffusion import (
    WHERE_OSEDIFF,
    WHERE_SD,
    build_from_folder,
    compute_prompt_embedding,
    folder_state,
    read_prompt_embedding,
)
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict, load_file, load_state_dict
from basicsr_quant.options.component import Component
from basicsr_quant.options.methods.osediff import OSEDiffBaseOptions

PARTS = ("unet", "vae")
NARROW_LOG_VARIANCE = -10.0
_DEFAULT: Mapping[str, Callable[[], nn.Module]] = {"unet": build_unet, "vae": build_vae}


def build_part(options: OSEDiffBaseOptions, part: str) -> nn.Module:
    """Build ``unet`` or ``vae`` with random weights: as its block says, else as path:sd, else that of SD 2.1-base."""
    component: Component | None = getattr(options, f"network_{part}")
    if component is not None:
        return build_network(component.type, component.arguments)
    return build_from_folder(options.path.sd, part) if options.path.sd is not None else _DEFAULT[part]()


def pipeline_of(options: OSEDiffBaseOptions, unet: nn.Module, vae: nn.Module, context: Tensor) -> OSEDiff:
    """Join the networks as the options say.

    Raises:
        UserError: The parts do not fit each other.
    """
    tiles, step = options.pipeline.tiles, options.one_step
    unet_config: Any = unet.config
    vae_config: Any = vae.config
    if unet_config.cross_attention_dim != context.shape[-1]:
        raise UserError(f"the prompt embedding has width {context.shape[-1]}, the UNet takes "
                        f"{unet_config.cross_attention_dim}; check path:prompt_embedding and path:sd")
    if unet_config.in_channels != vae_config.latent_channels:
        raise UserError(f"the VAE has {vae_config.latent_channels} latent channels, the UNet takes "
                        f"{unet_config.in_channels}; check network_vae and network_unet")
    return OSEDiff(unet, vae, context, options.scale, step.timestep, step.scaled_input,
                   Tiles(tiles.latent, tiles.latent_overlap, tiles.vae_encoder, tiles.vae_decoder))


def skeleton_pipeline(options: OSEDiffBaseOptions) -> OSEDiff:
    """Return the pipeline without weights; path:sd is taken for Stable Diffusion 2.1-base where it does not exist."""
    if options.path.sd is not None and not Path(options.path.sd).is_dir():
        options = msgspec.structs.replace(options, path=msgspec.structs.replace(options.path, sd=None))
    unet, vae = (build_part(options, part) for part in PARTS)
    config: Any = unet.config
    tokens = options.one_step.random_context or CONTEXT_SHAPE[0]
    return pipeline_of(options, unet, vae, torch.zeros(1, tokens, config.cross_attention_dim))


def loaded_pipeline(options: OSEDiffBaseOptions, from_scratch: Collection[str] = ()) -> OSEDiff:
    """Return the pipeline with the weights that the ``path`` options name, on the CPU, in float32.

    Args:
        options: Of the run.
        from_scratch: Those of ``unet`` and ``vae`` that may be random where no weights are named.

    Raises:
        UserError: Weights are missing (one line says which, where they are published and where to put them) or do not
            fit.
    """
    states = {part: _state(options, part, from_scratch) for part in PARTS}
    if options.path.osediff is not None:
        states = _trained(options.path.osediff, states)
    networks = {part: _filled(options, part, states[part]) for part in PARTS}
    return pipeline_of(options, networks["unet"], networks["vae"], prompt_embedding(options, networks["unet"]))


def _state(options: OSEDiffBaseOptions, part: str,
           from_scratch: Collection[str]) -> tuple[dict[str, Tensor], Path] | None:
    given = getattr(options.path, f"pretrain_network_{part}")
    if given is not None:
        return load_state_dict(given), Path(given)
    if options.path.sd is not None:
        return folder_state(options.path.sd, part)
    if part in from_scratch:
        return None
    raise UserError(f"path:sd and path:pretrain_network_{part} are missing; needed is {WHERE_SD}")


def _trained(file: str, states: dict[str, tuple[dict[str, Tensor], Path] | None],
             ) -> dict[str, tuple[dict[str, Tensor], Path] | None]:
    """Merge OSEDiff's training into the states of both networks."""
    unet, vae = states["unet"], states["vae"]
    if unet is None or vae is None:
        raise UserError("path:osediff changes given weights; name those by path:sd")
    if not Path(file).is_file():
        raise UserError(f"path:osediff: '{file}' does not exist; {WHERE_OSEDIFF}")
    content: Any = load_file(file)
    alpha = float(LORA_ALPHA)
    if isinstance(content, dict) and "params" in content:
        alpha = float(content.get("metadata", {}).get("lora_alpha", LORA_ALPHA))
        params = content.get("params_ema") or content["params"]
        content = {f"state_dict_{part}": {name.removeprefix(f"{part}."): tensor for name, tensor in params.items()
                                          if name.startswith(f"{part}.")} for part in PARTS}
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is no OSEDiff checkpoint; {WHERE_OSEDIFF}")
    merged_unet, merged_vae = import_osediff(content, unet[0], vae[0], file, alpha)
    return {"unet": (merged_unet, unet[1]), "vae": (merged_vae, vae[1])}


def _filled(options: OSEDiffBaseOptions, part: str, state: tuple[dict[str, Tensor], Path] | None) -> nn.Module:
    if state is None:
        network = build_part(options, part)
        _initialise(network, part, options.one_step.scaled_input)
        return network
    with torch.device("meta"):
        network = build_part(options, part)
    network.to_empty(device="cpu")
    apply_state_dict(network, *state)
    return network


@torch.no_grad()
def _initialise(network: Any, part: str, scaled_input: bool) -> None:
    """Begin with a narrow posterior, and with a UNet that changes nothing if its input is scaled."""
    if part == "vae":
        network.quant_conv.weight[network.config.latent_channels:] = 0
        network.quant_conv.bias[network.config.latent_channels:] = NARROW_LOG_VARIANCE
    elif scaled_input:
        nn.init.zeros_(network.conv_out.weight)
        nn.init.zeros_(network.conv_out.bias)


def prompt_embedding(options: OSEDiffBaseOptions, unet: nn.Module) -> Tensor:
    """Return the constant prompt embedding (1, tokens, width).

    Raises:
        UserError: There is no way to get it.
    """
    path, step = options.path, options.one_step
    if path.prompt_embedding is not None:
        return read_prompt_embedding(path.prompt_embedding)
    if step.random_context:
        config: Any = unet.config
        return randomness.normal(0, "prompt", 0, [0], (step.random_context, config.cross_attention_dim))
    folder = path.text_encoder or path.sd
    if folder is None:
        raise UserError("path:prompt_embedding and path:text_encoder are missing; name a file of the embedding, or the "
                        "folder that holds Stable Diffusion 2.1-base's text_encoder and tokenizer")
    return compute_prompt_embedding(folder, step.prompt)
