"""OSEDiff's model class without the engine: what each stage trains, restoring, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.models.osediff import OSEDiffModel
from basicsr_quant.options.load import load_options

load_torchvision()
pytest.importorskip("diffusers")
pytest.importorskip("peft")

OPTIONS = {
    "name": "x", "model_type": "OSEDiffModel", "mode": "corrected", "scale": 2, "num_gpu": 0, "manual_seed": 3,
    "network_unet": {"type": "SDUNet", "block_out_channels": [8, 16], "attention_levels": 1, "layers_per_block": 1,
                     "attention_head_dim": [1, 2], "cross_attention_dim": 8, "latent_channels": 4,
                     "norm_num_groups": 4},
    "network_vae": {"type": "SDVAE", "block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4,
                    "norm_num_groups": 4, "scaling_factor": 1.0},
    "one_step": {"timestep": 249, "scaled_input": True, "random_context": 3},
    "pipeline": {"process_size": 16, "color_fix": "nofix", "posterior": "sample"},
    "datasets": {"train": {"name": "t", "dataroot_gt": "hr", "dataroot_lq": "lr", "gt_size": 16}},
    "train": {"total_iter": 3, "optim": {"type": "AdamW", "lr": 1e-3}, "pixel_opt": {"type": "MSELoss"},
              "stages": {"vae": {"iterations": 1, "lr": 5e-3, "scheduler": {"type": "CosineAnnealingLR"}},
                         "unet": {"iterations": 1}, "lora": {"iterations": 1}}},
    "val": {},
}


def make(folder: Path, **changes: object) -> OSEDiffModel:
    path = folder / "file.yml"
    path.write_text(yaml.safe_dump(OPTIONS | changes))
    torch.manual_seed(0)
    model = OSEDiffModel(load_options(path), torch.device("cpu"))  # type: ignore[arg-type]
    model.load_pretrained(training=True)
    return model


def batch() -> dict[str, object]:
    torch.manual_seed(1)
    return {"lq": torch.rand(2, 3, 8, 8), "gt": torch.rand(2, 3, 16, 16), "iteration": 4, "sample": [0, 1]}


def test_each_stage_trains_its_part(tmp_path) -> None:
    model = make(tmp_path)
    assert list(model.stage_lengths) == [1, 1, 1]
    expected = ("vae.", "unet.", "lora_ unet.conv_in.base")
    for index, (label, losses) in enumerate((("vae", {"reconstruction", "kl"}), ("unet", {"pixel"}),
                                             ("osediff", {"pixel"}))):
        stage = model.stage(index)
        assert stage.label == label and label in model.trained
        found = stage.step(batch())
        assert found.keys() == losses
        sum(found.values()).backward()
        learning = {id(parameter) for group in stage.optimizers[0].param_groups for parameter in group["params"]}
        for name, parameter in model.network.named_parameters():
            assert parameter.requires_grad == (id(parameter) in learning) == any(
                part in name for part in expected[index].split()), name
            assert parameter.grad is None or parameter.requires_grad
        stage.optimizers[0].step()
        stage.optimizers[0].zero_grad(set_to_none=True)
    assert model.stage(0).base_rates == [[5e-3]]


def test_schedule_ends_with_the_stage(tmp_path) -> None:
    stage = make(tmp_path).stage(0)
    assert stage.schedule is not None and stage.schedule.factor(1, 1.0) == pytest.approx(0)
    assert make(tmp_path).stage(1).schedule is None


def test_encoder_may_learn_with_the_unet(tmp_path) -> None:
    train = OPTIONS["train"] | {"stages": {"unet": {"iterations": 3, "train_encoder": True}}}  # type: ignore[operator]
    path = tmp_path / "vae.pth"
    model = make(tmp_path)
    torch.save({"params": model.export_state("vae", model.network.vae)}, path)
    model = make(tmp_path, train=train, path={"pretrain_network_vae": str(path)})
    model.stage(0)
    learning = {name.partition(".")[0] for name, parameter in model.network.vae.named_parameters()
                if parameter.requires_grad}
    assert learning == {"encoder", "quant_conv"}
    with pytest.raises(UserError, match="path:pretrain_network_vae are missing"):
        make(tmp_path, train=train)


def test_noise_belongs_to_the_image_of_the_set(tmp_path) -> None:
    """One by one or in a batch, an image gets the same noise; another index gets another."""
    model = make(tmp_path)
    images = torch.rand(2, 3, 6, 7)
    together = model.restore(images, samples=(3, 4))
    assert together.shape == (2, 3, 12, 14)
    torch.testing.assert_close(model.restore(images[1:], samples=(4,)), together[1:])
    assert not torch.equal(model.restore(images[1:], samples=(5,)), together[1:])


def test_an_averaged_part_takes_its_place(tmp_path) -> None:
    import copy

    model = make(tmp_path)
    image = torch.rand(1, 3, 6, 7)
    for part in ("unet", "vae"):
        other = copy.deepcopy(getattr(model.network, part))
        torch.testing.assert_close(model.restore(image, other), model.restore(image))
        with torch.no_grad():
            (other.conv_out if part == "unet" else other.decoder.conv_out).bias.add_(0.1)
        assert not torch.allclose(model.restore(image, other), model.restore(image), atol=1e-3)


def test_starts_as_the_round_trip_of_the_enlarged_image(tmp_path) -> None:
    model = make(tmp_path)
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        latent = model.network.encode(torch.rand(1, 3, 16, 16))
        torch.testing.assert_close(model.network.one_step(latent), latent, rtol=1e-5, atol=1e-6)
        _, log_variance = model.network.posterior(torch.rand(1, 3, 16, 16))
    assert torch.equal(log_variance, torch.full_like(log_variance, -10))
    assert model.restore(image).shape == (1, 3, 16, 16)


def test_self_ensemble_and_precision(tmp_path) -> None:
    plain = make(tmp_path)
    turned = make(tmp_path, val={"self_ensemble": True})
    image = torch.rand(1, 3, 8, 8)
    assert not torch.equal(plain.restore(image), turned.restore(image))
    low = make(tmp_path, pipeline=OPTIONS["pipeline"] | {"precision": "bf16"})  # type: ignore[operator]
    low.prepare_testing()
    assert next(low.network.parameters()).dtype == torch.bfloat16
    assert (low.restore(image) - plain.restore(image)).abs().mean() < 0.02


def test_states_come_back(tmp_path) -> None:
    model, other = make(tmp_path), make(tmp_path, manual_seed=4)
    for one in (model, other):
        one.stage(2)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter)) if parameter.requires_grad else None
    state = model.export_state("osediff", model.network)
    other.network.vae.load_state_dict({**model.network.vae.state_dict()})
    other.network.unet.load_state_dict({**model.network.unet.state_dict(), **{
        name: torch.zeros_like(tensor) for name, tensor in model.network.unet.state_dict().items() if "lora" in name}})
    other.import_state("osediff", other.network, state, tmp_path / "net_osediff_1.pth")
    image = torch.rand(1, 3, 8, 8)
    assert not torch.equal(other.restore(image), model.restore(image))  # another seed draws other noise
    for part in ("unet", "vae"):
        left, right = (getattr(one.network, part).state_dict() for one in (model, other))
        assert all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(UserError, match="belongs to another stage"):
        fresh = make(tmp_path)
        fresh.import_state("osediff", fresh.network, state, tmp_path / "net_osediff_1.pth")


@pytest.mark.parametrize(("change", "message"), [
    ({"network_vae": OPTIONS["network_vae"] | {"latent_channels": 6}}, "VAE has 6 latent channels, the UNet takes 4"),
])
def test_parts_that_do_not_fit(tmp_path, change, message) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, **change)
