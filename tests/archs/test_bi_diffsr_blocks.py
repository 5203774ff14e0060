"""The blocks of BI-DiffSR against numbers recorded from its released code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr_quant.archs.bi_diffsr_blocks import CPDown, CPUp, CSFusion
from basicsr_quant.archs.diffusion_blocks import SelfAttention, Step, full_precision
from basicsr_quant.archs.published.bi_diffsr import import_bi_diffsr
from basicsr_quant.archs.seeded_dropout import seeded_dropout, uniform_from_seeds
from basicsr_quant.archs.timestep_embedding import TimestepEmbedding, check_timesteps, sinusoids
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.binarizers import bi_conv
from basicsr_quant.quant.binary.unit import BinaryUnit

PRECISIONS = [(torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-10)]


def _load(fixtures: Path, name: str) -> dict[str, Tensor]:
    return load_file(fixtures / "bi_diffsr" / f"{name}.safetensors")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return import_bi_diffsr({name.removeprefix(prefix): value for name, value in tensors.items()
                             if name.startswith(prefix)})


def _three_groups(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    return BinaryUnit(in_channels, out_channels, kernel_size, bi_conv(), 3, 3)


def _run(module: nn.Module, x: Tensor, step: Step) -> Tensor:
    return module(*x.chunk(2, dim=1), step) if isinstance(module, CSFusion) else module(x, step)


def _compare(module: nn.Module, tensors: dict[str, Tensor], step: Step, mark: str) -> None:
    """Compare outputs and gradients; ``mark`` is the part of the names that tells groups apart."""
    for dtype, suffix, tolerance in PRECISIONS:
        module = module.to(dtype)
        module.zero_grad()
        x = tensors["x0"].to(dtype, copy=True).requires_grad_()
        y = _run(module, x, step)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)).sum().backward()
        torch.testing.assert_close(y, tensors[f"y{mark}.{suffix}"], rtol=0, atol=tolerance)
        torch.testing.assert_close(x.grad, tensors[f"dx{mark}.{suffix}"], rtol=0, atol=tolerance)
    expected = _part(tensors, f"grad{mark}.f64.")
    assert {name for name, parameter in module.named_parameters() if parameter.grad is not None} == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(module.get_parameter(name).grad, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("group", range(3))
@pytest.mark.parametrize(("name", "make"), [
    ("cp_down", lambda: CPDown(8, _three_groups)), ("cp_up", lambda: CPUp(8, _three_groups)),
    ("cs_fusion", lambda: CSFusion(8, _three_groups))])
def test_released_binary_blocks(fixtures: Path, name: str, make: Callable[[], nn.Module], group: int) -> None:
    tensors = _load(fixtures, name)
    module = make()
    module.load_state_dict(_part(tensors, "param."))
    _compare(module, tensors, Step(torch.empty(0), group, None), f".t{group}")


def test_released_fusion_in_full_precision(fixtures: Path) -> None:
    tensors = _load(fixtures, "cs_fusion_fp")
    module = CSFusion(8, full_precision)
    module.load_state_dict(_part(tensors, "param."))
    _compare(module, tensors, Step(torch.empty(0), 0, None), "")


def test_released_sinusoids(fixtures: Path) -> None:
    tensors = _load(fixtures, "timestep_embedding")
    for channels in (16, 64):
        torch.testing.assert_close(sinusoids(tensors["t"], channels), tensors[f"pe{channels}"], rtol=0, atol=1e-6)


def test_sinusoids_do_not_suffer_from_half_precision() -> None:
    timesteps = torch.tensor([1960, 40])
    network = TimestepEmbedding(16)
    full = network(timesteps)
    half = network.bfloat16()(timesteps)
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.02)


def test_attention_is_that_of_all_positions() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 4).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    query, key, value = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)
    weights = torch.einsum("bcn,bcm->bnm", query, key).div(8**0.5).softmax(-1)
    mixed = torch.einsum("bnm,bcm->bcn", weights, value).view(2, 8, 3, 5)
    torch.testing.assert_close(attention(x), attention.out(mixed) + x)


def test_timesteps_are_checked_on_the_host() -> None:
    check_timesteps([0, 1999], 2000)
    for timestep in (-1, 2000):
        with pytest.raises(UserError, match=f"timestep {timestep} is out of range") as raised:
            check_timesteps([0, timestep], 2000)
        assert "\n" not in str(raised.value)


def test_seeded_dropout_depends_on_seed_and_place_alone() -> None:
    x = torch.randn(3, 4, 6, 5)
    draws = torch.tensor([0.25, 0.5, 0.999])
    together = seeded_dropout(x, 0.2, draws)
    apart = [seeded_dropout(x[index:index + 1], 0.2, draws[index:index + 1]) for index in range(3)]
    assert torch.equal(together, torch.cat(apart))
    assert torch.equal(together, seeded_dropout(x.to(memory_format=torch.channels_last), 0.2, draws))
    kept = together != 0
    torch.testing.assert_close(together[kept], x[kept] / 0.8)


def test_seeded_dropout_looks_random() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = uniform_from_seeds(torch.rand(64, generator=generator), torch.Size((8, 32, 32))).double()
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    count = numbers.numel()
    assert float(numbers.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / count) ** 0.5)
    parts = torch.histc(numbers, 64, 0, 1) / count * 64
    assert float((parts - 1).abs().max()) < 0.03
    centred = (numbers - 0.5) * 12**0.5
    for other in (centred.roll(1, 0), centred.roll(1, 1), centred.roll(1, 2), centred.roll(1, 3), centred.roll(8, 3)):
        assert abs(float((centred * other).mean())) < 5 / count**0.5
    neighbours = uniform_from_seeds(torch.arange(64) / 2**24, torch.Size((8192,))).double()
    assert abs(float(torch.corrcoef(neighbours).fill_diagonal_(0).abs().max())) < 0.08
