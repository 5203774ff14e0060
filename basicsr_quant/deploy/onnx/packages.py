"""The packages of the extra ``[onnx]``, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from basicsr_quant.errors import UserError


def onnx_package(name: str) -> ModuleType:
    """Import ``onnx`` or ``onnxruntime``.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"the package '{name}' is not installed; install the extra [onnx]: "
                        "`pip install -c constraints.txt -e '.[onnx]'`") from error
