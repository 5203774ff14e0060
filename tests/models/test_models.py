"""What a method promises the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from workshop import Workshop, same

from basicsr_quant.data.build import build_dataset
from basicsr_quant.models.base import RestorationModel, forward_draws
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.registry import MODELS

CPU = torch.device("cpu")


def ready(workshop: Workshop, options: dict[str, Any], *force: str) -> RestorationModel:
    """A model at the beginning of its stage."""
    typed = load_options(workshop.write(options), force)
    model: RestorationModel = MODELS.build(typed.model_type, typed, CPU)
    model.load_pretrained(training=True)
    model.prepare_training(build_dataset(typed.datasets["train"], 2, "train", 0, "train", model.needs_ground_truth))
    return model


def test_draws_belong_to_the_global_sample() -> None:
    class Network(nn.Module):
        def training_draws(self, batch_size: int) -> dict[str, tuple[int, ...]]:
            return {"masks": (3,)}

    whole = forward_draws(Network(), {"iteration": 4, "sample": [0, 1, 2, 3]}, 9, CPU)["masks"]
    part = forward_draws(Network(), {"iteration": 4, "sample": [2, 3]}, 9, CPU)["masks"]
    assert whole.shape == (4, 3) and torch.equal(whole[2:], part)
    assert not torch.equal(whole, forward_draws(Network(), {"iteration": 5, "sample": [0, 1, 2, 3]}, 9, CPU)["masks"])
    assert forward_draws(nn.Linear(1, 1), {"iteration": 0, "sample": [0]}, 0, CPU) == {}


@pytest.mark.parametrize("kind", ["fp", "dqc"])
def test_export_and_import_are_inverse(workshop: Workshop, kind: str) -> None:
    options, label = (workshop.fp, "g") if kind == "fp" else (workshop.dqc, "Q")
    model = ready(workshop, options)
    state = {name: tensor.clone() for name, tensor in model.export_state(label, model.network).items()}
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(1.0)
    model.import_state(label, model.network, state, Path("file"))
    assert same(before, dict(model.network.state_dict()))
    assert set(model.trained) == {label}


def test_calibration_is_repeatable(workshop: Workshop) -> None:
    for mode in ("released", "corrected"):
        workshop.dqc["mode"] = mode
        first, second = (dict(ready(workshop, workshop.dqc).network.state_dict()) for _ in range(2))
        assert same(first, second)


def test_only_bounds_learn(workshop: Workshop) -> None:
    model = ready(workshop, workshop.dqc)
    stage = model.stage()
    learning = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert learning and all(name.endswith(("lower_bound", "upper_bound")) for name in learning)
    assert len(learning) == 2 * len(list(named_quantizers(model.network)))
    assert not model.trains_in_train_mode and not model.network.training
    assert stage.base_rates == [[1e-2]]
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items() if "bound" not in name}
    batch = {"lq": torch.rand(2, 3, 8, 8), "iteration": 0, "sample": [0, 1]}
    losses = stage.step(batch)
    assert set(losses) == {"pixel", "feature"}
    sum(losses.values()).backward()
    stage.optimizers[0].step()
    assert same(weights, {name: model.network.state_dict()[name] for name in weights})


def test_range_keeps_its_least_width(workshop: Workshop) -> None:
    model = ready(workshop, workshop.dqc)
    stage = model.stage()
    assert stage.after_step is not None
    _, quantizer = next(named_quantizers(model.network))
    width = (quantizer.upper_bound - quantizer.lower_bound).item()
    quantizer.set_bounds(quantizer.lower_bound.detach(), quantizer.lower_bound.detach() - 1)
    stage.after_step()
    assert (quantizer.upper_bound - quantizer.lower_bound).item() == pytest.approx(0.05 * width, rel=1e-3)


def test_full_precision_step(workshop: Workshop) -> None:
    model = ready(workshop, workshop.fp)
    stage = model.stage()
    assert model.network.training and model.trains_in_train_mode
    batch = {"lq": torch.rand(2, 3, 8, 8), "gt": torch.rand(2, 3, 16, 16), "iteration": 0, "sample": [0, 1]}
    first, again = stage.step(batch)["pixel"].item(), stage.step(batch)["pixel"].item()
    assert first == again  # drop path draws belong to the iteration and the sample
    assert stage.step(batch | {"iteration": 1})["pixel"].item() != first


@pytest.mark.parametrize("kind", ["fp", "dqc"])
def test_restore(workshop: Workshop, kind: str) -> None:
    model = ready(workshop, workshop.fp if kind == "fp" else workshop.dqc)
    model.network.eval()
    image = torch.rand(1, 3, 7, 10)
    restored = model.restore(image)
    assert restored.shape == (1, 3, 14, 20) and restored.dtype is torch.float32
    assert torch.equal(restored, model.restore(image, model.network))
    parameter = next(model.network.parameters())
    assert parameter.is_leaf and not parameter.is_inference()


def test_metadata_names_plan_and_calibration(workshop: Workshop) -> None:
    model = ready(workshop, workshop.dqc)
    facts = model.metadata("Q")
    assert facts["model_type"] == "TDQuantModel" and facts["scale"] == 2 and facts["mode"] == "corrected"
    assert len(facts["calibration"]) == 64 and isinstance(facts["plan"], list)


def test_plain_upscaling_needs_no_weights(workshop: Workshop) -> None:
    tested = {key: value for key, value in workshop.dqc.items() if key not in ("train", "pathFP", "logger")}
    tested["datasets"] = {"test_1": workshop.dqc["datasets"]["val"]}
    means = {}
    for force in ("quant:bicubic=true", "quant:upscale_only=bicubic"):
        assert workshop.test(tested, f"name=run{len(means)}", force) == 0
        means[force] = (workshop.folder / "results" / f"run{len(means)}" / "val.csv").read_text()
    assert len(set(means.values())) == 2


def test_full_precision_test_of_a_quantization_file(workshop: Workshop) -> None:
    tested = {key: value for key, value in workshop.dqc.items() if key not in ("train", "logger")}
    tested["datasets"] = {"test_1": workshop.dqc["datasets"]["val"]}
    assert workshop.test(tested, "quant:fp_test=true", "name=q") == 0
    plain = {key: value for key, value in workshop.fp.items() if key not in ("train", "logger")}
    plain |= {"datasets": tested["datasets"], "path": {"pretrain_network_g": "weights/fp.pth"}}
    assert workshop.test(plain, "name=g") == 0
    assert (workshop.folder / "results/q/val.csv").read_text() == (workshop.folder / "results/g/val.csv").read_text()
