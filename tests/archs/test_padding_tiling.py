from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from basicsr_quant.archs.padding import crop_to, pad_to_multiple, run_padded
from basicsr_quant.archs.self_ensemble import self_ensemble
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.archs.tiling import tiled


def _local_network(scale: int, layers: int) -> nn.Module:
    """Return convolutions whose receptive field is 2 * layers + 1 wide."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for index in range(layers - 1):
        parts += [nn.Conv2d(3 if index == 0 else 4, 4, 3, 1, 1), nn.Tanh()]
    parts += [nn.Conv2d(4 if layers > 1 else 3, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale)]
    return nn.Sequential(*parts).double()


def _mirrored(size: int, target: int) -> list[int]:
    pattern = list(range(size)) + list(reversed(range(size)))
    return [pattern[index % (2 * size)] for index in range(target)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(0, 30))
def test_padding_mirrors_and_is_cropped_off(height: int, width: int, multiple: int, minimum: int) -> None:
    image = torch.rand(1, 2, height, width)
    padded = pad_to_multiple(image, multiple, minimum)
    for side, size in zip(padded.shape[2:], (height, width), strict=True):
        assert side % multiple == 0 and side >= minimum and side - max(size, minimum) < multiple
    rows, columns = _mirrored(height, padded.shape[2]), _mirrored(width, padded.shape[3])
    torch.testing.assert_close(padded, image[:, :, rows][:, :, :, columns], rtol=0, atol=0)
    torch.testing.assert_close(crop_to(padded, height, width), image, rtol=0, atol=0)


def test_nothing_to_pad_copies_nothing() -> None:
    image = torch.rand(1, 3, 16, 24)
    assert pad_to_multiple(image, 8) is image


def test_network_sees_the_padded_image() -> None:
    seen: list[torch.Size] = []

    def network(image: Tensor) -> Tensor:
        seen.append(image.shape)
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)

    image = torch.rand(1, 3, 5, 18)
    torch.testing.assert_close(run_padded(network, image, 2, 8, 16), network(image), rtol=0, atol=0)
    assert seen[0] == (1, 3, 16, 24)


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)), scale=st.integers(1, 3), layers=st.integers(1, 3),
    spare=st.integers(0, 5), step=st.integers(1, 25),
)
def test_tiles_of_a_local_network_equal_the_whole(
    size: tuple[int, int], scale: int, layers: int, spare: int, step: int
) -> None:
    network = _local_network(scale, layers)
    overlap = 2 * layers + spare
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    whole = network(image)
    largest = 0

    def watched(tile: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, *tile.shape[2:])
        assert not torch.is_grad_enabled()
        return network(tile)

    assembled = tiled(watched, image, scale, overlap + step, overlap)
    torch.testing.assert_close(assembled, whole, rtol=0, atol=1e-12)
    assert largest <= overlap + step


def test_tiles_of_a_window_network_equal_the_whole() -> None:
    torch.manual_seed(2)
    network = SwinIR(2, img_size=32, depths=[2], embed_dim=12, num_heads=[3]).double().eval()
    image = torch.rand(1, 3, 75, 90, dtype=torch.float64)
    steps: list[tuple[int, int]] = []
    assembled = tiled(network, image, 2, 64, 48, "cpu", lambda done, total: steps.append((done, total)))
    with torch.no_grad():
        torch.testing.assert_close(assembled, network(image), rtol=0, atol=1e-9)
    assert steps == [(index, 6) for index in range(1, 7)]


def test_tile_zero_is_the_whole_image() -> None:
    network = _local_network(2, 2)
    image = torch.rand(1, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(tiled(network, image, 2, 0, 32), network(image))


@pytest.mark.parametrize("overlap", [-1, 16, 20])
def test_overlap_must_be_less_than_a_tile(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        tiled(_local_network(1, 1), torch.rand(1, 3, 8, 8), 1, 16, overlap)


MEMORY = """
import resource, torch
from basicsr_quant.archs.tiling import tiled
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, 1, 1), torch.nn.PixelShuffle(2))
image = torch.zeros(1, 3, 4096, 4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = tiled(network, image, 2, 256, 16)
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert output.shape == (1, 3, 8192, 8192)
print(peak - output.numel() * 4 - image.numel() * 4)
"""


def test_a_large_image_needs_one_tile_beside_its_output(repository: Any) -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY], cwd=repository, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2**30


def test_self_ensemble_is_the_mean_of_eight_views() -> None:
    network = _local_network(2, 2)
    image = torch.rand(2, 3, 6, 9, dtype=torch.float64)
    views = [
        network(image.flip(dims).transpose(-1, -2) if turn else image.flip(dims)) for turn in (False, True)
        for dims in ([], [-1], [-2], [-1, -2])
    ]
    back = [
        (view.transpose(-1, -2) if index >= 4 else view).flip(dims)
        for index, (view, dims) in enumerate(zip(views, [[], [-1], [-2], [-1, -2]] * 2, strict=True))
    ]
    averaged = self_ensemble(network, image)
    torch.testing.assert_close(averaged, torch.stack(back).mean(0))
    for turned in (image.flip(-1), image.flip(-2), image.transpose(-1, -2)):
        turned_back = self_ensemble(network, turned)
        expected = averaged.flip(-1) if turned.equal(image.flip(-1)) else (
            averaged.flip(-2) if turned.equal(image.flip(-2)) else averaged.transpose(-1, -2))
        torch.testing.assert_close(turned_back, expected)
