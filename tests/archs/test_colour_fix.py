"""Colour fixes: numbers recorded from OSEDiff's code, and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from basicsr_quant.archs.colour_fix import adain, fix_colours, low_frequencies, truncated_to_8bit, wavelet
from basicsr_quant.errors import UserError


@pytest.fixture(scope="module")
def records(fixtures) -> dict[str, torch.Tensor]:
    return load_file(fixtures / "passionsr" / "color_fix.safetensors")


def batch(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1)[None]


@pytest.mark.parametrize("pair", ["a", "b"])
@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_recorded(records, pair: str, method: str) -> None:
    target, source = (batch(records[f"{pair}.{name}_u8"]) for name in ("target", "source"))
    change = {"adain": adain, "wavelet": wavelet}[method]
    torch.testing.assert_close(change(target / 255, source / 255), records[f"{pair}.{method}_float"], rtol=0, atol=1e-6)
    assert torch.equal(fix_colours(target, source, method), batch(records[f"{pair}.{method}_u8"]))


def test_nothing_and_refusals() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert fix_colours(image, image, "nofix") is image
    with pytest.raises(UserError, match="unknown colour fix 'wavelets'"):
        fix_colours(image, image, "wavelets")
    with pytest.raises(UserError, match="one size"):
        fix_colours(image, image[..., :4], "adain")


def test_truncation() -> None:
    values = torch.tensor([-1.0, 0.0, 0.9999, 1.0, 2.0, 100.9 / 255])
    assert truncated_to_8bit(values).tolist() == [0, 0, 254, 255, 255, 100]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_adain_gives_the_statistics_once_and_for_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target, reference = torch.rand(2, 1, 3, 16, 12, dtype=torch.float64, generator=generator)
    once = adain(target, reference)
    torch.testing.assert_close(once.mean((2, 3)), reference.mean((2, 3)))
    torch.testing.assert_close(once.std((2, 3)), reference.std((2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(adain(once, reference), once, rtol=1e-3, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_wavelet_is_identity_on_itself_and_keeps_constants(seed: int) -> None:
    image = torch.rand(1, 3, 20, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(wavelet(image, image), image)
    flat = torch.full_like(image, 0.3)
    torch.testing.assert_close(low_frequencies(flat), flat)
    torch.testing.assert_close(wavelet(image + 0.25, image), image)
