"""VAE tiles: the published boxes, shared statistics, agreement with the untiled network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.archs.vae_tiling import (
    DECODER_PAD,
    ENCODER_PAD,
    axis_tiles,
    decode_latent,
    encode_moments,
    is_tiled,
    shared_statistics,
)


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    pytest.importorskip("diffusers")
    from basicsr_quant.archs.osediff import sd_vae

    torch.manual_seed(0)
    network = sd_vae((8, 8, 16), 1, 4, 4, 1.0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.3)
    return network


@pytest.mark.parametrize(("size", "tile", "pad"), [
    (1089, 1024, 32), (1600, 1024, 32), (2048, 1024, 32), (4096, 1024, 32), (250, 224, 11), (512, 224, 11),
    (65, 16, 11), (97, 32, 32), (200, 30, 32)])
def test_what_tiles_keep_covers_the_axis_once(size: int, tile: int, pad: int) -> None:
    tiles = axis_tiles(size, tile, pad)
    assert len(tiles) == max(1, math.ceil((size - 2 * pad) / tile))
    kept = [tile.kept for tile in tiles]
    assert kept[0][0] == 0 and kept[-1][1] == size
    assert all(left[1] == right[0] for left, right in zip(kept, kept[1:], strict=False))
    for one in tiles:
        assert 0 <= one.read[0] <= one.kept[0] < one.kept[1] <= one.read[1] <= size
        assert one.read[0] == 0 or one.kept[0] - one.read[0] == pad
        assert one.read[1] == size or one.read[1] - one.kept[1] == pad


def test_sizes_of_the_published_settings() -> None:
    assert not is_tiled(1088, 500, 1024, ENCODER_PAD) and is_tiled(1089, 500, 1024, ENCODER_PAD)
    assert not is_tiled(246, 246, 224, DECODER_PAD) and is_tiled(100, 247, 224, DECODER_PAD)
    assert not is_tiled(9999, 9999, 0, ENCODER_PAD)
    # 1600 px: two tiles of (1600 - 64) / 2 = 768 px, of which the outer ones take the border
    assert axis_tiles(1600, 1024, 32) == [((0, 832), (0, 800)), ((768, 1600), (800, 1600))]
    # 512 latent pixels: 490 / 3 = 164 rounded up to 192; with a tile of 170 to 168, a multiple of 8
    assert [one.read for one in axis_tiles(512, 224, 11)] == [(0, 214), (192, 406), (384, 512)]
    assert axis_tiles(512, 170, 11)[0].read == (0, 190)


def test_statistics_are_averages_weighted_by_pixels() -> None:
    torch.manual_seed(0)
    tiles = [torch.randn(2, 6, 3, 5), torch.randn(2, 6, 4, 2) + 1]
    mean, variance = shared_statistics(tiles, 3)
    parts = [tile.reshape(2, 3, -1) for tile in tiles]
    for found, moment in ((mean, lambda x: x.mean(2)), (variance, lambda x: x.var(2, unbiased=False))):
        expected = (15 * moment(parts[0]) + 8 * moment(parts[1])) / 23
        torch.testing.assert_close(found, expected)


def test_one_tile_is_the_whole_image(vae, monkeypatch) -> None:
    """Through the unrolled layers, too, the numbers are those of diffusers."""
    monkeypatch.setattr("basicsr_quant.archs.vae_tiling.is_tiled", lambda *_: True)
    image, latent = torch.randn(2, 3, 24, 32), torch.randn(2, 4, 6, 8)
    done = []
    with torch.no_grad():
        moments = encode_moments(vae, image, 64, lambda *progress: done.append(progress))
        torch.testing.assert_close(moments, vae.encode(image).latent_dist.parameters, rtol=1e-4, atol=1e-5)
        decoded = decode_latent(vae, latent, 64)
        torch.testing.assert_close(decoded, vae.decode(latent).sample, rtol=1e-4, atol=1e-5)
    assert done[-1][0] == done[-1][1] == len(done)


def test_untiled_below_the_limit(vae) -> None:
    image = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        assert torch.equal(encode_moments(vae, image, 64), vae.encode(image).latent_dist.parameters)
        assert torch.equal(decode_latent(vae, torch.ones(1, 4, 6, 8), 0), vae.decode(torch.ones(1, 4, 6, 8)).sample)


def test_several_tiles_join(vae) -> None:
    """On a periodic image, whose tiles have nearly equal statistics, tiling changes little."""
    torch.manual_seed(1)
    period = torch.randn(1, 3, 16, 16)
    image = period.repeat(1, 1, 8, 10)
    with torch.no_grad():
        whole = vae.encode(image).latent_dist.parameters
        tiled = encode_moments(vae, image, 32)
        assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
        assert functional.mse_loss(tiled, whole) < 1e-2 * whole.var()
        latent = torch.randn(1, 4, 4, 4).repeat(1, 1, 12, 10)
        whole, tiled = vae.decode(latent).sample, decode_latent(vae, latent, 16)
        assert tiled.shape == whole.shape == (1, 3, 192, 160)
        assert functional.mse_loss(tiled, whole) < 1e-2 * whole.var()


class Doubled(nn.Module):
    """A layer put in the place of a convolution, as quantized layers are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(features)


def test_replaced_layers_are_used(vae, monkeypatch) -> None:
    import copy

    monkeypatch.setattr("basicsr_quant.archs.vae_tiling.is_tiled", lambda *_: True)
    changed = copy.deepcopy(vae)
    for block in (changed.encoder.down_blocks[0], changed.encoder.mid_block):
        block.resnets[0].conv1 = Doubled(block.resnets[0].conv1)
    changed.encoder.mid_block.attentions[0].to_v = Doubled(changed.encoder.mid_block.attentions[0].to_v)
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = changed.encode(image).latent_dist.parameters
        torch.testing.assert_close(encode_moments(changed, image, 64), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, vae.encode(image).latent_dist.parameters)


def test_half_precision(vae) -> None:
    image = torch.randn(1, 3, 136, 100)
    with torch.no_grad():
        full = encode_moments(vae, image, 32)
        half = encode_moments(vae.to(torch.bfloat16), image.bfloat16(), 32)
    vae.float()
    assert half.dtype == torch.bfloat16
    assert functional.mse_loss(half.float(), full) < 1e-2 * full.var()
