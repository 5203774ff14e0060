"""PassionSR's published weight files to and from our names: dicts to dicts.

The files hold transformations, bounds and norms, but neither weights nor bit-widths.

Source: PassionSR specification 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from basicsr_quant.archs.published.passionsr import Component, to_diffusers, to_ldm
from basicsr_quant.errors import UserError

State = dict[str, Tensor]

PREFIX = "model.model."
UNSET_BOUND = 0.5
_KINDS = {"weight_quantizer": "weight_quantizer", "act_quantizer": "activation_quantizer",
          "bias_quantizer": "bias_quantizer", "act_quantizer_q": "processor.query_quantizer",
          "act_quantizer_k": "processor.key_quantizer", "act_quantizer_v": "processor.value_quantizer",
          "act_quantizer_w": "processor.map_quantizer"}
_VECTORS = {"scale_factor": "let.scale.value", "offset": "let.offset", "scale_factor_qk": "processor.scale_qk.value",
            "scale_factor_vw": "processor.scale_av.value"}
_BOUNDS = {"x_min": "lower_bound", "x_max": "upper_bound"}
_PUBLISHED_KINDS, _PUBLISHED_VECTORS, _PUBLISHED_BOUNDS = (
    {ours: theirs for theirs, ours in names.items()} for names in (_KINDS, _VECTORS, _BOUNDS))

_BOUND = re.compile(r"(?P<layer>.+)\.(?P<kind>(?:weight|act)_quantizer(?=_\d)|bias_quantizer|act_quantizer_[qkvw])"
                    r"(?:_(?P<part>[01]))?\.(?P<bound>x_min|x_max)")
_VECTOR = re.compile(r"(?P<layer>.+)\.(?P<kind>scale_factor_qk|scale_factor_vw|scale_factor|offset)")
_NORM = re.compile(r".+\.(?:weight|bias)")
_OUR_BOUND = re.compile(r"(?P<layer>.+?)\.(?P<kind>(?:processor\.)?\w+_quantizer)(?:\.parts\.(?P<part>[01]))?"
                        r"\.(?P<bound>lower_bound|upper_bound)")
_OUR_VECTOR = re.compile(r"(?P<layer>.+)\.(?P<kind>let\.scale\.value|let\.offset|processor\.scale_\w+\.value)")


def import_passionsr(component: Component, state: Mapping[str, Tensor], where: str) -> tuple[State, State]:
    """Return (transformations and bounds, norms) under our names.

    Args:
        component: Which network.
        state: Content of ``unet_ckpt_merge_<method>.pth`` or ``vae_ckpt_merge_<method>.pth``.
        where: Names the file in messages.

    Raises:
        UserError: An unknown key, or the bounds of a quantizer that never saw data.
    """
    quantized: State = {}
    norms: State = {}
    for key, tensor in state.items():
        if not key.startswith(PREFIX):
            raise UserError(f"{where}: unknown key '{key}'; this is no PassionSR checkpoint")
        name = key.removeprefix(PREFIX)
        bound, vector = _BOUND.fullmatch(name), _VECTOR.fullmatch(name)
        if bound:
            if tensor.dtype == torch.float64 and tensor.dim() == 0 and abs(float(tensor)) == UNSET_BOUND:
                raise UserError(f"{where}: '{key}' was never set, its quantizer saw no data; take a complete file")
            layer, part = to_diffusers(component, bound["layer"]), ""
            if bound["part"] and _other_part(key) in state:
                part = f".parts.{bound['part']}"
            shape = _our_shape(component, layer, tensor)
            quantized[f"{layer}.{_KINDS[bound['kind']]}{part}.{_BOUNDS[bound['bound']]}"] = tensor.reshape(shape)
        elif vector:
            layer = to_diffusers(component, vector["layer"])
            quantized[f"{layer}.{_VECTORS[vector['kind']]}"] = tensor.flatten()
        elif _NORM.fullmatch(name):
            norms[to_diffusers(component, name)] = tensor
        else:
            raise UserError(f"{where}: unknown key '{key}'; this is no PassionSR checkpoint")
    return quantized, norms


def export_passionsr(component: Component, state: Mapping[str, Tensor]) -> State:
    """Return the published form of a prepared network's state; weights and biases of quantized layers are left out.

    Args:
        component: Which network.
        state: State dict of the prepared network, whose layers all have transformations.
    """
    published: State = {}
    for name, tensor in state.items():
        bound, vector = _OUR_BOUND.fullmatch(name), _OUR_VECTOR.fullmatch(name)
        if bound:
            kind = _PUBLISHED_KINDS[bound["kind"]]
            part = f"_{bound['part'] or 0}" if bound["kind"] in ("weight_quantizer", "activation_quantizer") else ""
            key = f"{to_ldm(component, bound['layer'])}.{kind}{part}.{_PUBLISHED_BOUNDS[bound['bound']]}"
            value = tensor.reshape(_published_shape(component, bound["layer"], tensor))
        elif vector:
            key = f"{to_ldm(component, vector['layer'])}.{_PUBLISHED_VECTORS[vector['kind']]}"
            value = tensor
            if vector["kind"].startswith("let."):
                layer = vector["layer"]
                convolution = state[f"{layer}.weight"].dim() == 4 or _is_projection(component, layer)
                value = tensor.view(1, -1, 1, 1) if convolution else tensor.view(1, -1)
        elif f"{name.rpartition('.')[0]}.let.offset" not in state:
            key, value = to_ldm(component, name), tensor
        else:
            continue
        published[PREFIX + key] = value
    return published


def _other_part(key: str) -> str:
    head, number, tail = re.split(r"_([01])(?=\.x_)", key)
    return f"{head}_{1 - int(number)}{tail}"


def _is_projection(component: Component, layer: str) -> bool:
    """Whether a layer is a projection of the VAE's attention: a Linear here, a 1x1 Conv2d in the files."""
    return component == "vae" and ".attentions." in layer


def _our_shape(component: Component, layer: str, bound: Tensor) -> tuple[int, ...]:
    if bound.dim() == 0:
        return (1,)
    return (len(bound), 1) if _is_projection(component, layer) else tuple(bound.shape)


def _published_shape(component: Component, layer: str, bound: Tensor) -> tuple[int, ...]:
    if bound.dim() == 1:
        return ()
    return (len(bound), 1, 1, 1) if _is_projection(component, layer) else tuple(bound.shape)
