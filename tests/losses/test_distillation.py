"""Distances to the teacher."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from basicsr_quant.losses.distillation import (
    FEATURE_DISTANCES,
    batch_broadcast_distance,
    pixel_distance,
    relative_distance,
    unit_norm_distance,
)
from basicsr_quant.losses.pixel import L1Loss


def test_released_losses_and_gradients(fixtures) -> None:
    record = load_file(fixtures / "2dquant" / "dqc_loss.safetensors")
    names = ("output_Q", "feature_Q_0", "feature_Q_1")
    output, *features = (record[name].clone().requires_grad_() for name in names)
    pixel = pixel_distance(L1Loss(), output, record["output_F"], "twice")
    distances = [5 * batch_broadcast_distance(feature, record[f"feature_F_{index}"])
                 for index, feature in enumerate(features)]
    (pixel + sum(distances)).backward()
    torch.testing.assert_close(pixel.reshape(1), record["l_pix"].to(pixel.dtype), rtol=1e-5, atol=0)
    for index, distance in enumerate(distances):
        wanted = record[f"l_feature_{index}"].to(distance.dtype)
        torch.testing.assert_close(distance.reshape(1), wanted, rtol=1e-5, atol=0)
        wanted = record[f"grad_feature_Q_{index}"]
        torch.testing.assert_close(features[index].grad, wanted, rtol=1e-5, atol=float(1e-6 * wanted.abs().max()))
    torch.testing.assert_close(output.grad, record["grad_output_Q"], rtol=1e-5, atol=0)


def test_other_definitions(fixtures) -> None:
    record = load_file(fixtures / "2dquant" / "tiny_swinir_dqc.safetensors")
    output, teacher = record["step1.output_Q"], record["step1.output_F"]
    assert pixel_distance(L1Loss(), output, teacher, "once").item() == pytest.approx(
        record["step1.alt.pixel_plain_mean_l1"].item(), rel=1e-5)
    for index in (0, 1):
        student, teacher = record[f"step1.feature_Q_{index}"], record[f"step1.feature_F_{index}"]
        wanted = record[f"step1.alt.feature_paper_eq5_{index}"].item()
        assert unit_norm_distance(student, teacher).item() == pytest.approx(wanted, rel=1e-4)


def test_batch_broadcast_is_the_literal_formula() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    norms = [feature.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for feature in (student, teacher)]
    literal = (student / norms[0] - teacher / norms[1]).square()
    torch.testing.assert_close(batch_broadcast_distance(student, teacher), literal.mean() / literal.numel())


def test_relative_distance_is_noise_to_signal() -> None:
    teacher = torch.full((2, 3, 4), 2.0)
    assert relative_distance(teacher * 1.1, teacher).item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_equal_features_are_at_distance_zero_with_finite_gradients(name: str) -> None:
    feature = torch.randn(2, 3, 4, requires_grad=True)
    distance = FEATURE_DISTANCES[name](feature, feature.detach().clone())
    distance.backward()
    assert distance.item() == 0
    assert torch.isfinite(feature.grad).all()


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (3, 24, 5)])
def test_attention_transfer(shape: tuple[int, ...]) -> None:
    """As its definition in float64 says, for maps and for tokens; the scale of a sample does not matter."""
    student, teacher = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    maps = []
    for feature in (student, teacher):
        energy = (feature**2).mean(1 if len(shape) == 4 else 2).reshape(3, -1)
        maps.append(energy / energy.square().sum(1, keepdim=True).sqrt())
    found = FEATURE_DISTANCES["attention_transfer"](student, teacher)
    assert found.item() == pytest.approx((maps[0] - maps[1]).square().mean().item(), rel=1e-12)
    assert FEATURE_DISTANCES["attention_transfer"](7 * student, teacher).item() == pytest.approx(found.item())
