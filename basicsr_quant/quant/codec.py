"""Codes of 1 to 8 bits as a dense stream of bytes, and back."""

from __future__ import annotations

import torch

GROUP = 8
BITS_OF_BYTE = 8


def stream_bytes(count: int, bits: int) -> int:
    """Return the length in bytes of a stream of ``count`` codes of ``bits`` bits."""
    return -(-count * bits // BITS_OF_BYTE)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes as a little-endian bit stream without gaps.

    Code i takes bits i * b to (i + 1) * b - 1 of the stream, lowest bit first; bit k of the stream is bit k % 8 of byte
    k // 8. Thus 4-bit codes lie two to a byte, the first in the low half. The last byte is filled up with zeros.

    Args:
        codes: uint8, any shape, taken in row-major order; 0 to 2^bits - 1.
        bits: b, 1 to 8.

    Returns:
        uint8 (ceil(count * bits / 8),).

    Raises:
        ValueError: A code needs more bits, or the dtype or width is another one.
    """
    _check(codes, bits)
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) >= 1 << bits:
        raise ValueError(f"a code is {int(flat.max())}, which takes more than {bits} bits")
    if bits == BITS_OF_BYTE:
        return flat.clone()
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % GROUP)).view(-1, GROUP)
    words = torch.zeros(len(groups), dtype=torch.int64, device=flat.device)
    for place in range(GROUP):
        words |= groups[:, place].long() << place * bits
    packed = torch.stack([(words >> BITS_OF_BYTE * byte & 255).byte() for byte in range(bits)], 1)
    return packed.view(-1)[:stream_bytes(flat.numel(), bits)].clone()


def unpack_codes(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the codes of a stream that :func:`pack_codes` made.

    Args:
        stream: uint8 (ceil(count * bits / 8),).
        bits: 1 to 8.
        count: Number of codes.

    Returns:
        uint8 (count,).

    Raises:
        ValueError: The stream has another length, dtype or width.
    """
    _check(stream, bits)
    if stream.numel() != stream_bytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits take {stream_bytes(count, bits)} bytes, not {stream.numel()}")
    if bits == BITS_OF_BYTE:
        return stream.reshape(-1).clone()
    groups = torch.nn.functional.pad(stream.reshape(-1), (0, -stream.numel() % bits)).view(-1, bits)
    words = torch.zeros(len(groups), dtype=torch.int64, device=stream.device)
    for byte in range(bits):
        words |= groups[:, byte].long() << BITS_OF_BYTE * byte
    mask = (1 << bits) - 1
    codes = torch.stack([(words >> place * bits & mask).byte() for place in range(GROUP)], 1)
    return codes.view(-1)[:count].clone()


def _check(tensor: torch.Tensor, bits: int) -> None:
    if tensor.dtype != torch.uint8:
        raise ValueError(f"codes and streams are uint8, not {tensor.dtype}")
    if not 1 <= bits <= BITS_OF_BYTE:
        raise ValueError(f"a code has 1 to 8 bits, not {bits}")
