"""OSEDiff's pipeline: sizes, the one-step formula, the posterior, 8-bit details, tiles, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from basicsr_quant.archs.osediff import ALPHA_BAR, noise_schedule, sd_unet, sd_vae
from basicsr_quant.archs.osediff_input import bicubic, prepare_input, resize_8bit
from basicsr_quant.archs.osediff_pipeline import OSEDiff, Tiles
from basicsr_quant.archs.osediff_restore import Settings, restore_image
from basicsr_quant.errors import UserError

pytest.importorskip("diffusers")


def build(**changes: object) -> OSEDiff:
    torch.manual_seed(0)
    unet, vae = sd_unet((8, 16), 1, 1, (1, 2), 8, 4, 4), sd_vae((8, 16, 16), 1, 4, 4, 0.5)
    return OSEDiff(unet, vae, torch.randn(1, 5, 8), **changes).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def network() -> OSEDiff:
    return build()


def low_resolution(height: int, width: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (1, 3, height, width)).float() / 255


def test_latent_is_the_scaled_mean_or_a_sample(network) -> None:
    image = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        posterior = network.vae.encode(2 * image - 1).latent_dist
        torch.testing.assert_close(network.encode(image), 0.5 * posterior.mode())
        noise = torch.randn(2, 4, 4, 6)
        torch.testing.assert_close(network.encode(image, noise), 0.5 * (posterior.mean + posterior.std * noise))
        latent = torch.randn(1, 4, 4, 6)
        torch.testing.assert_close(network.decode(latent), network.vae.decode(latent / 0.5).sample / 2 + 0.5)
    assert network.latent_shape(16, 24) == (4, 4, 6)


def test_one_step_at_999(network) -> None:
    latent = torch.randn(2, 4, 4, 6)
    with torch.no_grad():
        noise = network.unet(latent, 999, network.context.expand(2, -1, -1)).sample
        torch.testing.assert_close(network.predict_noise(latent), noise)
        expected = 14.648819 * latent - 14.614647 * noise
        torch.testing.assert_close(network.one_step(latent), expected, rtol=1e-4, atol=1e-4)
    assert network.alpha_bar == ALPHA_BAR


def test_scaled_input_starts_as_the_identity() -> None:
    network = build(timestep=249, scaled_input=True)
    torch.nn.init.zeros_(network.unet.conv_out.weight)
    torch.nn.init.zeros_(network.unet.conv_out.bias)
    latent = torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(network.one_step(latent), latent, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(network.unet_input(latent), latent * math.sqrt(float(noise_schedule()[249])))


def test_forward_is_differentiable(network) -> None:
    image = torch.rand(1, 3, 4, 6, requires_grad=True)
    restored = network(image)
    assert restored.shape == (1, 3, 16, 24)
    restored.mean().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    grown = network.one_step(network.encode(bicubic(image, 4)))
    torch.testing.assert_close(network.decode(grown), restored)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (16, 13), (40, 3)])
def test_any_size(network, height, width) -> None:
    settings = Settings(process_size=32)
    with torch.no_grad():
        result = restore_image(network, low_resolution(height, width), 4, settings)
    assert result.shape == (1, 3, 4 * height, 4 * width)
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize(("size", "fit", "expected"), [
    ((9, 11), "lanczos", (32, 40)), ((9, 11), "lanczos_exact", (36, 44)), ((9, 11), "pad", (36, 44)),
    ((10, 12), "lanczos", (40, 48)), ((5, 11), "lanczos", (20, 44))])
def test_released_sizes(network, size, fit, expected) -> None:
    """The output keeps the lower multiple of 8, unless the input was enlarged for being small."""
    with torch.no_grad():
        result = restore_image(network, low_resolution(*size), 4, Settings("pillow", fit, 32, "truncate"))
    assert result.shape[-2:] == expected


def test_released_input_is_pillows() -> None:
    image = low_resolution(9, 11)
    picture = Image.fromarray((image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    grown = picture.resize((44, 36))
    prepared = prepare_input(image, 4, "pillow", "lanczos", 8, 32)
    expected = np.asarray(grown.resize((40, 32), Image.Resampling.LANCZOS))
    assert np.array_equal((prepared.image[0].permute(1, 2, 0).numpy() * 255).round(), expected)
    assert prepared.size == (32, 40) and prepared.resized
    small = prepare_input(low_resolution(5, 11), 4, "pillow", "lanczos", 8, 32)
    assert small.image.shape[-2:] == (32, 64) and small.size == (20, 44)
    assert prepare_input(image, 4, "torch", "pad", 8, 64).image.shape[-2:] == (64, 64)


def test_torch_enlarges_as_pillow_but_for_rounding() -> None:
    """Pillow also cuts off what overshoots between its two passes; here nothing does."""
    image = (0.3 + 0.4 * low_resolution(12, 15)).mul(255).round() / 255
    rounded = resize_8bit(image, (48, 60))
    assert (bicubic(image, 4) - rounded).abs().max() < 1.6 / 255


def test_truncated_or_rounded_once(network) -> None:
    image = low_resolution(8, 8)
    with torch.no_grad():
        once = restore_image(network, image, 4, Settings(process_size=32, colour_fix="nofix"))
        cut = restore_image(network, image, 4, Settings("torch", "pad", 32, "truncate", "nofix"))
        torch.testing.assert_close(cut, (once * 255).floor() / 255)
        for fix in ("adain", "wavelet"):
            exact = restore_image(network, image, 4, Settings(process_size=32, colour_fix=fix))
            cut = restore_image(network, image, 4, Settings("pillow", "lanczos", 32, "truncate", fix))
            assert (exact - cut).abs().mean() < 2 / 255 and not torch.equal(exact, cut)
        reference = bicubic(image, 4).clamp(0, 1)
        coloured = restore_image(network, image, 4, Settings(process_size=32, colour_fix="adain"))
        assert (coloured.mean((2, 3)) - reference.mean((2, 3))).abs().max() < 0.05


def test_round_trip_leaves_the_unet_out(network) -> None:
    image = low_resolution(32, 32)
    with torch.no_grad():
        result = restore_image(network, image, 1, Settings(process_size=32, colour_fix="nofix", round_trip=True))
        torch.testing.assert_close(result, network.decode(network.encode(image)).clamp(0, 1))


def test_posterior_noise_is_asked_for_by_shape(network) -> None:
    shapes = []

    def draw(shape: tuple[int, int, int]) -> torch.Tensor:
        shapes.append(shape)
        return torch.ones(1, *shape)

    with torch.no_grad():
        sampled = restore_image(network, low_resolution(8, 16), 4, Settings(process_size=32), draw)
    assert shapes == [(4, 8, 16)]
    assert not torch.equal(sampled, restore_image(network, low_resolution(8, 16), 4, Settings(process_size=32)))


def test_tiles_change_little_and_report() -> None:
    tiled, whole = build(tiles=Tiles(16, 8, 64, 32)), build(tiles=Tiles(0, 0, 0, 0))
    image = low_resolution(20, 40)
    done = []
    with torch.no_grad():
        settings = Settings(process_size=32, colour_fix="nofix")
        with_tiles = restore_image(tiled, image, 4, settings, None, lambda *progress: done.append(progress))
        without = restore_image(whole, image, 4, settings)
    assert done[-1] == (len(done), len(done)) and len(done) > 4
    assert with_tiles.shape == without.shape
    assert not torch.equal(with_tiles, without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision(dtype) -> None:
    image = low_resolution(8, 8)
    settings = Settings(process_size=32, colour_fix="nofix")
    with torch.no_grad():
        full = restore_image(build(timestep=249, scaled_input=True), image, 4, settings)
        half = restore_image(build(timestep=249, scaled_input=True).to(dtype), image, 4, settings)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.02


def test_levels_have_to_agree() -> None:
    with pytest.raises(UserError, match="attention_head_dim 3"):
        sd_unet((8, 16), 1, 1, (1, 2, 3), 8, 4, 4)
