"""Quantized matrix products and softmaxes inside networks that we did not write, without tracing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from basicsr_quant.errors import UserError
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe

MATMUL = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__}
SOFTMAX = {torch.softmax, functional.softmax, torch.Tensor.softmax}
OPERAND_KEYWORDS = ("input", "other", "tensor2", "mat2")
Visit = Callable[[str, str, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


class Places:
    """Names the operations of a forward pass: ``module:matmul#0``, counted per call of the innermost module."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack: list[tuple[str, dict[str, int]]] = []

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow which module is running, by hooks that are removed afterwards."""
        handles = []
        self._stack = [("", {})]
        for name, module in self._model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._stack.append((name, {}))

        return hook

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()

    @property
    def module(self) -> str:
        """Name of the innermost module that is running."""
        return self._stack[-1][0]

    def here(self, operation: str) -> tuple[str, str]:
        """Return the running module's name and the name of this operation in it, and count it."""
        name, counts = self._stack[-1]
        number = counts.get(operation, 0)
        counts[operation] = number + 1
        return name, f"{name}:{operation}#{number}"


class _Intercept(TorchFunctionMode):
    """Give ``visit`` the operands of matrix products and softmaxes before they are computed."""

    def __init__(self, places: Places, visit: Visit) -> None:
        super().__init__()
        self._places, self._visit = places, visit

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            with self:
                return explicit_attention(*args, **kwargs)
        for operation, functions, count in (("matmul", MATMUL, 2), ("softmax", SOFTMAX, 1)):
            if function in functions:
                operands = self._visit(*self._places.here(operation), operands_of(args, kwargs)[:count])
                rest = {name: value for name, value in kwargs.items() if name not in OPERAND_KEYWORDS}
                return function(*operands, *args[count:], **rest)
        return function(*args, **kwargs)


def operands_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the operands of a call, given by position or by keyword, first of all arguments."""
    return args + tuple(kwargs[name] for name in OPERAND_KEYWORDS if name in kwargs)


def operand_name(place: str, side: str) -> str:
    """Return the module name of an operand's quantizer; module names hold no dots of their own."""
    return f"{place.replace('.', '/')}:{side}"


def explicit_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                       attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
                       scale: float | None = None, enable_gqa: bool = False) -> torch.Tensor:
    """Return scaled-dot-product attention as two matrix products and a softmax, so that their operands can be seen.

    Raises:
        UserError: Dropout, causal masks or grouped queries are asked for; no super-resolution network does.
    """
    if dropout_p or is_causal or enable_gqa:
        raise UserError("attention with dropout, a causal mask or grouped queries cannot be quantized by 'op:' lines")
    logits = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return torch.matmul(torch.softmax(logits, -1), value)


class QuantizedModel(nn.Module):
    """A network whose matrix products and softmaxes have quantized operands.

    Quantizers are ``operands.<place>`` with places such as ``blocks.0.attn:matmul#0:lhs``, dots replaced by slashes.
    Every attribute that is not ours is the network's own. ``torch.compile`` cannot follow the interception:
    ``compile()`` is refused, and inside somebody else's compiled code this model runs as it is.

    Args:
        network: Prepared network.
        quantizers: :func:`operand_name` -> its quantizer.
    """

    def __init__(self, network: nn.Module, quantizers: dict[str, Quantizer]) -> None:
        super().__init__()
        self.network = network
        self.operands = nn.ModuleDict(quantizers)
        self._places = Places(network)

    @classmethod
    def record(cls, network: nn.Module, plan: QuantPlan,
               example_input: torch.Tensor) -> tuple[QuantizedModel, set[int]]:
        """Run a network once and put quantizers where ``op:`` lines match; also return the indices of these lines."""
        places = Places(network)
        quantizers: dict[str, Quantizer] = {}
        used: set[int] = set()
        parameter = next(network.parameters())

        def visit(module: str, place: str, operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            found = plan.recipe_for(module, place.split(":")[-1])
            if found is None:
                return operands
            used.add(found[0])
            if found[1] is not None:
                for side, recipe in _sides(found[1]):
                    quantizers[operand_name(place, side)] = Quantizer(recipe).to(parameter.device, parameter.dtype)
            return operands

        with torch.no_grad(), places.following(), _Intercept(places, visit):
            network(example_input)
        return cls(network, quantizers), used

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            UserError: Always.
        """
        raise UserError("a network quantized by 'op:' lines cannot be compiled; set train:compile=false")

    @torch.compiler.disable(reason="calls are intercepted")  # type: ignore[no-untyped-call, untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with rounded operands."""
        def visit(module: str, place: str, operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            names = [operand_name(place, side) for side in ("lhs", "rhs")[: len(operands)]]
            return tuple(self.operands[name](operand) if name in self.operands else operand
                         for name, operand in zip(names, operands, strict=True))

        with self._places.following(), _Intercept(self._places, visit):
            return self.network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Look an attribute up here, then in the network (``window_multiple``, ``upscale_factor``)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


def _sides(recipe: Recipe) -> list[tuple[str, Any]]:
    return [(side, part) for side, part in (("lhs", recipe.lhs), ("rhs", recipe.rhs)) if part is not None]


def inner_network(model: nn.Module) -> nn.Module:
    """Return the network inside a :class:`QuantizedModel`, or the model itself."""
    return model.network if isinstance(model, QuantizedModel) else model
