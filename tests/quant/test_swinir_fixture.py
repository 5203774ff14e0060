"""Bounds, outputs and learned bounds of a tiny SwinIR against numbers recorded from 2DQuant's released code."""

from __future__ import annotations

import pytest
import torch

from basicsr_quant.archs.published.swinir import export_2dquant, import_2dquant
from basicsr_quant.io.weights import load_state_dict
from basicsr_quant.losses.pixel import L1Loss
from basicsr_quant.models.step import DistillationStep
from basicsr_quant.quant.bounds import bound_parameters
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid

TAPS = ["layers.0.residual_group", "layers.1.residual_group"]


def published_bounds(network, prefix: str = "") -> dict[str, torch.Tensor]:
    """All bounds under their published names."""
    bits = {name: quantizer.bits for name, quantizer in named_quantizers(network)}
    state = export_2dquant(network.state_dict(), bits)
    return {prefix + name: value for name, value in state.items() if name.endswith("_bound")}


def assert_bounds_match(network, record: dict[str, torch.Tensor], prefix: str) -> None:
    found = published_bounds(network, prefix)
    assert set(found) == {name for name in record if name.startswith(prefix) and name.endswith("_bound")}
    assert len(found) == 128
    for name, value in found.items():
        torch.testing.assert_close(value, record[name], rtol=1e-4, atol=1e-7, msg=name)


def assert_outputs_match(output: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor | None = None) -> None:
    """Rounding may flip at a boundary: the tolerance of the fixture's README, or the distance of a float64 run."""
    error = (output - wanted).abs()
    slack = torch.zeros(()) if exact is None else (exact - wanted).abs()
    assert error.mean() < max(1e-3, slack.mean())
    assert error.max() < max(3e-2, slack.max())


@pytest.mark.parametrize("batches", [1, 2, 4])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_calibration_and_output(published, tiny_fp, prepared_swinir, bits: int, batches: int) -> None:
    record, network = published("tiny_swinir_quant"), prepared_swinir(bits)
    calibrate(network, tiny_fp["cali_lq"].chunk(batches))
    assert_bounds_match(network, record, f"b{bits}.")
    with torch.no_grad():
        assert_outputs_match(network(tiny_fp["input"]), record[f"b{bits}.output"])
        images = tiny_fp["cali_lq"][:2]
        output, exact = network(images), network.double()(images.double())
        # One early flip in the second image at 4 bits: float64 arithmetic is farther from the record than we are.
        assert_outputs_match(output, record[f"b{bits}.cali_output"], exact)


def test_calibration_in_train_mode(published, tiny_fp, prepared_swinir) -> None:
    record, network = published("tiny_swinir_quant"), prepared_swinir(4)
    draws = torch.zeros(4, 8)
    for name, keep in record.items():
        if name.endswith(".keep"):
            block = name.removeprefix("b4_trainmode.droppath.").split(".")
            column = 2 * (2 * int(block[1]) + int(block[4])) + int(name[-len("0.keep")])
            draws[:, column] = keep * 0.999
    network.train()
    calibrate(network, [tiny_fp["cali_lq"]], forward=lambda batch: network(batch, drop_path_draws=draws))
    network.eval()
    assert_bounds_match(network, record, "b4_trainmode.")
    with torch.no_grad():
        assert_outputs_match(network(tiny_fp["input"]), record["b4_trainmode.output"])


def test_five_distillation_steps(published, tiny_swinir, prepared_swinir) -> None:
    record, network = published("tiny_swinir_dqc"), prepared_swinir(4)
    prefix = "bounds_init."
    start = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    network.load_state_dict(import_2dquant({**published_weights(network), **start})[0])
    parameters = bound_parameters(network)
    names = list(published_bounds(network))
    optimizer = torch.optim.Adam(parameters, lr=1e-2, betas=(0.9, 0.99))
    teacher = tiny_swinir().requires_grad_(False)
    step = DistillationStep(network, teacher, TAPS, L1Loss(), "twice", 5.0, "batch_broadcast", False)
    for number in range(1, 6):
        losses = step({"lq": record["lq"]})
        sum(losses.values()).backward()
        rtol = 5e-3 if number == 1 else 3e-2
        for ours, theirs in (("pixel", "l_pix"), ("feature", "l_feature")):
            wanted = record[f"step{number}.{theirs}"].item()
            assert losses[ours].item() == pytest.approx(wanted, rel=rtol), (number, ours)
        if number == 1:
            assert_gradients_match(dict(zip(names, parameters, strict=True)), record)
        optimizer.step()
        optimizer.zero_grad()
        if number in (1, 5):
            errors = torch.cat([(value - record[f"bounds_after{number}.{name}"]).abs()
                                for name, value in published_bounds(network).items()])
            assert errors.max() < (2e-3 if number == 1 else 1.5e-2)
            assert errors.mean() < 2e-3


def published_weights(network) -> dict[str, torch.Tensor]:
    return export_2dquant(network.state_dict(), {name: quantizer.bits for name, quantizer in named_quantizers(network)})


def assert_gradients_match(bounds: dict[str, torch.Tensor], record: dict[str, torch.Tensor]) -> None:
    ratios = []
    for name, bound in bounds.items():
        wanted = record[f"step1.grad.{name}"]
        error = (bound.grad - wanted).abs()
        assert (error <= 0.2 * wanted.abs() + 2e-9).all(), name
        ratios.append(error / wanted.abs().clamp_min(1e-30))
    assert torch.cat(ratios).median() < 0.02


def test_adam_given_the_recorded_gradients(published) -> None:
    record = published("tiny_swinir_dqc")
    for name in [name.removeprefix("bounds_init.") for name in record if name.startswith("bounds_init.")]:
        bound = torch.nn.Parameter(record[f"bounds_init.{name}"].clone())
        bound.grad = record[f"step1.grad.{name}"]
        torch.optim.Adam([bound], lr=1e-2, betas=(0.9, 0.99)).step()
        torch.testing.assert_close(bound.detach(), record[f"bounds_after1.{name}"], rtol=0, atol=1e-6)


def test_published_checkpoint(fixtures, published, tiny_fp, prepared_swinir) -> None:
    state, bits = import_2dquant(load_state_dict(fixtures / "2dquant" / "tiny_net_Q_5.pth"))
    assert set(bits.values()) == {4}
    network = prepared_swinir(2)
    for name, quantizer in named_quantizers(network):
        quantizer.set_bits(bits[name])
    network.load_state_dict(state)
    with torch.no_grad():
        assert_outputs_match(network(tiny_fp["input"]), published("tiny_swinir_dqc")["output_after5"])


def test_codes_and_distinct_values_after_learning(fixtures, prepared_swinir) -> None:
    """At most 2^4 values per tensor in the checkpoint that was learned, and decode(encode(w)) is the rounded weight."""
    state, _ = import_2dquant(load_state_dict(fixtures / "2dquant" / "tiny_net_Q_5.pth"))
    network = prepared_swinir(4)
    network.load_state_dict(state)
    checked = 0
    for name, quantizer in named_quantizers(network):
        if name.endswith("weight_quantizer"):
            weight = network.get_parameter(name.removesuffix("_quantizer"))
            rounded = quantizer(weight).detach()
            assert rounded.unique().numel() <= 16
            assert torch.equal(quantizer.decode(quantizer.encode(weight)), rounded)
            checked += 1
    assert checked == 24
    assert isinstance(quantizer.grid, FloatOffsetGrid)
