"""Operands become quantizers themselves."""

from __future__ import annotations

from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.table import register_quant_module
from basicsr_quant.quant.operand import Operand
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe


@register_quant_module(Operand)
class QuantOperand(Quantizer):
    """A quantizer in the place of a named operand."""

    @classmethod
    def from_module(cls, module: nn.Module, recipe: Recipe) -> nn.Module:
        """Return the quantizer.

        Raises:
            UserError: The recipe has no ``activation`` part.
        """
        if recipe.activation is None:
            raise UserError("an operand has no weight; its recipe needs an 'activation' part")
        return cls(recipe.activation)
