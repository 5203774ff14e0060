"""Parameters and operations as BI-DiffSR's paper counts them, on the meta device; no weight is ever allocated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.archs.binary_baseline_unet import BinaryBaselineUNet
from basicsr_quant.archs.sr3_unet import SR3UNet
from basicsr_quant.quant.binary.accounting import StepAccount, account_step
from basicsr_quant.quant.binary.binarizers import bi_conv, bnn, dorefa, ir_net, react_net, xnor_net
from basicsr_quant.quant.conventions import BI_DIFFSR, Parts

SINGLE: dict[str, Any] = {"dynamic_group": 1}


def _account(make: type[nn.Module], *arguments: Any, **options: Any) -> StepAccount:
    with torch.device("meta"):
        return account_step(make(*arguments, **options), (1, 3, 256, 256))


@pytest.fixture(scope="module")
def published() -> StepAccount:
    return _account(BIDiffSRUNet)


def test_published_network(published: StepAccount) -> None:
    assert BI_DIFFSR.parameters(published).total == 4_575_043
    assert BI_DIFFSR.operations(published).total == 36_668_583_936
    assert published.account.total_parameters == 51_280_387
    assert published.account.quantized_parameters == 48_211_968
    assert published.binary_macs == 98_650_030_080
    assert published.float_macs == 33_625_735_168 + 1_073_741_824 + 405_504


def test_honest_bytes_hold_everything_that_ships(published: StepAccount) -> None:
    counted = published.account
    assert len(counted.codes) == 56 and counted.bounds == 17_344
    assert counted.packed_bytes == 48_211_968 // 8 + 4 * (51_280_387 - 48_211_968 + 17_344)


def test_operations_by_layer(published: StepAccount) -> None:
    rows = {layer.name: layer for layer in published.account.layers}
    assert rows["downs.0"].macs == 226_492_416 and not rows["downs.0"].is_quantized
    binary = rows["downs.1.block1.conv.binary"]
    assert (binary.weight_bits, binary.activation_bits, binary.quantized_parameters) == (1, 1, 36_864)
    totals: dict[str, int] = {}
    for layer in published.account.layers:
        stage = ".".join(layer.name.split(".")[:2])
        totals[stage] = totals.get(stage, 0) + (layer.macs if layer.is_quantized else 0)
    for stage in ("downs.1", "downs.5", "downs.8", "mid.1", "ups.1", "ups.12"):
        assert totals[stage] == 4_831_838_208
    assert totals["downs.3"] == 1_207_959_552 and totals["ups.20"] == 4_831_838_208 and totals["ups.0"] == 536_870_912
    assert totals["ups.15"] == totals["ups.26"] == 0


ABLATION = [
    ("Baseline", {**SINGLE, "resampling": "plain", "fusion": "concat", "binarizer": bi_conv(identity=False)},
     4_288_483, 4.29, 36.67),
    ("+Identity", {**SINGLE, "resampling": "plain", "fusion": "concat"}, 4_288_483, 4.29, 36.67),
    ("+CP-Down&Up, Concat", {**SINGLE, "fusion": "concat"}, 4_290_051, 4.29, 36.67),
    ("+CS-Fusion, w/o, 1 pair", SINGLE, 4_297_539, 4.30, 36.67),
    ("Add", {**SINGLE, "fusion": "add"}, 4_093_635, 4.10, 33.40),
    ("Split", {**SINGLE, "fusion": "split"}, 4_297_539, 4.30, 36.67),
    ("2 pairs", {"dynamic_group": 2}, 4_366_915, 4.37, 36.67),
    ("In", {"timestep_aware": "in"}, 4_366_915, 4.37, 36.67),
    ("Out", {"timestep_aware": "out"}, 4_505_667, 4.51, 36.67),
    ("none", {"timestep_aware": "none"}, 4_297_539, 4.30, 36.67),
]


@pytest.mark.parametrize(("options", "exact", "parameters", "operations"), [row[1:] for row in ABLATION],
                         ids=[row[0] for row in ABLATION])
def test_ablation(options: dict[str, Any], exact: int, parameters: float, operations: float) -> None:
    counted = _account(BIDiffSRUNet, **options)
    assert BI_DIFFSR.parameters(counted).total == exact
    assert BI_DIFFSR.parameters(counted).printed(1e6) == parameters
    assert BI_DIFFSR.operations(counted).printed(1e9) == operations


def test_published_numbers_are_sums_of_rounded_parts() -> None:
    """Only so is the table's 4.10 M for ``Add`` what its network has; the sum rounds to 4.09 M."""
    counted = BI_DIFFSR.parameters(_account(BIDiffSRUNet, **SINGLE, fusion="add"))
    assert counted == Parts(2_648_451, 1_445_184)
    assert counted.printed(1e6) == 4.10 and round(counted.total / 1e6, 2) == 4.09


def test_sr3() -> None:
    """The paper's 176.41 G hold fvcore's product of 1.074e9 in place of 1,073,741,824."""
    counted = _account(SR3UNet)
    assert BI_DIFFSR.parameters(counted) == Parts(55_407_235, 0)
    assert counted.account.total_parameters == 55_407_235
    assert counted.resized == 14_680_064
    assert BI_DIFFSR.operations(counted).total == 176_408_371_328 - (1_074_000_000 - 1_073_741_824)
    assert counted.binary_macs == 0 and BI_DIFFSR.operations(counted).printed(1e9) == 176.41


@pytest.mark.parametrize(("binarizer", "down", "parameters", "printed", "operations"), [
    (bnn(), "pool", 4.780, 4.78, 37.90), (dorefa(), "pool", 4.780, 4.78, 37.90),
    (xnor_net(), "pool", 4.780, 4.78, 37.90), (ir_net(), "pool", 4.780, 4.78, 37.90),
    (react_net(), "pool", 4.851, 4.85, 37.90), (bi_conv(), "unshuffle", 4.813, 4.82, 37.73)])
def test_baselines(binarizer: Any, down: str, parameters: float, printed: float, operations: float) -> None:
    """All parameters are those of the table; its operations are 37.93 G and, for BBCU, 37.75 G."""
    counted = _account(BinaryBaselineUNet, binarizer, down=down)
    assert round(BI_DIFFSR.parameters(counted).total / 1e6, 3) == parameters
    assert BI_DIFFSR.parameters(counted).printed(1e6) == printed
    assert BI_DIFFSR.operations(counted).printed(1e9) == operations
    sets = sum(count for name, count in counted.account.parameters.items() if ".members." in name)
    assert sets in ({0, 71_104} if down == "pool" else {sets})
