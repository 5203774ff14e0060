"""Parameters, operations and bytes of SwinIR-light x4 as 2DQuant's paper counts them, and as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.quant.accounting import Account, account
from basicsr_quant.quant.conventions import swinir_light_conventions
from basicsr_quant.quant.prepare import prepare


@pytest.fixture(scope="module")
def accounts(swinir_plan) -> dict[int, Account]:
    """Bits -> counts for a 128 x 128 input."""
    found = {}
    for bits in (2, 3, 4):
        with torch.device("meta"):
            network = prepare(SwinIR(upscale=4), swinir_plan(bits))
        found[bits] = account(network, (1, 3, 128, 128))
    return found


def test_honest_counts(accounts) -> None:
    found = accounts[4]
    assert found.total_parameters == 929_628
    assert found.quantized_parameters == 691_200
    assert found.bounds == 768
    assert found.packed_bytes == 1_302_384
    assert found.float_bytes == 4 * 929_628
    assert len(found.codes) == 144


def test_operations(accounts) -> None:
    """Specification 7.2: 11.325 G in Linears, 3.020 G in products, 3.105 G in convolutions."""
    by_kind: dict[str, int] = {}
    for layer in accounts[4].layers:
        by_kind[layer.kind] = by_kind.get(layer.kind, 0) + layer.macs
    assert by_kind["linear"] == pytest.approx(11.325e9, rel=1e-3)
    assert by_kind["matmul"] == pytest.approx(3.020e9, rel=1e-3)
    assert by_kind["conv2d"] == pytest.approx(3.105e9, rel=1e-3)
    assert accounts[4].macs == pytest.approx(17.450e9, rel=1e-3)


@pytest.mark.parametrize(("bits", "parameters", "published", "correct"), [
    (4, 3.068, 3.992, 3.562), (3, 3.313, 4.470, 3.921), (2, 3.600, 5.077, 4.360)])
def test_published_ratios(accounts, bits: int, parameters: float, published: float, correct: float) -> None:
    corrected, upstream = swinir_light_conventions(scale=4)
    assert corrected.parameter_ratio(accounts[bits]) == pytest.approx(parameters, abs=5e-4)
    assert upstream.parameter_ratio(accounts[bits]) == pytest.approx(parameters, abs=5e-4)
    for convention, ratio in ((upstream, published), (corrected, correct)):
        full, quantized = convention.operations(accounts[bits])
        assert full / quantized == pytest.approx(ratio, abs=5e-4)
    assert upstream.operations(accounts[bits])[0] == pytest.approx(16.746e9, rel=1e-3)


def test_operands_count_as_quantized(accounts) -> None:
    rows = {layer.name: layer for layer in accounts[3].layers}
    product = rows["layers.0.residual_group.blocks.0.attn:matmul#0"]
    assert (product.weight_bits, product.activation_bits) == (3, 3)
    part = rows["layers.0.residual_group.blocks.0.attn.qkv.parts.0"]
    assert (part.shape, part.quantized_parameters, part.parameters) == ((60, 60), 3600, 3660)
    assert not rows["conv_first"].is_quantized


def test_plain_networks_and_keyword_calls() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 4)
            self.convolution = nn.Conv2d(4, 2, 3, padding=1, groups=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.conv2d(self.norm(x), weight=self.convolution.weight, padding=1, groups=2)
            return torch.matmul(x, other=x.mT)

    found = account(Keywords(), (1, 4, 8, 8))
    assert {layer.kind: layer.macs for layer in found.layers} == {
        "norm": 4 * 64, "conv2d": 64 * 2 * 2 * 9, "matmul": 2 * 8 * 8 * 8}
    assert (found.bounds, found.packed_bytes) == (0, found.float_bytes)
    assert all(not layer.is_quantized for layer in found.layers)
