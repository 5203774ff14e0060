from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_quant.quant.codec import pack_codes, stream_bytes, unpack_codes


@st.composite
def coded(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    bits = draw(st.integers(1, 8))
    values = draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    return torch.tensor(values, dtype=torch.uint8), bits


@given(coded())
@settings(max_examples=200, deadline=None)
def test_stream_is_dense_little_endian_and_exact(given_codes: tuple[torch.Tensor, int]) -> None:
    codes, bits = given_codes
    stream = pack_codes(codes, bits)
    assert stream.numel() == stream_bytes(len(codes), bits) == -(-len(codes) * bits // 8)
    assert torch.equal(unpack_codes(stream, bits, len(codes)), codes)
    number = sum(int(code) << place * bits for place, code in enumerate(codes))
    assert bytes(stream.tolist()) == number.to_bytes(stream.numel(), "little")


def test_four_bits_lie_low_nibble_first_and_three_bits_eight_in_three_bytes() -> None:
    assert pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]
    assert pack_codes(torch.arange(8, dtype=torch.uint8), 3).tolist() == list((0o76543210).to_bytes(3, "little"))


def test_one_bit_agrees_with_numpy() -> None:
    codes = torch.randint(0, 2, (5, 7), dtype=torch.uint8)
    assert pack_codes(codes, 1).tolist() == np.packbits(codes.numpy().reshape(-1), bitorder="little").tolist()


@pytest.mark.parametrize("call", [
    lambda: pack_codes(torch.tensor([4], dtype=torch.uint8), 2),
    lambda: pack_codes(torch.tensor([4]), 2),
    lambda: pack_codes(torch.tensor([0], dtype=torch.uint8), 9),
    lambda: unpack_codes(torch.zeros(2, dtype=torch.uint8), 3, 6),
])
def test_what_does_not_fit_is_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
