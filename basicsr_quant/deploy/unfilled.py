"""Networks whose values come from a file: no time and no memory is spent on initial ones."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_INITIALIZERS = frozenset(function for name, function in vars(nn.init).items()
                          if name.endswith("_") and not name.startswith("_"))


class Unfilled(TorchFunctionMode):
    """Context in which ``torch.nn.init`` leaves parameters as they are (but for what it does by rejection).

    Memory that is never written is not taken from the system, so that a network of any size can be built at once.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _INITIALIZERS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
