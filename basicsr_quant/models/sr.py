"""``model_type: SRModel``: full-precision super-resolution training of any network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.published.table import exporter, importer
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict, load_state_dict
from basicsr_quant.models.base import Batch, RestorationModel, Stage, forward_draws
from basicsr_quant.options.methods.sr import SROptions
from basicsr_quant.options.optimization import OPTIMIZERS
from basicsr_quant.registry import LOSSES


class SRStep(nn.Module):
    """One training step: restored patches against high-resolution patches.

    Args:
        network: In training.
        pixel_loss: Called with (restored, target).
        seed: ``manual_seed``, for the network's own random draws (DropPath).
        compiled: Whether to run the network through ``torch.compile``.
    """

    def __init__(self, network: nn.Module, pixel_loss: nn.Module, seed: int, compiled: bool) -> None:
        super().__init__()
        self.network = network
        self.pixel_loss = pixel_loss
        self.seed = seed
        self._forward = torch.compile(network) if compiled else network

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the scalar loss of a batch ``{lq: (B, 3, h, w), gt: (B, 3, H, W), ...}``."""
        parameter = next(self.network.parameters())
        device, dtype = parameter.device, parameter.dtype
        lq, gt = (batch[name].to(device, dtype, non_blocking=True) for name in ("lq", "gt"))
        draws = forward_draws(self.network, batch, self.seed, device) if self.network.training else {}
        return {"pixel": self.pixel_loss(self._forward(lq, **draws), gt)}


class SRModel(RestorationModel):
    """Train ``network_g`` on pairs of images."""

    options: SROptions

    def __init__(self, options: SROptions, device: torch.device) -> None:
        super().__init__(options, device)
        precision = options.train.precision if options.train is not None else "fp32"
        self._network = build_network(options.network_g.type, options.network_g.arguments)
        self._network.to(device, torch.float64 if precision == "fp64" else torch.float32)

    @classmethod
    def skeleton(cls, options: SROptions) -> nn.Module:
        """Return ``network_g`` without weights."""
        return build_network(options.network_g.type, options.network_g.arguments)

    @property
    def network(self) -> nn.Module:
        """The network that restores images."""
        return self._network

    @property
    def trained(self) -> dict[str, nn.Module]:
        """Checkpoints hold ``net_g``."""
        return {"g": self._network}

    def load_pretrained(self, training: bool) -> None:
        """Load ``path:pretrain_network_g``; training, and networks that bring their weights, can do without."""
        path = self.options.path
        if path.pretrain_network_g is None and not training and self.options.network_g.type != "spandrel":
            raise UserError("path:pretrain_network_g is missing; name the weights to test")
        if path.pretrain_network_g is not None:
            file = Path(path.pretrain_network_g)
            self.load_state(self._network, load_state_dict(file, path.param_key_g), file, path.strict_load_g)
        self._network.eval()

    def prepare_training(self, dataset: PairedImageDataset) -> None:
        """Switch to training mode."""
        self._network.train()

    def stage(self, index: int = 0) -> Stage:
        """Return the only stage: ``optim_g`` on all parameters, ``pixel_opt``."""
        train = self.options.train
        assert train is not None
        optimizer = train.optim_g.build(OPTIMIZERS, params=self._network.parameters())
        step = SRStep(self._network, train.pixel_opt.build(LOSSES), self.options.manual_seed, train.compile)
        return Stage("full precision", "g", step, [optimizer])

    def export_state(self, label: str, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights under their published names."""
        return exporter(self.options.network_g)(super().export_state(label, network))

    def import_state(self, label: str, network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
        """Load weights under their published names; all must be there."""
        self.load_state(network, state, path, strict=True)

    def load_state(self, network: nn.Module, state: dict[str, torch.Tensor], path: Path, strict: bool) -> None:
        """Load weights under their published names; see :func:`basicsr_quant.io.weights.apply_state_dict`."""
        apply_state_dict(network, importer(self.options.network_g)(state), path, strict)
