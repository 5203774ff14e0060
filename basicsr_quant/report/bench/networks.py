"""The network of the benchmarks: SwinIR-light with random weights, quantized as 2DQuant does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

HEADS = 6
LINES: list[dict[str, Any]] = [
    {"*.attn.qkv": {"split_out": 3, "weight": {}, "activation": {}}},
    {"*.attn.proj": {"weight": {}, "activation": {}}},
    {"*.mlp.fc?": {"weight": {}, "activation": {}}},
    {"*.attn.*": {"activation": {}}},
]


@dataclass(frozen=True)
class Network:
    """Sizes of a SwinIR and of the patches that it sees.

    Attributes:
        depths: Blocks in each group.
        channels: Width, a multiple of 6.
        bits: Width of all codes.
        batch: Patches in a batch.
        patch_size: Side of an LR patch, a multiple of 8.
        device: ``cpu``, ``cuda``.
        seed: Of weights and patches.
    """

    depths: Sequence[int]
    channels: int
    bits: int
    batch: int
    patch_size: int
    device: str
    seed: int

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, batch: int, device: bool = True) -> None:
        """Add an argument for each attribute; ``device`` is the CPU where it cannot be chosen."""
        parser.add_argument("--batch", type=int, default=batch, help=f"LR patches in a batch (default {batch})")
        parser.add_argument("--patch-size", type=int, default=64, help="side of an LR patch, a multiple of 8")
        parser.add_argument("--bits", type=int, default=4, choices=range(1, 9), metavar="1-8")
        parser.add_argument("--depths", type=int, nargs="+", default=[6, 6, 6, 6], help="blocks per group of SwinIR")
        parser.add_argument("--channels", type=int, default=60, help="width of SwinIR, a multiple of 6")
        parser.set_defaults(device="cpu")
        if device:
            parser.add_argument("--device", default="cpu", help="cpu or cuda")
        parser.add_argument("--seed", type=int, default=0)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Network:
        """Return what the command line asks for."""
        return cls(arguments.depths, arguments.channels, arguments.bits, arguments.batch, arguments.patch_size,
                   arguments.device, arguments.seed)

    def as_arguments(self) -> dict[str, Any]:
        """Return the attributes in JSON's types."""
        return asdict(self)

    def full_precision(self) -> nn.Module:
        """Return the x4 network in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = SwinIR(upscale=4, depths=self.depths, embed_dim=self.channels,
                             num_heads=[HEADS] * len(self.depths))
        return network.to(self.device).eval()

    def quantized(self, observer: str = "dobi") -> nn.Module:
        """Return the network with its quantizers, not yet calibrated."""
        tensors = {name: {"bits": self.bits, "observer": observer} for name in ("weight", "activation")}
        return prepare(self.full_precision(), QuantPlan.parse(LINES, tensors)).eval()

    def images(self) -> torch.Tensor:
        """Return smooth random patches, (B, 3, h, w) in [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        coarse = torch.rand(self.batch, 3, self.patch_size // 4, self.patch_size // 4, generator=generator)
        return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear").to(self.device)

    def __str__(self) -> str:
        sizes = "SwinIR-light" if (list(self.depths), self.channels) == ([6] * 4, 60) else (
            f"SwinIR with depths {list(self.depths)} and {self.channels} channels")
        return f"{sizes} x4, {self.bits} bits, batch {self.batch}x3x{self.patch_size}x{self.patch_size}"
