"""Bad input: one line that says what is wrong, exit code 2, nothing lost, no traceback."""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_workshop import diffusion_options, diffusion_test_options
from small_pipeline import FP, passionsr_options
from workshop import Workshop, error_lines, load, make_weights, same, test_options

from basicsr_quant.io.images import encode_image, read_image, write_image


def assert_one_error(code: int, errors: str, *parts: str) -> None:
    lines = error_lines(errors)
    assert code == 2, errors
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    for part in parts:
        assert part in lines[0], lines[0]


Capture = pytest.CaptureFixture[str]


def cut_pixels(path: Path) -> Path:
    """Replace an image by one whose header is whole and whose pixels are not."""
    content = encode_image(read_image(path), ".bmp")
    path.unlink()
    path.with_suffix(".bmp").write_bytes(content[: len(content) // 2])
    return path.with_suffix(".bmp")


@pytest.mark.parametrize(("force", "parts"), [
    (["train:totl_iter=3"], ["totl_iter", "total_iter"]),
    (["train:total_iter=many"], ["train:total_iter", "integer", "many"]),
    (["train:total_iter=0"], ["train:total_iter"]),
    (["datasets:train:dataroot_lq=nowhere"], ["datasets:train:dataroot_lq", "nowhere"]),
    (["datasets:train:gt_size=64"], ["datasets:train", "32x32", "lower gt_size"]),
    (["num_gpu=1"], ["num_gpu", "num_gpu=0"]),
    (["path:resume_state=nowhere.state"], ["nowhere.state", "does not exist"]),
    (["path:resume_state=weights/fp.pth"], ["weights/fp.pth", "is no training state"]),
    (["path:pretrain_network_g=nowhere.pth"], ["nowhere.pth", "does not exist"]),
    (["model_type=SRModle"], ["SRModle", "SRModel"]),
    (["network_g:type=SwinIT"], ["SwinIT", "SwinIR"]),
    (["network_g:embed_dimm=3"], ["embed_dimm", "embed_dim"]),
    (["path:experiments_root=/proc/nowhere"], ["/proc/nowhere", "path:experiments_root"]),
    (["path:experiments_root=fp.yml"], ["fp.yml", "path:experiments_root"]),
    (["name=../up"], ["name"]),
])
def test_options_and_folders(workshop: Workshop, capfd: Capture, force: list[str], parts: list[str]) -> None:
    if force == ["num_gpu=1"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert_one_error(workshop.train(workshop.fp, *force), capfd.readouterr().err, *parts)


def test_as_a_program(workshop: Workshop) -> None:
    code, errors = workshop.run("train.py", workshop.fp, "train:totl_iter=3")
    assert_one_error(code, errors, "train:totl_iter", "total_iter")
    code, errors = workshop.run("train.py", workshop.fp, flags=["--launcher", "pytorch"])
    assert_one_error(code, errors, "RANK", "torchrun")


def test_missing_option_file(workshop: Workshop, capfd: Capture) -> None:
    from basicsr_quant.cli.main import train_main

    assert_one_error(train_main(["-opt", "nowhere.yml"]), capfd.readouterr().err, "nowhere.yml")


def test_unequal_pair(workshop: Workshop, capfd: Capture) -> None:
    write_image(workshop.folder / "data/train/HR/im1.png", np.zeros((40, 36, 3), np.uint8))
    assert_one_error(workshop.train(workshop.fp), capfd.readouterr().err, "im1.png", "im1x2.png", "40x36", "16x18")


def test_missing_partner(workshop: Workshop, capfd: Capture) -> None:
    (workshop.folder / "data/train/LR/im1x2.png").unlink()
    assert_one_error(workshop.train(workshop.fp), capfd.readouterr().err, "im1.png", "3 HR and 2 LR")


@pytest.mark.parametrize("folder", ["train", "val"])
def test_corrupt_image_in_training(workshop: Workshop, capfd: Capture, folder: str) -> None:
    for path in (workshop.folder / f"data/{folder}/LR").iterdir():
        cut_pixels(path)
    assert_one_error(workshop.train(workshop.fp, "logger:save_checkpoint_freq=100"), capfd.readouterr().err, ".bmp")
    if folder == "val":  # found at iteration 3, which was saved
        assert workshop.state("fp", 3)["iteration"] == 3


def test_corrupt_image_at_test(workshop: Workshop, capfd: Capture) -> None:
    """The other images are restored."""
    cut_pixels(workshop.folder / "data/val/LR/im1x2.png")
    tested = test_options(workshop.fp, "weights/fp.pth")
    code = workshop.test(tested, "val:save_img=true")
    assert_one_error(code, capfd.readouterr().err, "1 of 3 images of 'val' failed", "im1x2.bmp")
    assert len(list((workshop.folder / "results/test_fp/visualization/val").iterdir())) == 2


def test_wrong_architecture(workshop: Workshop, capfd: Capture) -> None:
    make_weights(workshop.folder / "wide.pth", embed_dim=16)
    make_weights(workshop.folder / "deep.pth", depths=[2, 2], num_heads=[2, 2])
    for options, key in ((workshop.fp, "path:pretrain_network_g"), (workshop.dqc, "pathFP:pretrain_network_FP")):
        code = workshop.train(options, f"{key}=wide.pth")
        assert_one_error(code, capfd.readouterr().err, "wide.pth", "does not fit this network", "(16, 3, 3, 3)",
                         "(12, 3, 3, 3)")
        code = workshop.train(options, f"{key}=deep.pth")
        assert_one_error(code, capfd.readouterr().err, "deep.pth", "does not fit this network", "layers.1")


def test_checkpoint_of_another_method(place: Workshop, quantized: Path, capfd: Capture) -> None:
    workshop = place
    shutil.copy(quantized, workshop.folder / "quantized.pth")
    diffusion = diffusion_test_options(diffusion_options(), "weights/fp.pth")
    passionsr = passionsr_options(only_unet=True)
    passionsr |= {"datasets": {"test_1": passionsr["datasets"]["val"]}, "path": dict(FP)}
    for options, key, file in (
            (test_options(workshop.fp, "x"), "path:pretrain_network_g", "quantized.pth"), (diffusion, "scale", "2"),
            (passionsr, "path:pretrain_network_unet", "quantized.pth"), (passionsr, "path:unet_ckpt", "quantized.pth")):
        capfd.readouterr()
        code = workshop.test({name: value for name, value in options.items() if name not in ("train", "logger")},
                             f"{key}={file}")
        assert_one_error(code, capfd.readouterr().err, "weights/fp.pth" if key == "scale" else file)
    code = workshop.train(workshop.dqc, "pathFP:pretrain_network_FP=quantized.pth", "name=again")
    assert_one_error(code, capfd.readouterr().err, "quantized.pth")


@pytest.fixture
def quantized(workshop: Workshop) -> Path:
    """A checkpoint of 3 bits."""
    assert workshop.train(workshop.dqc, "train:total_iter=1", "val:val_freq=100") == 0
    return workshop.experiment("dqc") / "models" / "net_Q_1.pth"


@pytest.fixture
def check_file(workshop: Workshop, quantized: Path, capfd: Capture) -> Callable[..., None]:
    """Returns a function that tests a file in the place of the checkpoint."""
    capfd.readouterr()

    def check(file: Path, *parts: str) -> None:
        code = workshop.test(test_options(workshop.dqc, str(file)))
        assert_one_error(code, capfd.readouterr().err, file.name, *parts)

    return check


def test_truncated_anywhere(check_file: Callable[..., None], quantized: Path, tmp_path: Path) -> None:
    content = quantized.read_bytes()
    for part in (0.0, 0.001, 0.3, 0.7, 0.99, 1 - 1 / len(content)):
        file = tmp_path / "cut.pth"
        file.write_bytes(content[: int(len(content) * part)])
        check_file(file, "restore it from a copy")


def test_flipped_byte_is_noticed_or_harmless(quantized: Path, tmp_path: Path) -> None:
    from basicsr_quant.errors import UserError
    from basicsr_quant.io.weights import load_file, load_state_dict

    content, reference = quantized.read_bytes(), load(quantized)
    draw = random.Random(3)
    positions = [draw.randrange(len(content)) for _ in range(250)] + list(range(len(content) - 60, len(content)))
    noticed = 0
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << draw.randrange(8)
        file = tmp_path / "flipped.pth"
        file.write_bytes(damaged)
        try:
            assert same(load_file(file), reference), position
            load_state_dict(file)
        except UserError as error:
            noticed += 1
            assert "flipped.pth" in str(error) and "\n" not in str(error)
    assert noticed > len(positions) / 2


def test_pickled_code_does_not_run(check_file: Callable[..., None], tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    torch.save({"params": {"weight": Hostile()}}, tmp_path / "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"params": Hostile()}))
    check_file(tmp_path / "hostile.pth", "were not run")
    check_file(tmp_path / "plain.pth")
    assert not marker.exists()


@pytest.mark.parametrize(("content", "parts"), [
    (b"", ["is empty"]), (b"no checkpoint at all", ["no torch checkpoint"]),
    (b"\x89PNG\r\n\x1a\n", ["no torch checkpoint"]),
])
def test_files_that_are_something_else(
    check_file: Callable[..., None], tmp_path: Path, content: bytes, parts: list[str],
) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    check_file(tmp_path / "other.pth", *parts)
    (tmp_path / "other.safetensors").write_bytes(content)
    check_file(tmp_path / "other.safetensors")


def test_other_bit_width(workshop: Workshop, quantized: Path, capfd: Capture) -> None:
    tested = test_options(workshop.dqc, str(quantized))
    assert_one_error(workshop.test(tested, "bit=4"), capfd.readouterr().err, "bit: 4", "3 bits", "bit=3")
    code = workshop.train(workshop.dqc, "bit=4", f"path:pretrain_network_Q={quantized}", "name=other")
    assert_one_error(code, capfd.readouterr().err, "bit: 4", "3 bits")


@pytest.mark.parametrize(("name", "values", "parts"), [
    ("conv_first.weight", float("nan"), ["conv_first.weight", "NaN"]),
    ("attn.qkv.act_quantizer", (0.5, 0.5), ["constant tensor"]),
    ("attn.qkv.act_quantizer", (0.6, 0.5), ["crossed"]),
    ("attn.qkv.act_quantizer", (float("nan"), 0.5), ["NaN"]),
])
def test_impossible_values(
    check_file: Callable[..., None], quantized: Path, tmp_path: Path, name: str, values: Any, parts: list[str],
) -> None:
    content = load(quantized)
    if isinstance(values, tuple):
        prefix = next(key for key in content["params"] if key.endswith("lower_bound") and "weight_quantizer" not in key)
        prefix = prefix.removesuffix("lower_bound")
        content["params"][f"{prefix}lower_bound"].fill_(values[0])
        content["params"][f"{prefix}upper_bound"].fill_(values[1])
    else:
        content["params"][name][0] = values
    torch.save(content, tmp_path / "odd.pth")
    check_file(tmp_path / "odd.pth", *parts)


def test_nan_in_full_precision_weights(workshop: Workshop, capfd: Capture) -> None:
    content = load(workshop.folder / "weights/fp.pth")
    content["params"]["conv_after_body.weight"][0] = float("inf")
    torch.save(content, workshop.folder / "weights/fp.pth")
    for options in (workshop.dqc, workshop.fp | {"path": {"pretrain_network_g": "weights/fp.pth"}}):
        assert_one_error(workshop.train(options), capfd.readouterr().err, "weights/fp.pth", "conv_after_body.weight")


def test_weights_that_overflow_are_named_in_validation(workshop: Workshop, capfd: Capture) -> None:
    workshop.fp["train"]["optim_g"] = {"type": "SGD", "lr": 1e37}
    code = workshop.train(workshop.fp, "val:val_freq=1")
    assert_one_error(code, capfd.readouterr().err, "images of 'val' failed", "im0x2.png", "NaN or infinite")


def test_constant_image_is_no_calibration(workshop: Workshop, capfd: Capture) -> None:
    """A black data set leaves layers with a constant input, which cannot be quantized."""
    torch.save({"lq": torch.zeros(4, 3, 8, 8)}, workshop.folder / "black.pth")
    content = load(workshop.folder / "weights/fp.pth")
    content["params"]["patch_embed.norm.weight"].zero_()
    for name in content["params"]:
        if ".norm" in name:
            content["params"][name].zero_()
    torch.save(content, workshop.folder / "weights/fp.pth")
    code = workshop.train(workshop.dqc, "cali_data=black.pth")
    assert_one_error(code, capfd.readouterr().err, "calibration", "constant tensor", "'none'")


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.parametrize("tensorboard", [False, True])
def test_file_size_limit_while_saving(workshop: Workshop, tensorboard: bool) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    before = {path.name: path.read_bytes() for path in workshop.experiment("fp").rglob("*.pth")}
    states = list((workshop.experiment("fp") / "training_states").iterdir())
    assert min(map(len, before.values())) > 60_000
    code, errors = workshop.run("train.py", workshop.fp, f"logger:use_tb_logger={str(tensorboard).lower()}",
                                "val=~", flags=["--auto_resume"], before=limit_file_size)
    assert_one_error(code, errors, "cannot write", "net_g_4.pth", "File too large", "what was there before is intact")
    assert {path.name: path.read_bytes() for path in workshop.experiment("fp").rglob("*.pth")} == before
    assert list((workshop.experiment("fp") / "training_states").iterdir()) == states
    assert not list(workshop.experiment("fp").rglob("*.tmp"))
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0


def obey_permissions() -> None:
    """Let root be refused like anybody: drop CAP_DAC_OVERRIDE from the bounding set."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):
        raise OSError("cannot drop a capability")


def test_read_only_folder(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=1") == 0
    folders = [workshop.folder / "experiments", workshop.folder / "results"]
    folders[1].mkdir()
    for folder in folders:
        folder.chmod(0o555)
    try:
        code, errors = workshop.run("train.py", workshop.fp, before=obey_permissions)
        tested = test_options(workshop.fp, "weights/fp.pth")
        test_code, test_errors = workshop.run("test.py", tested, before=obey_permissions)
    except subprocess.SubprocessError:
        pytest.skip("root cannot drop capabilities here")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert_one_error(code, errors, "cannot write to 'experiments/fp'", "Permission denied")
    assert_one_error(test_code, test_errors, "cannot write to 'results/test_fp'", "Permission denied")
    assert workshop.network("fp", "g", 1)


def test_state_of_another_run(workshop: Workshop, capfd: Capture) -> None:
    assert workshop.train(workshop.fp, "name=other", "train:total_iter=2") == 0
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    before = workshop.network("fp", "g", 2)
    capfd.readouterr()
    code = workshop.train(workshop.fp, "path:resume_state=experiments/other/training_states/2.state")
    assert_one_error(code, capfd.readouterr().err, "experiments/other/training_states/2.state", "another run")
    assert same(workshop.network("fp", "g", 2), before) and not list(Path("experiments").glob("*archived*"))


def test_state_whose_network_was_changed(workshop: Workshop, capfd: Capture) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    models = workshop.experiment("fp") / "models"
    shutil.copy(workshop.folder / "weights/fp.pth", models / "net_g_2.pth")
    capfd.readouterr()
    code = workshop.train(workshop.fp, "path:resume_state=experiments/fp/training_states/2.state")
    assert_one_error(code, capfd.readouterr().err, "net_g_2.pth", "is not the file that was saved with")


def test_resume_with_another_network(workshop: Workshop, capfd: Capture) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    before = workshop.network("fp", "g", 2)
    capfd.readouterr()
    code = workshop.train(workshop.fp, "network_g:embed_dim=16", flags=["--auto_resume"])
    assert_one_error(code, capfd.readouterr().err, "net_g_2.pth", "does not fit this network")
    assert same(workshop.network("fp", "g", 2), before)


def test_state_of_a_run_without_average(workshop: Workshop, capfd: Capture) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2", "train:ema_decay=0") == 0
    capfd.readouterr()
    code = workshop.train(workshop.fp, flags=["--auto_resume"])
    assert_one_error(code, capfd.readouterr().err, "net_g_2.pth", "no averaged weights")


def test_files_without_their_blocks(workshop: Workshop, capfd: Capture) -> None:
    tested = test_options(workshop.fp, "weights/fp.pth")
    assert_one_error(workshop.train(tested), capfd.readouterr().err)
    del tested["val"]
    assert_one_error(workshop.test(tested), capfd.readouterr().err, "'val' block")
