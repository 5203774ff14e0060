"""PassionSR from option files: the stages of both flows, an interruption, tests, wrong files."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest
import torch
from small_pipeline import FP, passionsr_options
from workshop import REPOSITORY, Workshop, error_lines, run_train, same

from basicsr_quant.compat import load_torchvision
from basicsr_quant.deploy.freeze import folded_layers
from basicsr_quant.deploy.pack import pack
from basicsr_quant.deploy.unpack import open_model
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import set_state
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.quant.quantizer import State
from basicsr_quant.registry import MODELS

load_torchvision()
pytest.importorskip("diffusers")


def test_of(options: dict[str, Any], **path: str) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name not in ("train", "logger")}
    return kept | {"name": f"test_{options['name']}", "datasets": {"test_1": options["datasets"]["val"]},
                   "path": {**FP, **path}}


test_of.__test__ = False  # type: ignore[attr-defined]


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """What kinds of parameters of which networks changed."""
    names = {name.removeprefix("model.model.") for name in after if not torch.equal(before[name], after[name])}
    kinds = {"x_min": "bounds", "x_max": "bounds", "scale_factor": "let", "offset": "let", "scale_factor_qk": "let",
             "scale_factor_vw": "let"}
    return {f"{name.partition('.')[0]} {kinds[name.rpartition('.')[2]]}" for name in names}


@pytest.mark.parametrize("mode", ["released", "corrected"])
def test_encoder_unet_decoder(place: Workshop, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each stage changes what it trains and nothing else; the result is tested from its files."""
    options = passionsr_options(mode=mode)
    assert place.train(options) == 0
    assert not error_lines(capfd.readouterr().err)
    unet = [place.network("tiny", "unet", tag)["params"] for tag in range(2, 13, 2)]
    vae = [place.network("tiny", "vae", tag)["params"] for tag in range(2, 13, 2)]
    assert all(changed(unet[stage - 1], unet[stage]) == set() for stage in (1, 4, 5))
    assert all(changed(vae[stage - 1], vae[stage]) == set() for stage in (2, 3))
    if mode == "released":
        assert changed(vae[0], vae[1]) == {"encoder bounds", "quant_conv bounds"}
        assert {kind.partition(" ")[2] for kind in changed(unet[1], unet[2])} == {"let"}
        assert {kind.partition(" ")[2] for kind in changed(unet[2], unet[3])} == {"bounds"}
        assert changed(vae[3], vae[4]) == {"decoder let", "post_quant_conv let"}
        assert changed(vae[4], vae[5]) == {"decoder bounds", "post_quant_conv bounds"}
    models = place.experiment("tiny") / "models"
    files = {f"{part}_ckpt": str(models / f"net_{part}_latest.pth") for part in ("unet", "vae")}
    assert place.test(test_of(options, **files)) == 0
    found = json.loads((place.folder / "results/test_tiny/metrics.json").read_text())["val"]["mean"]["psnr"]
    logged = re.findall(r"validation val, iteration 12: psnr ([\d.]+)",
                        (place.experiment("tiny") / "train_tiny.log").read_text())
    assert found == pytest.approx(float(logged[-1]), abs=1e-3)
    capfd.readouterr()
    assert place.test(test_of(options, **files), "quant:weight_bits=4") != 0
    assert "was quantized by another plan" in error_lines(capfd.readouterr().err)[-1]


@pytest.mark.parametrize("mode", ["released", "paper", "corrected"])
def test_the_unet_alone(place: Workshop, mode: str) -> None:
    options = passionsr_options(mode=mode, only_unet=True)
    assert place.train(options, "train:activation_checkpointing=true", "train:epochs=1", "train:total_iter=0") == 0
    log = (place.experiment("tiny") / "train_tiny.log").read_text()
    assert "stage 'alone_let': iterations 1 to 3" in log and "stage 'alone_bounds': iterations 4 to 6" in log
    assert not list((place.experiment("tiny") / "models").glob("net_vae*"))
    weights = str(place.experiment("tiny") / "models/net_unet_latest.pth")
    assert place.test(test_of(options, unet_ckpt=weights)) == 0


@pytest.mark.parametrize("mode", ["released", "corrected"])
def test_resume_in_and_between_stages(place: Workshop, mode: str) -> None:
    options = passionsr_options(mode=mode)
    options["logger"]["save_checkpoint_freq"] = 1
    assert place.train(options, "name=reference") == 0
    for reached in (2, 5):
        assert place.train(options) == 0
        for path in place.experiment("tiny").glob("training_states/*.state"):
            if int(path.stem) > reached:
                path.unlink()
        assert place.train(options, flags=["--auto_resume"]) == 0
        for label in ("unet", "vae"):
            assert same(place.network("tiny", label, 12), place.network("reference", label, 12)), label
        assert same(place.state("tiny", 12)["optimizers"], place.state("reference", 12)["optimizers"])


@pytest.mark.parametrize("mode", ["released", "corrected"])
def test_norms_transform_at_test(place: Workshop, mode: str) -> None:
    """The network computes the same, tested or packed, with two transformed inputs less per transformer."""
    options = passionsr_options(mode=mode, only_unet=True)
    options["train"]["optim"] = {"type": "Adam", "lr": 0.02}
    assert place.train(options, "val=~") == 0
    tested = place.write(test_of(options, unet_ckpt=str(place.experiment("tiny") / "models/net_unet_latest.pth")))
    models = []
    for flag in ("true", "false"):
        loaded = load_options(tested, [f"quant:fold_norms={flag}"], is_train=False)
        models.append(MODELS.build(loaded.model_type, loaded, torch.device("cpu")))
        models[-1].load_pretrained(training=False)
    folded, plain = models
    assert len(folded_layers(folded.network)) == 2 * sum(
        "transformer_blocks.0.norm3" in name for name in dict(folded.network.named_modules()))
    assert folded_layers(folded.network) and not folded_layers(plain.network)
    offsets = [layer.let.offset for name, layer in weighted_layers(folded.network)
               if name in folded_layers(folded.network)]
    assert all(offset.abs().max() > 1e-3 for offset in offsets)
    image = torch.rand(1, 3, 12, 14, generator=torch.Generator().manual_seed(2))
    rounded = [model.restore(image) for model in models]
    assert (rounded[0] - rounded[1]).abs().mean() < 1e-2  # a value may round the other way
    (place.folder / "packed.safetensors").write_bytes(pack(folded)[0])
    assert torch.equal(open_model(place.folder / "packed.safetensors", torch.device("cpu"))[0].restore(image),
                       rounded[0])
    fresh = MODELS.build(loaded.model_type, load_options(tested, is_train=False), torch.device("cpu"))
    fresh.load_pretrained(training=False)
    for model in (fresh, plain):
        set_state(model.network, State.OFF)
    torch.testing.assert_close(fresh.restore(image), plain.restore(image), rtol=0, atol=1e-5)


def test_published_files_run(place: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """As they are, but for num_gpu, the small networks in place of Stable Diffusion, and patches that suit them."""
    calibration = place.folder / "calibration"
    for number in range(3):
        for kind, source in (("hr", f"HR/im{number}.png"), ("lr", f"LR/im{number}x2.png")):
            (calibration / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(place.folder / "data/train" / source, calibration / kind / f"{number}_{kind}.png")
    small = passionsr_options()
    blocks = {key: small[key] for key in ("network_unet", "network_vae", "one_step")}
    force = ["num_gpu=0", "basic_config:upscale=2", "basic_config:context_embedding_path=~",
             "basic_config:lora_weights_path=~", "tile_config:latent_tiled_size=8",
             "tile_config:latent_tiled_overlap=4", "datasets:train:gt_size=16",
             *(f"{key}={json.dumps(block)}" for key, block in blocks.items()),
             *(f"path:{key}={file}" for key, file in FP.items())]
    name = "passionsr_uv_w8a8"
    published = REPOSITORY / "tests/options/published"
    assert run_train(["-opt", str(published / f"{name}.yml"), "--force_yml", *force, "train:total_iter=6"]) == 0
    assert not error_lines(capfd.readouterr().err)
    params = place.network(name, "unet")["params"]
    assert all(key.startswith("model.model.") for key in params)
    assert "model.model.input_blocks.0.0.act_quantizer_1.x_min" in params


def test_missing_files(place: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    options = passionsr_options()
    weights = options.pop("path")
    assert place.train(options) != 0
    assert "path:sd and path:pretrain_network_unet are missing" in error_lines(capfd.readouterr().err)[-1]
    options["path"] = weights
    assert place.test(test_of(options)) != 0
    assert "path:unet_ckpt is missing" in error_lines(capfd.readouterr().err)[-1]


def test_smoothing_per_token_fits_the_patches(place: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    options = passionsr_options(mode="released")
    assert place.train(options, "pipeline:tiles:latent=16") != 0
    assert "make the two agree" in error_lines(capfd.readouterr().err)[-1]
