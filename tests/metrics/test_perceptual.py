"""The wrapper of lpips and pyiqa: conversions, caching, local files, and one clear line when something is missing."""

from __future__ import annotations

import csv
import hashlib
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image
from basicsr_quant.metrics import networks, perceptual
from basicsr_quant.metrics.perceptual import calculate_iqa, calculate_lpips, load_iqa, load_lpips, prepare


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path) -> Iterator[None]:
    former = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    perceptual._iqa.cache_clear()
    yield
    torch.hub.set_dir(former)


@pytest.fixture
def pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    gt = random.integers(0, 256, (66, 71, 3)).astype(np.uint8)
    return np.clip(gt + random.integers(-20, 21, gt.shape), 0, 255).astype(np.uint8), gt


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    load_torchvision()
    from torchvision.models import alexnet

    torch.manual_seed(3)
    path = tmp_path / "weights" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir()
    torch.save({key: value for key, value in alexnet().state_dict().items() if key.startswith("features")}, path)
    return path


def need(package: str) -> None:
    load_torchvision()
    pytest.importorskip(package)


def test_lpips_formula_in_float64(pair: Any) -> None:
    need("lpips")
    sr, gt = pair
    network = load_lpips(pnet_rand=True)
    mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    features = []
    for image in pair:
        signal = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double() / 255 * 2 - 1
        signal = (signal - mean.view(1, 3, 1, 1).double()) / deviation.view(1, 3, 1, 1).double()
        taken = []
        for number in range(1, 6):
            for layer in getattr(network.net, f"slice{number}"):
                if isinstance(layer, torch.nn.Conv2d):
                    signal = torch.nn.functional.conv2d(
                        signal, layer.weight.double(), layer.bias.double(), layer.stride, layer.padding)
                else:
                    signal = layer(signal.clone())
            taken.append(signal / (signal.square().sum(1, keepdim=True).sqrt() + 1e-10))
        features.append(taken)
    expected = sum(
        ((first - second).square() * linear.model[-1].weight.double()).sum(1).mean()
        for first, second, linear in zip(*features, network.lins, strict=True)
    )
    assert calculate_lpips(sr, gt, pnet_rand=True) == pytest.approx(float(expected), rel=1e-4)


def test_lpips_is_a_distance_and_repeats(pair: Any) -> None:
    need("lpips")
    sr, gt = pair
    value = calculate_lpips(sr, gt, pnet_rand=True)
    assert value > 0 and value == calculate_lpips(sr, gt, pnet_rand=True)
    assert value == pytest.approx(calculate_lpips(gt, sr, pnet_rand=True), rel=1e-5)
    assert calculate_lpips(gt, gt, pnet_rand=True) == 0
    half = ((sr.astype(int) + gt) // 2).astype(np.uint8)
    assert calculate_lpips(half, gt, pnet_rand=True) < value


def test_lpips_crops(pair: Any) -> None:
    need("lpips")
    sr, gt = pair
    assert calculate_lpips(sr, gt, 4, pnet_rand=True) == calculate_lpips(sr[4:-4, 4:-4], gt[4:-4, 4:-4], pnet_rand=True)
    assert calculate_lpips(sr, gt, 4, crop="multiple", pnet_rand=True) == calculate_lpips(
        sr[:64, :68], gt[:64, :68], pnet_rand=True)


def test_networks_are_built_once_and_draw_nothing(pair: Any) -> None:
    need("lpips")
    perceptual._lpips.cache_clear()
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: load_lpips(pnet_rand=True), range(4)))
    assert len({id(network) for network in built}) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert not built[0].training and not any(parameter.requires_grad for parameter in built[0].parameters())


def test_lpips_backbone_from_file_folder_and_cache(pair: Any, alexnet_file: Path, tmp_path: Path) -> None:
    need("lpips")
    sr, gt = pair
    by_file = calculate_lpips(sr, gt, weights=alexnet_file)
    assert by_file == calculate_lpips(sr, gt, weights=str(alexnet_file.parent))
    assert by_file != calculate_lpips(sr, gt, pnet_rand=True)
    stored = torch.load(alexnet_file)
    assert torch.equal(load_lpips(weights=alexnet_file).net.slice4[0].bias, stored["features.8.bias"])
    perceptual._lpips.cache_clear()
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    alexnet_file.rename(checkpoints / alexnet_file.name)
    assert by_file == calculate_lpips(sr, gt)
    perceptual._lpips.cache_clear()


def test_lpips_missing_wrong_or_hostile_file(alexnet_file: Path, tmp_path: Path) -> None:
    need("lpips")
    perceptual._lpips.cache_clear()
    with pytest.raises(UserError, match=r"'vgg16-397923af\.pth'.*put it at '.*hub/checkpoints/vgg16.*' "
                                        r"\(from https://.*/vgg16-397923af\.pth\) or name it .*'weights'"):
        load_lpips("vgg")
    with pytest.raises(UserError, match="backbone 'resnet' is unknown"):
        load_lpips("resnet")
    with pytest.raises(UserError, match="does not exist"):
        load_lpips(weights=tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="'features.7.weight' is missing|does not fit"):
        load_lpips("vgg", weights=alexnet_file)
    torch.save(Path, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="pickled objects"):
        load_lpips(weights=tmp_path / "hostile.pth")


def test_networks_are_prepared_before_the_first_image(alexnet_file: Path) -> None:
    """What an option file says of a metric is enough to notice that its file is missing."""
    need("lpips")
    perceptual._lpips.cache_clear()
    prepare("calculate_psnr", {"crop_border": 2})
    with pytest.raises(UserError, match=r"'alexnet-owt-7be5be79\.pth'.*put it at") as caught:
        prepare("calculate_lpips", {"crop_border": 2, "crop": "multiple"})
    assert "\n" not in str(caught.value)
    prepare("calculate_lpips", {"crop_border": 2, "weights": str(alexnet_file)})
    assert perceptual._lpips.cache_info().currsize == 1
    load_lpips(weights=alexnet_file)
    assert perceptual._lpips.cache_info().currsize == 1
    need("pyiqa")
    with pytest.raises(UserError, match=r"'ckpt_koniq10k\.pt'"):
        prepare("calculate_iqa", {"name": "maniqa"})


@pytest.mark.parametrize(("package", "call", "command"), [
    ("lpips", lambda image: calculate_lpips(image, image, pnet_rand=True), r"basicsr_quant\[diffusion\]"),
    ("pyiqa", lambda image: calculate_iqa(image, name="niqe"), r"basicsr_quant\[iqa\]"),
])
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, pair: Any, package: str, call: Any, command: str
) -> None:
    perceptual._lpips.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package '{package}'.*{command}"):
        call(pair[0])


@pytest.mark.parametrize(("name", "file"), [
    ("dists", "DISTS_weights-f5e65c96.pth"),
    ("musiq", "musiq_koniq_ckpt-e95806b9.pth"),
    ("maniqa", "ckpt_koniq10k.pt"),
    ("maniqa-pipal", "MANIQA_PIPAL-ae6d356b.pth"),
    ("brisque", "brisque_svm_weights.pth"),
    ("arniqa", "resnet50-0676ba61.pth"),
])
def test_missing_weights_are_one_line_and_no_download(pair: Any, name: str, file: str) -> None:
    need("pyiqa")
    with pytest.raises(UserError, match=f"'{name}' needs the file '{file}'.*put it at '.*{file}'") as caught:
        calculate_iqa(*pair, name=name)
    assert "\n" not in str(caught.value)


def test_iqa_names_and_references(pair: Any) -> None:
    need("pyiqa")
    with pytest.raises(UserError, match=r"no metric 'musik' \(did you mean 'musiq'"):
        calculate_iqa(pair[0], name="musik")
    with pytest.raises(UserError, match="whole folders"):
        calculate_iqa(pair[0], name="fid")
    with pytest.raises(UserError, match="compares with a reference"):
        calculate_iqa(pair[0], name="psnr")
    with pytest.raises(UserError, match="cannot score a 20x20 image|gives NaN"):
        calculate_iqa(pair[0][:20, :20], name="niqe")


def test_iqa_sees_rgb_between_0_and_1(pair: Any) -> None:
    need("pyiqa")
    sr, gt = pair
    difference = (sr[3:-3, 3:-3].astype(np.float64) - gt[3:-3, 3:-3]) / 255
    expected = -10 * np.log10(np.mean(difference**2))
    assert calculate_iqa(sr, gt, "psnr", crop_border=3) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(UserError, match="one size"):
        calculate_iqa(sr[1:], gt, "psnr")
    assert load_iqa("psnr") is load_iqa("psnr")


@pytest.mark.parametrize("benchmark", ["realsr", "drealsr"])
def test_niqe_against_published_logs(fixtures: Path, data_root: Path, benchmark: str) -> None:
    need("pyiqa")
    if networks._niqe_parameters_of_basicsr() is None or not (data_root / benchmark / "osediff_results").is_dir():
        pytest.skip("needs basicsr's NIQE parameters and the results in SR_DATA_ROOT")
    with open(fixtures / "metrics" / f"osediff_{benchmark}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    deviations = [
        abs(calculate_iqa(read_image(data_root / benchmark / "osediff_results" / row["image"]), name="niqe")
            - float(row["niqe"]))
        for row in rows
    ]
    assert statistics.median(deviations) < 1e-3 and max(deviations) < 0.02


def test_dists_from_local_files(pair: Any, tmp_path: Path) -> None:
    need("pyiqa")
    from torchvision.models import vgg16

    torch.manual_seed(5)
    backbone = {f"features.{key}": value for key, value in vgg16().features.state_dict().items()}
    torch.save(backbone, tmp_path / "vgg16-397923af.pth")
    heads = {key: torch.rand(1, 1475, 1, 1) for key in ("alpha", "beta")}
    torch.save(heads, tmp_path / "DISTS_weights-f5e65c96.pth")
    sr, gt = pair
    value = calculate_iqa(sr, gt, "dists", weights=tmp_path)
    network: Any = load_iqa("dists", tmp_path / "DISTS_weights-f5e65c96.pth").net
    assert torch.equal(network.alpha, heads["alpha"])
    assert torch.equal(network.stage3[1].weight, backbone["features.10.weight"])
    assert value > 0 and calculate_iqa(gt, gt, "dists", weights=tmp_path) == pytest.approx(0, abs=1e-5)
    torch.save(backbone, tmp_path / "DISTS_weights-f5e65c96.pth")
    perceptual._iqa.cache_clear()
    with pytest.raises(UserError, match="no 'alpha' and 'beta'"):
        load_iqa("dists", tmp_path)


def test_musiq_from_local_file(pair: Any, tmp_path: Path) -> None:
    need("pyiqa")
    import pyiqa

    torch.manual_seed(6)
    state = pyiqa.create_metric("musiq", pretrained=False, device="cpu").net.state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "own_name.pth")
    network: Any = load_iqa("musiq", tmp_path / "own_name.pth").net
    assert torch.equal(network.head.weight, state["head.weight"])
    assert np.isfinite(calculate_iqa(pair[0], name="musiq", weights=tmp_path / "own_name.pth"))


def test_maniqa_needs_no_second_file(tmp_path: Path) -> None:
    need("pyiqa")
    import pyiqa

    with networks._bare_backbones():
        state = pyiqa.create_metric("maniqa", pretrained=False, device="cpu").net.state_dict()
    torch.save(state, tmp_path / "ckpt_koniq10k.pt")
    network: Any = load_iqa("maniqa", tmp_path).net
    assert torch.equal(network.vit.norm.weight, state["vit.norm.weight"])


def test_clipiqa_needs_clip_and_the_published_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("pyiqa")
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(UserError, match="needs the package 'clip'.*pip install openai-clip"):
        load_iqa("clipiqa")
    monkeypatch.setitem(sys.modules, "clip", sys)
    with pytest.raises(UserError, match=r"'RN50\.pt'.*hub/clip/RN50\.pt"):
        load_iqa("clipiqa")
    (tmp_path / "RN50.pt").write_bytes(b"other")
    assert hashlib.sha256(b"other").hexdigest() != networks._CLIP_RN50_SHA256
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_iqa("clipiqa", tmp_path)


def test_devices() -> None:
    assert perceptual.resolve_device("cpu") == "cpu"
    assert perceptual.resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="'gpu' is unknown"):
        perceptual.resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="sees no GPU"):
            perceptual.resolve_device("cuda:0")
