"""Repaired imports of torchvision and basicsr, made on first use; importing this module patches nothing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import types

from basicsr_quant.errors import UserError

_LOCK = threading.RLock()
_DEFINED_OPERATORS: list[object] = []
_FUNCTIONAL_TENSOR = "torchvision.transforms.functional_tensor"


def load_torchvision() -> types.ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    Only if the plain import fails for want of ``torchvision::nms`` are the schemas of ``nms`` and ``qnms`` defined and
    the import repeated. Transforms, models and utils then work; ``torchvision.io`` and ``torchvision.ops.nms`` do not.

    Returns:
        The module.

    Raises:
        UserError: torchvision is not installed.
    """
    with _LOCK:
        try:
            return _import("torchvision", "pip install -c constraints.txt torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        _define_torchvision_operators()
        return importlib.import_module("torchvision")


def load_basicsr() -> types.ModuleType:
    """Import basicsr 1.4.2 beside a torchvision that no longer has ``transforms.functional_tensor``.

    Returns:
        The module.

    Raises:
        UserError: basicsr or torchvision is not installed.
    """
    with _LOCK:
        load_torchvision()
        if _FUNCTIONAL_TENSOR not in sys.modules and importlib.util.find_spec(_FUNCTIONAL_TENSOR) is None:
            substitute = types.ModuleType(_FUNCTIONAL_TENSOR, "Stands in for the module that torchvision 0.17 removed.")
            functional = importlib.import_module("torchvision.transforms.functional")
            vars(substitute)["rgb_to_grayscale"] = functional.rgb_to_grayscale
            sys.modules[_FUNCTIONAL_TENSOR] = substitute
        return _import("basicsr", "pip install --no-deps --no-build-isolation basicsr==1.4.2")


def _import(name: str, command: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"the package '{name}' is not installed; install it with `{command}`") from error


def _define_torchvision_operators() -> None:
    import torch

    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DEFINED_OPERATORS.append(fragment)
