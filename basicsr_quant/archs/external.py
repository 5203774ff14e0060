"""Networks of other libraries: whatever spandrel recognises from a file, and basicsr's archs by name."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import warnings
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_quant.compat import load_basicsr, load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import load_file, load_state_dict
from basicsr_quant.registry import nearest

# Spandrel states a multiple for these, but their forward pads on its own, as their authors' evaluation did.
PAD_THEMSELVES = frozenset({"CRAFT"})
OUTLINE_LIMIT = 1024
OUTLINE_TEXT_LIMIT = 2**22


def spandrel_network(weights: str) -> nn.Module:
    """Recognise the network that a weights file belongs to, and return it with these weights.

    The module is spandrel's own, so a plan matches the names in the file. Under ``torch.device("meta")`` only names and
    shapes are read and the module has no values.

    Args:
        weights: A torch checkpoint or ``.safetensors`` file.

    Returns:
        (B, 3, h, w) -> (B, 3, s * h, s * w), with attributes ``upscale_factor`` (s), ``minimum_size`` (smallest input
        side) and, if its input must be padded, ``window_multiple``.

    Raises:
        UserError: The file is damaged, or no super-resolution network for RGB images is recognised in it.
    """
    on_meta = torch.get_default_device().type == "meta"
    state = _outline(weights) if on_meta else load_state_dict(weights, key=None)
    with torch.device("cpu") if on_meta else contextlib.nullcontext():
        descriptor = _describe(state, weights)
    if on_meta:
        descriptor.model.to("meta")
    return _network_of(descriptor, weights)


def outline_of(weights: str) -> str:
    """Return the names and shapes in a weights file, by which spandrel recognises its network, as a short text.

    Raises:
        UserError: See :func:`spandrel_network`.
    """
    shapes = {name: list(tensor.shape) for name, tensor in _outline(weights).items()}
    return base64.b64encode(zlib.compress(json.dumps(shapes).encode(), 9)).decode()


def outlined_network(outline: str) -> nn.Module:
    """Return the network of :func:`spandrel_network`, recognised by names and shapes alone; its values are zeros.

    Args:
        outline: See :func:`outline_of`.

    Raises:
        UserError: The text is none of :func:`outline_of`, or no super-resolution network for RGB images is recognised.
    """
    with torch.device("cpu"):
        try:
            text = zlib.decompressobj().decompress(base64.b64decode(outline), OUTLINE_TEXT_LIMIT)
            state = {name: torch.zeros(()).expand(shape) for name, shape in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
            raise UserError("the outline of a network is damaged; pack the model again") from error
        descriptor = _describe(state, "the packed file")
    if torch.get_default_device().type == "meta":
        descriptor.model.to("meta")
    return _network_of(descriptor, "the packed file")


def _network_of(descriptor: Any, weights: str) -> nn.Module:
    """Return what spandrel built, if it is for super-resolution, with what the framework asks of a network."""
    name = descriptor.architecture.name
    if getattr(descriptor, "purpose", None) not in ("SR", "Restoration", "FaceSR"):
        raise UserError(f"'{weights}' holds a {name} network, which is not for super-resolution; choose another file")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise UserError(f"'{weights}' holds a {name} network for {descriptor.input_channels} image channels; only RGB "
                        "networks are supported, choose another file")
    network: nn.Module = descriptor.model
    requirements = descriptor.size_requirements
    network.upscale_factor = descriptor.scale
    network.minimum_size = requirements.minimum
    if requirements.multiple_of > 1 and descriptor.architecture.id not in PAD_THEMSELVES:
        network.window_multiple = requirements.multiple_of
    return network


def _describe(state: dict[str, Tensor], weights: str) -> Any:
    """Let spandrel find the architecture and build it."""
    load_torchvision()
    spandrel = importlib.import_module("spandrel")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        try:
            return spandrel.ModelLoader(torch.get_default_device()).load_from_state_dict(state)
        except spandrel.UnsupportedModelError as error:
            raise UserError(f"'{weights}': spandrel recognises no network in this file; check that it holds the "
                            "weights of one super-resolution network, or name the arch instead") from error
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            reason = str(error).strip().rpartition("\n")[2].strip() or type(error).__name__
            raise UserError(f"'{weights}' looks like a known network but cannot be loaded ({reason}); "
                            "restore it from a copy") from error


def _outline(weights: str) -> dict[str, Tensor]:
    """Read a file's names and shapes; large floating-point tensors come as zeros that take no memory."""
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # not a torch archive, or an unsound one: the careful reader says which
        content = load_file(weights)
    for key in ("params_ema", "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"'{weights}' holds no state dict (a map of names to tensors)")
    return {
        name.removeprefix("module."): torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
        if tensor.is_floating_point() and tensor.numel() > OUTLINE_LIMIT else tensor
        for name, tensor in content.items()
    }


def basicsr_network(name: str) -> type[nn.Module]:
    """Return the class that basicsr's own registry of archs has under a name.

    Raises:
        UserError: basicsr is not installed or has no such arch.
    """
    load_basicsr()
    importlib.import_module("basicsr.archs")
    table = importlib.import_module("basicsr.utils.registry").ARCH_REGISTRY
    for candidate in (name, f"{name}_basicsr"):
        if candidate in table:
            found: type[nn.Module] = table.get(candidate)
            return found
    known = sorted(entry.removesuffix("_basicsr") for entry, _ in table)
    raise UserError(f"basicsr has no network '{name}'{nearest(name, known)}; known: {', '.join(known)}")
