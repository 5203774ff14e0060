"""Packed models as folders of two files, kept locally or on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from basicsr_quant.deploy.container import FORMAT_VERSION
from basicsr_quant.deploy.options import stored_options
from basicsr_quant.deploy.pack import pack
from basicsr_quant.deploy.runtimes.base import runtime
from basicsr_quant.deploy.unpack import open_model
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_bytes, write_text
from basicsr_quant.io.weights import file_digest
from basicsr_quant.models.base import RestorationModel

CONFIGURATION, WEIGHTS = "config.json", "model.safetensors"
LIBRARY = "basicsr_quant"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(model: RestorationModel, folder: str | Path, rest: str = "fp32") -> None:
    """Write a model as ``config.json`` and ``model.safetensors``, a packed file.

    Args:
        model: Ready to test; its network is frozen in place. One that was opened must run on ``simulate``.
        folder: Is made if need be.
        rest: Dtype of what is not quantized: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        UserError: The model cannot be packed, see :func:`basicsr_quant.deploy.pack.pack`, or the folder not written.
    """
    options = stored_options(model)
    data, _ = pack(model, rest)
    facts = {"library_name": LIBRARY, "format_version": FORMAT_VERSION, "model_type": options["model_type"],
             "scale": options["scale"], "sha256": hashlib.sha256(data).hexdigest(), "options": options}
    write_bytes(Path(folder) / WEIGHTS, data)
    write_text(Path(folder) / CONFIGURATION, json.dumps(facts, indent=2) + "\n")


def from_pretrained(name: str | Path, device: str | torch.device = "cpu", backend: str = "simulate",
                    revision: str | None = None) -> RestorationModel:
    """Return a model that :func:`save_pretrained` wrote; its ``restore`` enlarges images (B, 3, H, W).

    Args:
        name: Folder, or ``owner/name`` on the Hub, if there is no such folder.
        device: Where to restore.
        backend: What executes the layers, see :func:`basicsr_quant.deploy.runtimes.base.runtime`.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: There is no such folder, it cannot be downloaded, its files do not belong together, or the packed
            file is damaged.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _downloaded(str(name), revision)
    configuration = _configuration(folder / CONFIGURATION)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"'{folder}' holds no {WEIGHTS}; save the model again")
    if configuration.get("sha256") != file_digest(weights):
        raise UserError(f"'{weights}' is damaged or does not belong to the {CONFIGURATION} beside it; save the model "
                        "again")
    place = torch.device(device)
    model, packed = open_model(weights, place)
    model.adopt(runtime(backend, place).attach(packed.network))
    return model


def _configuration(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read '{path}'; name a folder that save_pretrained wrote") from error
    if not isinstance(found, dict) or found.get("library_name") != LIBRARY:
        raise UserError(f"'{path}' is of another library; name a folder that save_pretrained wrote")
    return found


def _downloaded(name: str, revision: str | None) -> Path:
    """Return the local copy of a repository of the Hub."""
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"there is no folder '{name}', and a model on the Hub is named owner/name; check the name")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(f"there is no folder '{name}', and for the Hub the package 'huggingface_hub' is missing; "
                        "install it with `pip install -c constraints.txt huggingface_hub`") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIGURATION, WEIGHTS]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"there is no folder '{name}', and it cannot be had from the Hub ({reason}); check the name "
                        "and the network") from error
