"""BIDiffSRModel: its step, its stage, its files, its samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusion_workshop import diffusion_options, unet
from torch import nn

from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.published.table import exporter, importer
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import Stage
from basicsr_quant.models.bi_diffsr import BIDiffSRModel
from basicsr_quant.models.noise_prediction import NoisePredictionStep
from basicsr_quant.options.component import Component
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.bi_diffsr import BIDiffSROptions
from basicsr_quant.quant.binary.conv2d import binary_layers
from basicsr_quant.quant.binary.slopes import ErrorDecaySlope
from basicsr_quant.quant.binary.timestep import unused_parameters

CPU = torch.device("cpu")


def load(folder: Path, options: dict[str, Any], *force: str) -> BIDiffSROptions:
    path = folder / "o.yml"
    path.write_text(yaml.safe_dump(options))
    loaded = load_options(path, force)
    assert isinstance(loaded, BIDiffSROptions)
    return loaded


def model_of(folder: Path, options: dict[str, Any], *force: str) -> BIDiffSRModel:
    torch.manual_seed(3)
    return BIDiffSRModel(load(folder, options, *force), CPU)


def batch_of(samples: range, iteration: int = 0, side: int = 8) -> dict[str, Any]:
    images = torch.rand(2, 16, 3, side, side, generator=torch.Generator().manual_seed(iteration))
    chosen = [sample % 16 for sample in samples]
    return {"lq": images[0, chosen], "gt": images[1, chosen], "iteration": iteration, "sample": list(samples)}


def iterate(stage: Stage, *batches: dict[str, Any]) -> None:
    """One iteration of the loop."""
    assert stage.before_step is not None and stage.after_step is not None
    stage.before_step(0.5)
    for batch in batches:
        sum(stage.step(batch).values()).backward()  # type: ignore[union-attr]
    stage.optimizers[0].step()
    stage.optimizers[0].zero_grad(set_to_none=True)
    stage.after_step()


def group_state(network: nn.Module, group: int) -> list[torch.Tensor]:
    others = {number for number in range(3) if number != group}
    return [parameter.detach().clone() for parameter in unused_parameters(network, others)]


def changed(network: nn.Module, group: int, before: list[torch.Tensor]) -> bool:
    return not all(map(torch.equal, before, group_state(network, group)))


@pytest.mark.parametrize("policy", ["skip", "momentum"])
def test_groups_that_no_sample_needs(tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = diffusion_options() | {"mode": "released"}
    options["train"] |= {"unused_groups": policy}
    model = model_of(tmp_path, options)
    stage = model.stage()
    timestep = [0]  # 0 to 3 are group 0, 4 to 7 group 1, 8 to 11 group 2
    monkeypatch.setattr("basicsr_quant.models.noise_prediction.draw_timesteps",
                        lambda seed, iteration, samples, total, draw: [timestep[0]] * len(samples))
    network = model.network.train()
    never = group_state(network, 2)
    iterate(stage, batch_of(range(2)))
    before, timestep[0] = group_state(network, 0), 5
    unused = group_state(network, 1)
    iterate(stage, batch_of(range(2), 1))
    assert changed(network, 1, unused)
    assert changed(network, 0, before) == (policy == "momentum")
    assert not changed(network, 2, never)


def test_groups_of_all_accumulated_batches_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tmp_path, diffusion_options() | {"mode": "corrected"})
    stage = model.stage()
    monkeypatch.setattr("basicsr_quant.models.noise_prediction.draw_timesteps",
                        lambda seed, iteration, samples, total, draw: [4 * (sample % 2) for sample in samples])
    before = [group_state(model.network, group) for group in range(3)]
    iterate(stage, batch_of(range(1)), batch_of(range(1, 2)))
    assert [changed(model.network, group, state) for group, state in enumerate(before)] == [True, True, False]


def test_compiled_networks_find_their_groups_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for all groups; weights move as they do without it."""
    calls: list[dict[str, Any]] = []

    def compiled(network: nn.Module) -> Any:
        def forward(*inputs: torch.Tensor, **draws: Any) -> torch.Tensor:
            calls.append(draws)
            result: torch.Tensor = network(*inputs, **draws)
            return result
        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    options = diffusion_options() | {"mode": "corrected"}
    plain, other = model_of(tmp_path, options), model_of(tmp_path, options, "train:compile=true")
    for model in (plain, other):
        model.network.train()
        stage = model.stage()
        for iteration in range(3):
            iterate(stage, batch_of(range(1), iteration))
    assert len(calls) == 3 and all(draws.keys() == {"dropout_draws"} for draws in calls)
    for mine, theirs in zip(plain.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_draws_depend_on_the_sample_alone(tmp_path: Path) -> None:
    """A batch of four is the mean of four batches of one, dropout included."""
    model = model_of(tmp_path, diffusion_options() | {"mode": "corrected"}, "train:precision=fp64")
    model.network.train()
    step = model.stage().step
    assert isinstance(step, NoisePredictionStep)
    together = step(batch_of(range(4)))["pixel"]
    apart = torch.stack([step(batch_of(range(sample, sample + 1)))["pixel"] for sample in range(4)])
    torch.testing.assert_close(together, apart.mean(), rtol=1e-12, atol=0)
    assert len(set(apart.tolist())) == 4


def test_what_the_baselines_need_between_steps(tmp_path: Path) -> None:
    model = model_of(tmp_path, diffusion_options("bnn") | {"mode": "corrected"}, "train:optim_g:lr=3")
    iterate(model.stage(), batch_of(range(2)))
    assert all(layer.weight.abs().max() <= 1 for _, layer in binary_layers(model.network))
    model = model_of(tmp_path, diffusion_options("ir_net") | {"mode": "corrected"})
    iterate(model.stage(), batch_of(range(2)))
    slopes = [module for module in model.network.modules() if isinstance(module, ErrorDecaySlope)]
    assert slopes and all(float(slope.temperature) == pytest.approx(1) for slope in slopes)  # half way in the logarithm


@pytest.mark.parametrize("size", [(3, 5), (7, 8), (9, 4)])
@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
def test_samples_of_any_size_and_in_any_batch(tmp_path: Path, size: tuple[int, int], scheduler: str) -> None:
    model = model_of(tmp_path, diffusion_options(), "train:precision=fp64", f"beta_schedule:scheduler_type={scheduler}")
    network = model.network.eval()
    image = torch.rand(3, 3, *size, dtype=torch.float64)
    together = model.restore(image, network, range(3))
    assert together.shape == image.shape and together.dtype == torch.float32
    apart = torch.cat([model.restore(image[[number]], network, [number]) for number in range(3)])
    assert (together - apart).abs().max() <= 1e-6
    assert (model.restore(image[[0]], network, [1]) - together[[0]]).abs().max() > 1e-2
    with model.inference_form(network):
        torch.testing.assert_close(model.restore(image, network, range(3)), together)


def test_self_ensemble(tmp_path: Path) -> None:
    model = model_of(tmp_path, diffusion_options(), "val:self_ensemble=true")
    model.network.eval()
    assert model.restore(torch.rand(1, 3, 6, 10)).shape == (1, 3, 6, 10)


@pytest.mark.parametrize(("mode", "own", "expected"), [
    ("released", {}, "multiple"), ("corrected", {}, "border"), ("released", {"crop": "border"}, "border")])
def test_lpips_crop(tmp_path: Path, mode: str, own: dict[str, str], expected: str) -> None:
    options = diffusion_options() | {"mode": mode}
    options["val"]["metrics"]["perception"] = {"type": "calculate_lpips", "crop_border": 2, "better": "lower", **own}
    model = model_of(tmp_path, options)
    assert model.options.val is not None
    assert model.options.val.metrics["perception"].arguments == {"crop_border": 2, "crop": expected}
    assert "crop" not in model.options.val.metrics["psnr"].arguments


def test_exported_names_are_the_published_ones(fixtures: Path) -> None:
    with torch.device("meta"):
        network = build_network("BIDiffSRUNet", {})
    component = Component(type="BIDiffSRUNet")
    published = exporter(component)(network.state_dict())
    expected = json.loads((fixtures / "bi_diffsr/unet_keys.json").read_text())
    names = expected if isinstance(expected, dict) else dict(expected)
    assert {name: list(tensor.shape) for name, tensor in published.items()} == {
        name: list(shape) for name, shape in names.items()}
    assert list(importer(component)(published)) == list(network.state_dict())


@pytest.mark.parametrize("variant", [
    {"resampling": "plain", "fusion": "concat"}, {"fusion": "split"}, {"fusion": "add", "timestep_aware": "in"},
    {"binarizer": "react_net", "timestep_aware": "none"}])
def test_ablation_networks_are_written_and_read(tmp_path: Path, variant: dict[str, Any]) -> None:
    model = model_of(tmp_path, diffusion_options(**variant))
    other = model_of(tmp_path, diffusion_options(**variant))
    for parameter in other.network.parameters():
        parameter.data.zero_()
    state = model.export_state("g", model.network)
    other.import_state("g", other.network, state, Path("x.pth"))
    for mine, theirs in zip(model.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def published_file(path: Path, **changes: Any) -> None:
    options = unet(**changes)
    arguments = {key: value for key, value in options.items() if key != "type"}
    state = exporter(Component(type="BIDiffSRUNet"))(build_network("BIDiffSRUNet", arguments).state_dict())
    torch.save({"params": {f"module.{name}": tensor for name, tensor in state.items()}}, path)


def test_released_files_load(tmp_path: Path) -> None:
    published_file(tmp_path / "net.pth")
    model = model_of(tmp_path, diffusion_options(), f"path:pretrain_network_g={tmp_path / 'net.pth'}")
    model.load_pretrained(training=False)


def test_wrong_number_of_groups(tmp_path: Path) -> None:
    published_file(tmp_path / "net.pth", dynamic_group=2)
    model = model_of(tmp_path, diffusion_options(), f"path:pretrain_network_g={tmp_path / 'net.pth'}")
    with pytest.raises(UserError, match=r"net.pth': its timestep groups number 2 .* set network_g:dynamic_group=2"):
        model.load_pretrained(training=False)
    state = {name: tensor for name, tensor in torch.load(tmp_path / "net.pth")["params"].items()}
    with pytest.raises(UserError, match="dynamic_group=2"):
        model.import_state("g", model.network, state, tmp_path / "net.pth")


def test_images_too_small_for_the_network(tmp_path: Path) -> None:
    model = model_of(tmp_path, diffusion_options(channel_mults=[1, 2, 4, 8]), "datasets:train:gt_size=16")
    with pytest.raises(UserError, match="image of 4x6 pixels; its sides must be multiples of 8, at least 8"):
        model.network(torch.rand(1, 3, 4, 6), torch.rand(1, 3, 4, 6), torch.zeros(1, 1, dtype=torch.int64))
    assert model.restore(torch.rand(1, 3, 4, 6), model.network.eval()).shape == (1, 3, 4, 6)


def test_mixed_timesteps_need_a_group_for_each_sample(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timestep_draw per_sample mixes timestep groups"):
        model_of(tmp_path, diffusion_options() | {"mode": "released"}, "train:timestep_draw=per_sample")


def test_lr_sized_batches_are_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path, diffusion_options())
    batch = batch_of(range(2)) | {"lq": torch.rand(2, 3, 4, 4)}
    with pytest.raises(UserError, match="set the data set's type to MultiPairedImageDataset"):
        model.stage().step(batch)


def test_several_processes_need_the_search_for_unused_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    model = model_of(tmp_path, diffusion_options(), "find_unused_parameters=false")
    with pytest.raises(UserError, match="set find_unused_parameters=true"):
        model.prepare_training(None)  # type: ignore[arg-type]
    model = model_of(tmp_path, diffusion_options("sr3"), "find_unused_parameters=false")
    model.prepare_training(None)  # type: ignore[arg-type]
