"""The VAE's start for training from scratch: an image shrunk and enlarged, colours and contrast kept."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from basicsr_quant.archs.osediff import sd_vae
from basicsr_quant.errors import UserError

pytest.importorskip("diffusers")


def test_decodes_its_shrunk_input() -> None:
    torch.manual_seed(0)
    vae = sd_vae((16, 32, 48), 1, 16, 2, 1.0, "resampling").eval()
    image = functional.interpolate(torch.rand(1, 3, 8, 8) - 0.5, scale_factor=8, mode="bicubic")
    with torch.no_grad():
        latent = vae.encode(image).latent_dist.mode()
        decoded = vae.decode(latent).sample
    shrunk = functional.avg_pool2d(image, 4)
    for colour in range(3):
        pair = torch.stack([latent[0, colour, 1:-1, 1:-1].flatten(), shrunk[0, colour, 1:-1, 1:-1].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.98
    assert functional.mse_loss(decoded, image) < 0.2 * image.var()


def test_brightness_passes() -> None:
    """With diffusers' own start, a flat image loses its brightness in the first normalization."""
    torch.manual_seed(0)
    vae = sd_vae((16, 32), 1, 4, 2, 1.0, "resampling").eval()
    with torch.no_grad():
        dark, bright = (vae.decode(vae.encode(torch.full((1, 3, 32, 32), value)).latent_dist.mode()).sample.mean()
                        for value in (-0.5, 0.5))
    assert 0.6 < bright - dark < 1.4


def test_too_narrow() -> None:
    with pytest.raises(UserError, match="start: resampling needs 8 channels"):
        sd_vae((8, 16), 1, 4, 2, 1.0, "resampling")
