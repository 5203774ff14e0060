"""Learning transformations and bounds of OSEDiff's networks: gradients, checkpointing, errors that get smaller."""

from __future__ import annotations

import pytest
import torch
from passionsr_networks import CORRECTED, RELEASED, example, narrow, prepared, run
from torch import nn

from basicsr_quant.quant.bounds import RelativeSteps, bound_parameters, order_keeper, range_scales
from basicsr_quant.quant.calibrate import calibrate, check_bounds
from basicsr_quant.quant.let_calibration import calibrate_in_one_pass, calibrate_scales_first, renewed_bounds
from basicsr_quant.quant.let_learning import scale_keeper, transformation_parameters, transformation_units


def calibrated(released: bool = False, bits: int = 4) -> nn.Module:
    rules = {"split": "half", **RELEASED} if released else {"split": "concat", **CORRECTED}
    network = prepared("unet", narrow("unet"), weight_bits=bits, activation_bits=bits, **rules)
    order = calibrate_in_one_pass if released else calibrate_scales_first
    order(network, [example("unet")], forward=lambda x: run("unet", network, x))
    return network


def loss(network: nn.Module, target: torch.Tensor) -> torch.Tensor:
    return (run("unet", network, example("unet")) - target).square().mean()


def test_all_parameters_of_a_stage_get_gradients() -> None:
    target = run("unet", narrow("unet"), example("unet"))
    network = calibrated(released=True)
    learned = transformation_parameters(network)
    assert len(learned) == 2 * 282 + 2 * 32
    with renewed_bounds(network):
        loss(network, target).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in learned)
    network.zero_grad()
    bounds = bound_parameters(network)
    assert len(bounds) == 2 * (282 * 4 + 186 + 32 * 4)
    loss(network, target).backward()
    assert all(bound.grad is not None and torch.isfinite(bound.grad).all() for bound in bounds)
    assert all(parameter.grad is None for parameter in learned)


@pytest.mark.parametrize("renewed", [False, True])
def test_checkpointed_activations_give_the_same_gradients(renewed: bool) -> None:
    target = run("unet", narrow("unet"), example("unet"))
    found = []
    for checkpointing in (False, True):
        network = calibrated(bits=8)
        if checkpointing:
            network.enable_gradient_checkpointing()
            network.train()
        learned = transformation_parameters(network)
        if renewed:
            with renewed_bounds(network):
                loss(network, target).backward()
        else:
            loss(network, target).backward()
        found.append([parameter.grad for parameter in learned])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("stage", ["transformation", "bounds"])
def test_relative_steps_make_the_error_smaller(stage: str) -> None:
    target = run("unet", narrow("unet"), example("unet"))
    network = calibrated()
    if stage == "transformation":
        parameters, units = transformation_parameters(network), transformation_units(network)
    else:
        parameters, units = bound_parameters(network), range_scales(network)
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    RelativeSteps(optimizer, units)
    keepers = order_keeper(network, 0.1), scale_keeper(network, 0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        value = loss(network, target)
        value.backward()
        optimizer.step()
        for keep in keepers:
            keep()
        losses.append(float(value.detach()))
    assert min(losses[1:]) < 0.95 * losses[0]
    check_bounds(network, "learning")


def test_calibrating_again_forgets_what_was_learned() -> None:
    network = calibrated(bits=8)
    wanted = {name: value.clone() for name, value in network.state_dict().items()}
    for bound in bound_parameters(network):
        bound.data += 1
    calibrate(network, [example("unet")], forward=lambda x: run("unet", network, x))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
