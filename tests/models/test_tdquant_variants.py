"""Options of 2DQuant that are there to be compared: order of calibration, bounds of weights, learning, features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from workshop import Workshop, test_options

from basicsr_quant.data.build import build_dataset
from basicsr_quant.errors import UserError
from basicsr_quant.models.tdquant import TDQuantModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.registry import MODELS

CPU = torch.device("cpu")


def ready(workshop: Workshop, *force: str) -> TDQuantModel:
    """A calibrated model."""
    typed = load_options(workshop.write(workshop.dqc), force)
    model: Any = MODELS.build(typed.model_type, typed, CPU)
    model.load_pretrained(training=True)
    model.prepare_training(build_dataset(typed.datasets["train"], 2, "train", 0, "train", False))
    assert isinstance(model, TDQuantModel)
    return model


def bounds(model: TDQuantModel) -> dict[str, torch.Tensor]:
    return {name: bound.detach().clone() for name, bound in model.network.named_parameters() if "_bound" in name}


@pytest.mark.parametrize("mode", ["released", "corrected"])
def test_order_of_calibration(workshop: Workshop, mode: str) -> None:
    workshop.dqc["mode"] = mode
    variants = {"parallel": [], "one by one": ["quant:calibration:order=sequential"],
                "groups": ["quant:calibration:order=sequential", "quant:calibration:groups=3"]}
    found = {name: bounds(ready(workshop, *force)) for name, force in variants.items()}
    for name, other in (("one by one", "parallel"), ("groups", "parallel"), ("groups", "one by one")):
        unlike = {key for key in found[name] if not torch.equal(found[name][key], found[other][key])}
        assert unlike and not any("weight_quantizer" in key for key in unlike)
    first = next(key for key in found["parallel"] if "qkv.parts.0.activation_quantizer.lower" in key)
    assert torch.allclose(found["one by one"][first], found["parallel"][first])
    again = bounds(ready(workshop, *variants["one by one"]))
    assert all(torch.equal(again[key], found["one by one"][key]) for key in again)


def test_groups_need_the_sequential_order(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="quant:calibration:groups.*order=sequential"):
        load_options(workshop.write(workshop.dqc), ["quant:calibration:groups=3"])


def test_weights_per_channel(workshop: Workshop) -> None:
    """Bounds of every row, bytes counted, trained, saved and loaded."""
    model = ready(workshop, "quant:weight_per=channel")
    shapes = {name: tuple(quantizer.lower_bound.shape) for name, quantizer in named_quantizers(model.network)}
    assert all(len(shape) == (2 if "weight_quantizer" in name else 1) for name, shape in shapes.items())
    rows = sum(shape[0] for shape in shapes.values())
    with torch.device("meta"):
        counts = [account(TDQuantModel.skeleton(load_options(workshop.write(workshop.dqc), force)), (1, 3, 8, 8))
                  for force in (["quant:weight_per=channel"], [])]
    assert [count.bounds for count in counts] == [2 * rows, 2 * len(shapes)]
    assert counts[0].packed_bytes - counts[1].packed_bytes == 8 * (rows - len(shapes))
    stage = model.stage()
    losses = stage.step({"lq": torch.rand(2, 3, 8, 8), "iteration": 0, "sample": [0, 1]})
    sum(losses.values()).backward()
    stage.optimizers[0].step()
    exported = model.export_state("Q", model.network)
    plain = ready(workshop)
    assert set(exported) == set(plain.export_state("Q", plain.network))
    before = bounds(model)
    again = ready(workshop, "quant:weight_per=channel")
    again.import_state("Q", again.network, exported, Path("file"))
    assert all(torch.equal(bound, before[name]) for name, bound in bounds(again).items())


def test_a_checkpoint_with_bounds_per_channel_says_what_to_set(workshop: Workshop) -> None:
    assert workshop.train(workshop.dqc, "quant:weight_per=channel") == 0
    tested = test_options(workshop.dqc, "experiments/dqc/models/net_Q_latest.pth")
    with pytest.raises(UserError, match="has bounds per channel at .*; set quant:weight_per=channel"):
        typed = load_options(workshop.write(tested), [], is_train=False)
        MODELS.build(typed.model_type, typed, CPU).load_pretrained(training=False)
    assert workshop.test(tested, "quant:weight_per=channel") == 0


@pytest.mark.parametrize("force", [
    ["quant:hook_per_layer=false", "quant:hook_per_block=true"], ["quant:feature_taps=[layers.*.conv]"],
    ["train:scheduler={type: MultiStepLR, milestones: [2]}"], ["quant:learn:relative_step=false"],
    ["quant:calibration:patches=2"], ["train:feature_loss=null"], ["quant:learn:feature_distance=unit_norm"],
])
def test_variants_of_learning(workshop: Workshop, force: list[str]) -> None:
    model = ready(workshop, *force)
    losses = model.stage().step({"lq": torch.rand(2, 3, 8, 8), "iteration": 0, "sample": [0, 1]})
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert set(losses) == ({"pixel"} if force == ["train:feature_loss=null"] else {"pixel", "feature"})


def test_stages_of_bounds(workshop: Workshop) -> None:
    """Each stage moves its own bounds, at its own rate; the other ones rest and have no gradient."""
    stages = "{activations: {iterations: 3, lr: 1e-2}, weights: {iterations: 2, lr: 1e-3}}"
    model = ready(workshop, f"train:stages={stages}", "train:total_iter=5", "quant:learn:relative_step=false",
                  "quant:learn:feature_distance=attention_transfer")
    assert model.stage_lengths == [3, 2]
    for index, (part, rate) in enumerate((("activations", 1e-2), ("weights", 1e-3))):
        stage, before = model.stage(index), bounds(model)
        losses = stage.step({"lq": torch.rand(2, 3, 8, 8), "iteration": 0, "sample": [0, 1]})
        sum(losses.values()).backward()
        stage.optimizers[0].step()
        after = bounds(model)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and all(("weight_quantizer" in name) == (part == "weights") for name in moved)
        assert max((after[name] - before[name]).abs().max().item() for name in moved) == pytest.approx(rate, rel=1e-3)


def test_stages_add_up(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="train:total_iter.* is 4, but the stages have 3 iterations; make it 3"):
        load_options(workshop.write(workshop.dqc), ["train:stages={weights: {iterations: 3}}", "train:total_iter=4"])
