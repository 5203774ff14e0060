"""Latent tiles with Gaussian weights: numbers recorded from OSEDiff's and PassionSR's code, and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from basicsr_quant.archs.latent_tiling import gaussian_weights, tile_starts, tiled_prediction


@pytest.fixture(scope="module")
def records(fixtures) -> dict[str, torch.Tensor]:
    return load_file(fixtures / "passionsr" / "latent_tiling.safetensors")


def stand_in(x: torch.Tensor) -> torch.Tensor:
    height, width = x.shape[-2:]
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return 0.3 * x + torch.tanh(x.mean((2, 3), keepdim=True)) + columns + 0.5 * rows[:, None]


@pytest.mark.parametrize("case", ["t64", "t64_exact", "t96", "small", "edge"])
def test_blended_prediction(records, case: str) -> None:
    tile, overlap = records[f"{case}.tile_overlap"].tolist()
    calls: list[torch.Size] = []
    done: list[tuple[int, int]] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return stand_in(x)

    result = tiled_prediction(network, records[f"{case}.latent"], tile, overlap,
                              lambda now, total: done.append((now, total)))
    torch.testing.assert_close(result, records[f"{case}.eps_blended"], rtol=0, atol=5e-6)
    assert len(calls) == int(records[f"{case}.num_unet_calls"])
    assert done[-1] == (len(calls), len(calls))


@pytest.mark.parametrize("tile", [64, 96])
def test_weights(records, tile: int) -> None:
    weights = gaussian_weights(tile)
    torch.testing.assert_close(weights, records[f"gauss{tile}"], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weights, weights.flip(1))
    assert not torch.allclose(weights, weights.flip(0))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(8, 200), tile=st.integers(2, 64), data=st.data())
def test_tiles_cover_the_axis(size: int, tile: int, data) -> None:
    tile = min(tile, size)
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0 and starts[-1] == size - tile and starts == sorted(set(starts))
    assert all(second - first <= tile - overlap for first, second in zip(starts, starts[1:], strict=False))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(3, 40), width=st.integers(3, 40), tile=st.integers(2, 16), share=st.floats(0, 0.9))
def test_weights_sum_to_one(height: int, width: int, tile: int, share: float) -> None:
    latent = torch.randn(1, 2, height, width)
    same = tiled_prediction(lambda x: 2 * x, latent, tile, int(share * tile))
    torch.testing.assert_close(same, 2 * latent)


def test_narrow_latent_and_wrong_overlap() -> None:
    latent = torch.randn(1, 4, 20, 400)
    torch.testing.assert_close(tiled_prediction(lambda x: x, latent, 64, 32), latent)
    with pytest.raises(ValueError, match="overlap 64"):
        tiled_prediction(lambda x: x, latent, 64, 64)


def test_half_precision_is_summed_in_float32() -> None:
    latent = torch.randn(1, 4, 70, 70).to(torch.bfloat16)
    result = tiled_prediction(lambda x: x, latent, 64, 32)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, latent, rtol=1e-2, atol=0)
