"""Native window attention and SwinIR blocks against the simulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr_quant.archs.swinir import SwinBlock, SwinIR
from basicsr_quant.archs.window_attention import merge, partition, shift_mask
from basicsr_quant.deploy import native
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.native.attention import NativeSwinBlock, NativeWindowAttention
from basicsr_quant.deploy.native.library import Library
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.report.bench.networks import LINES

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler, or native kernels switched off")


@pytest.fixture(params=native.usable_levels())
def kernels(request: pytest.FixtureRequest) -> Library:
    return native.load_level(request.param)


def network(bits: int, channels: int, heads: int, window: int, depth: int = 2) -> tuple[SwinIR, torch.Tensor]:
    torch.manual_seed(bits)
    model = SwinIR(2, depths=[depth], embed_dim=channels, num_heads=[heads], window_size=window, img_size=64).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3 if "table" not in name else 1.0)
    tensors = {name: {"bits": bits, "observer": "minmax"} for name in ("weight", "activation")}
    quantized = prepare(model, QuantPlan.parse(LINES, tensors)).eval()
    images = torch.rand(2, 3, 3 * window, 2 * window)
    calibrate(quantized, [images])
    return freeze(quantized), images  # type: ignore[return-value]


@pytest.mark.parametrize(("bits", "channels", "heads", "window"),
                         [(8, 60, 6, 8), (4, 60, 6, 8), (2, 12, 2, 4), (8, 40, 2, 8), (6, 16, 1, 12)])
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_attention(bits: int, channels: int, heads: int, window: int, shift: bool, kernels: Library) -> None:
    model, images = network(bits, channels, heads, window)
    block = model.layers[0].residual_group.blocks[int(shift)]  # type: ignore[union-attr, index]
    assert isinstance(block, SwinBlock)
    assert bool(block.shift) == shift
    size = (3 * window, 2 * window)
    seen: list[torch.Tensor] = []
    tokens = torch.randn(2, size[0] * size[1], channels)
    with block.attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        mask = shift_mask(size, window, block.shift, tokens) if shift else None
        before: list[torch.Tensor] = []
        with block.attn.proj.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0])):
            block(tokens, size, mask, None)
    qkv = merge(seen[0], size, window, block.shift)
    wanted = merge(before[0], size, window, block.shift)
    assert torch.equal(partition(qkv, size, window, block.shift), seen[0])
    found = NativeWindowAttention(block.attn, window, block.shift, kernels)(qkv, size)
    difference = (found - wanted).abs()
    assert (difference > 1e-5 * wanted.abs().max()).float().mean() < 0.02
    assert difference.norm() < 5e-3 * wanted.norm()


@pytest.mark.parametrize(("bits", "channels", "heads"), [(4, 24, 2), (8, 48, 8)])
@torch.no_grad()
def test_network_of_native_blocks(bits: int, channels: int, heads: int, kernels: Library) -> None:
    model, images = network(bits, channels, heads, 8, depth=3)
    wanted = model(images)
    with torch.no_grad():
        noise = (wanted - model(images + 1e-6)).norm()
    group = model.layers[0].residual_group  # type: ignore[union-attr]
    group.blocks = nn.ModuleList(NativeSwinBlock(block, kernels) for block in group.blocks)  # type: ignore[union-attr, arg-type]
    found = model(images)
    assert (found - wanted).norm() <= max(2 * float(noise), 1e-2 * float((wanted - wanted.mean()).norm()))


@torch.no_grad()
def test_refused() -> None:
    model, images = network(4, 12, 2, 4)
    block = model.layers[0].residual_group.blocks[0]  # type: ignore[union-attr, index]
    assert isinstance(block, SwinBlock)
    with pytest.raises(ValueError, match="windows of"):
        NativeWindowAttention(block.attn, 6, 0)
    with pytest.raises(ValueError, match="cannot take"):
        NativeWindowAttention(block.attn, 4, 0)(torch.randn(1, 30, 36), (5, 6))
    with pytest.raises(ValueError, match="no frozen"):
        NativeSwinBlock(SwinIR(2, depths=[1], embed_dim=12, num_heads=[2]).layers[0].residual_group.blocks[0])  # type: ignore[union-attr, index, arg-type]
