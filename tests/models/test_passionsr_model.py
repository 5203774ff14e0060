"""PassionSR's model class on narrow networks of the full structure, and once at full width."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from passionsr_networks import NARROW_UNET, NARROW_VAE
from workshop import smooth_image

from basicsr_quant.archs.osediff import SD21_UNET, SD21_VAE, build_unet, build_vae
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.compat import load_torchvision
from basicsr_quant.data.bicubic import downscale
from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.paired import collate
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import write_image
from basicsr_quant.models import passionsr
from basicsr_quant.models.osediff_networks import pipeline_of
from basicsr_quant.models.passionsr import PassionSRModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.layers.weighted import weighted_layers

load_torchvision()
pytest.importorskip("diffusers")

Make = Callable[..., PassionSRModel]
LARGEST = 20e9


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function from a mode and further options to a calibrated model with random weights."""
    def random_pipeline(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Callable[[Any], OSEDiff]:
        def build(options: Any) -> OSEDiff:
            torch.manual_seed(2)
            generator = torch.Generator().manual_seed(5)
            context = torch.randn(1, 7, unet["cross_attention_dim"], generator=generator)
            return pipeline_of(options, build_unet(unet), build_vae(vae), context)
        return build

    def model(mode: str = "corrected", side: int = 128, images: int = 2, unet: Mapping[str, Any] = NARROW_UNET,
              vae: Mapping[str, Any] = NARROW_VAE, **changes: Any) -> PassionSRModel:
        generator = np.random.default_rng(1)
        for number in range(images):
            image = smooth_image(generator, side, side)
            write_image(tmp_path / f"hr/{number}.png", image)
            write_image(tmp_path / f"lr/{number}.png", downscale(image, 4))
        options = {
            "name": "x", "model_type": "PassionSRModel", "mode": mode, "scale": 4, "num_gpu": 0, "manual_seed": 3,
            "pipeline": {"tiles": {"latent": side // 8, "latent_overlap": 2}},
            "datasets": {"train": {"name": "t", "dataroot_gt": str(tmp_path / "hr"), "gt_size": side,
                                   "dataroot_lq": str(tmp_path / "lr")}}, "train": {}} | changes
        file = tmp_path / "o.yml"
        file.write_text(yaml.safe_dump(options))
        monkeypatch.setattr(passionsr, "loaded_pipeline", random_pipeline(unet, vae))
        made = PassionSRModel(load_options(file), torch.device("cpu"))  # type: ignore[arg-type]
        made.load_pretrained(training=True)
        made.prepare_training(build_dataset(made.options.datasets["train"], 4, "train", 3, read_gt=False))
        return made

    return model


def learn(model: PassionSRModel, index: int) -> tuple[set[str], float]:
    """Do one step of a stage; return the names of what changed, and the loss."""
    stage = model.stage(index)
    before = {name: value.detach().clone() for name, value in model.network.named_parameters()
              if name.endswith(("_bound", ".value", ".offset"))}
    assert stage.dataset is not None
    batch = collate([stage.dataset[SampleIndex(1, 4, 0)]])
    [loss] = stage.step(batch).values()
    loss.backward()
    [optimizer] = stage.optimizers
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in learning)
    assert sum(parameter.requires_grad for parameter in model.network.parameters()) == len(learning)
    optimizer.step()
    if stage.after_step is not None:
        stage.after_step()
    optimizer.zero_grad()
    return {name for name, value in model.network.named_parameters()
            if name in before and not torch.equal(before[name], value)}, float(loss.detach())


@pytest.mark.parametrize("mode", ["released", "paper", "corrected"])
def test_every_stage_learns_its_part(make: Make, mode: str) -> None:
    model = make(mode)
    parts = {"encoder": ("vae.encoder.", "vae.quant_conv."), "unet": ("unet.",),
             "decoder": ("vae.decoder.", "vae.post_quant_conv.")}
    assert len(model.stage_lengths) == 6 and set(model.stage_lengths) == {4}
    for index in range(6):
        changed, _ = learn(model, index)
        part, kind = parts[("encoder", "unet", "decoder")[index // 2]], ("let", "bounds")[index % 2]
        assert changed and all(name.startswith(part) for name in changed)
        if kind == "bounds":
            assert all(name.endswith("_bound") for name in changed)
        elif mode != "corrected":
            assert not any(name.endswith("_bound") for name in changed)


def test_everything_at_once(make: Make) -> None:
    """Without DQC: one stage for transformations and bounds of all parts."""
    model = make(train={"order": ["joint"], "total_iter": 5})
    assert list(model.stage_lengths) == [5]
    changed, _ = learn(model, 0)
    parts = ("vae.encoder.", "vae.quant_conv.", "unet.", "vae.decoder.", "vae.post_quant_conv.")
    for part in parts:
        kinds = {name.rpartition(".")[2] for name in changed if name.startswith(part)}
        assert kinds >= {"lower_bound", "upper_bound", "value", "offset"}, part


def test_blocks_learn_in_one_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"component": "encoder", "learn": "rounding", "per_block": 2, "blocks": ["vae.encoder.mid_block"]}
    model = make(train={"stages": {"first": stage}, "order": ["first"], "total_iter": 0})
    names = [name for name, _ in weighted_layers(model.network.vae.encoder) if not name.startswith("mid_block")]
    assert list(model.stage_lengths) == [2 * (len(names) + 2)]  # the middle as one block, and quant_conv
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="train:stages:first:per_block runs in one process"):
        model.stage(0)


@pytest.mark.parametrize("followed", [True, False])
def test_renewed_bounds_do_not_stay_those_of_the_last_image(make: Make, followed: bool) -> None:
    """Without LBQ the last stage of a part sets them from all images, as a stage of its bounds would."""
    order = ["encoder_let", "encoder_bounds"] if followed else ["encoder_let"]
    stages = {"encoder_let": {"learn": "transformations", "bounds": "renewed"},
              "encoder_bounds": {"bounds": "recalibrated"}}
    model = make(train={"order": order, "stages": stages, "total_iter": 3 * len(order)})
    stage = model.stage(0)
    assert (stage.before_step is None) == followed and stage.dataset is not None and stage.after_step is not None
    quantizers = [quantizer for _, quantizer in named_quantizers(model.network.vae.encoder)]
    found = []
    for iteration in range(3):
        if stage.before_step is not None:
            stage.before_step(iteration / 3)
        [loss] = stage.step(collate([stage.dataset[SampleIndex(iteration % 2, iteration, 0)]])).values()
        loss.backward()
        stage.optimizers[0].step()
        stage.optimizers[0].zero_grad()
        stage.after_step()
        if stage.after_iteration is not None:
            stage.after_iteration()
        found.append(torch.stack([quantizer.upper_bound.max().detach() for quantizer in quantizers]))
    renew = make(train={"order": ["encoder_bounds"], "stages": stages})
    renew.network.load_state_dict(model.network.state_dict())
    renew.stage(0)
    wanted = torch.stack([quantizer.upper_bound.max().detach()
                          for _, quantizer in named_quantizers(renew.network.vae.encoder)])
    assert torch.equal(found[2], wanted) != followed


def test_files_have_the_published_names(make: Make) -> None:
    model = make("released")
    for component, count in (("unet", 3730), ("vae", 680)):
        exported = model.export_state(component, getattr(model.network, component))
        state = {name: value.clone() for name, value in exported.items()}
        assert len(state) == count and all(name.startswith("model.model.") for name in state)
        wanted = {name: value.clone() for name, value in model.network.state_dict().items()}
        with torch.no_grad():
            for _, quantizer in named_quantizers(getattr(model.network, component)):
                quantizer.upper_bound.add_(1)
        model.import_state(component, getattr(model.network, component), state, Path("file"))
        assert all(torch.equal(value, wanted[name]) for name, value in model.network.state_dict().items())


def test_files_of_other_plans_have_our_names(make: Make) -> None:
    model = make(quant={"plan": [{"unet.conv_in": {"weight": {}, "activation": {}}}]})
    state = model.export_state("unet", model.network.unet)
    assert set(state) == {f"conv_in.{part}_quantizer.{end}_bound" for part in ("weight", "activation")
                          for end in ("lower", "upper")}
    assert model.export_state("vae", model.network.vae) == {}
    model.import_state("unet", model.network.unet, state, Path("file"))


def test_teacher_and_student_share_their_weights(make: Make) -> None:
    model = make()
    assert model._teacher is not None
    assert model._teacher.unet.conv_in.weight is model.network.unet.conv_in.weight
    assert not any(True for _ in named_quantizers(model._teacher))


def test_checkpointed_activations_change_nothing(make: Make) -> None:
    found = [learn(make(train={"activation_checkpointing": flag, "order": ["alone_let"]}), 0)
             for flag in (False, True)]
    assert found[0] == found[1]


def test_a_loss_on_images_of_the_unet(make: Make) -> None:
    stages = {"unet_let": {"loss": "image"}}
    changed, loss = learn(make(train={"stages": stages, "order": ["unet_let"]}), 0)
    assert loss > 0 and all(name.startswith("unet.") for name in changed)


@pytest.mark.slow
def test_one_step_of_every_stage_at_full_width(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """A 256x256 output; peak memory of the process below 20 GB."""
    order = ["encoder_let", "encoder_bounds", "unet_let", "unet_bounds", "decoder_let", "decoder_bounds"]
    model = make(side=256, images=2, unet=SD21_UNET, vae=SD21_VAE,
                 train={"activation_checkpointing": True, "order": order},
                 quant={"calibration": {"batch_size": 1}})
    for index in range(len(order)):
        changed, loss = learn(model, index)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with capsys.disabled():
            print(f"\n{order[index]}: loss {loss:.3e}, {len(changed)} tensors moved, peak {peak / 1e9:.2f} GB")
        assert changed and peak < LARGEST
