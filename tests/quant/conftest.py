"""Builders shared by the tests of the quantization core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from basicsr_quant.archs.published.swinir import import_swinir
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

SWINIR_LINES: list[dict[str, Any]] = [
    {"*.attn.qkv": {"split_out": 3, "weight": {}, "activation": {}}},
    {"*.attn.proj": {"weight": {}, "activation": {}}},
    {"*.mlp.fc?": {"weight": {}, "activation": {}}},
    {"*.attn.*": {"activation": {}}},
]


def tensor_defaults(bits: int = 4, observer: Any = "dobi") -> dict[str, dict[str, Any]]:
    return {name: {"bits": bits, "observer": observer} for name in ("weight", "activation")}


@pytest.fixture(scope="session")
def published(fixtures: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    """Tensors of one 2DQuant fixture file."""
    return lambda name: load_file(fixtures / "2dquant" / f"{name}.safetensors")


@pytest.fixture(scope="session")
def tiny_fp(published: Callable[[str], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return published("tiny_swinir_fp")


@pytest.fixture(scope="session")
def tiny_swinir(tiny_fp: dict[str, torch.Tensor]) -> Callable[[], SwinIR]:
    """Maker of the fixture's full-precision network."""
    prefix = "weights."
    state = {name.removeprefix(prefix): value for name, value in tiny_fp.items() if name.startswith(prefix)}

    def make() -> SwinIR:
        network = SwinIR(upscale=2, img_size=32, depths=(2, 2), embed_dim=24, num_heads=(3, 3)).eval()
        network.load_state_dict(import_swinir(state))
        return network

    return make


@pytest.fixture(scope="session")
def swinir_plan() -> Callable[..., QuantPlan]:
    """Maker of 2DQuant's plan: (bits, observer='dobi')."""
    return lambda bits, observer="dobi": QuantPlan.parse(SWINIR_LINES, tensor_defaults(bits, observer))


@pytest.fixture(scope="session")
def prepared_swinir(
    tiny_swinir: Callable[[], SwinIR], swinir_plan: Callable[..., QuantPlan]
) -> Callable[..., nn.Module]:
    """Maker of the prepared tiny network: (bits=4, observer='dobi')."""
    return lambda bits=4, observer="dobi": prepare(tiny_swinir(), swinir_plan(bits, observer))


class Perceptron(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


@pytest.fixture
def perceptron() -> Perceptron:
    torch.manual_seed(0)
    return Perceptron()


@pytest.fixture
def prepared_perceptron(perceptron: Perceptron) -> Callable[..., nn.Module]:
    return lambda bits=4, observer="minmax": prepare(
        perceptron, QuantPlan.parse([{"fc?": {"weight": {}, "activation": {}}}], tensor_defaults(bits, observer)))
