"""SR3UNet and the reference network of the binary baselines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from basicsr_quant.archs.binary_baseline_unet import BinaryBaselineUNet
from basicsr_quant.archs.sr3_unet import SR3UNet
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.binarizers import bi_conv, bnn, dorefa, ir_net, react_net, xnor_net
from basicsr_quant.quant.binary.conv2d import binary_layers, frozen_binary_weights
from basicsr_quant.quant.binary.slopes import ErrorDecaySlope, set_progress
from basicsr_quant.quant.binary.unit import Binarizer

TINY: dict[str, Any] = {"inner_channel": 8, "norm_groups": 4, "channel_mults": [1, 2], "res_blocks": 1,
                        "image_size": 16, "dropout": 0.2}


def _images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 16, 16, generator=generator),
            torch.tensor([[3], [1999]]))


def _learns(network: nn.Module) -> None:
    network.train()
    output = network(*_images(), dropout_draws=torch.rand(2, network.residual_blocks))
    assert output.shape == (2, 3, 16, 16)
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_sr3_learns() -> None:
    torch.manual_seed(0)
    _learns(SR3UNet(**TINY))
    _learns(SR3UNet(**{**TINY, "attn_res": [16], "channel_mults": [1, 1, 3]}))


def test_sr3_has_the_topology_of_its_public_code() -> None:
    with torch.device("meta"):
        network = SR3UNet()
        output = network(torch.empty(1, 3, 64, 32), torch.empty(1, 3, 64, 32), torch.zeros(1, 1).long())
    assert output.shape == (1, 3, 64, 32)
    assert len(network.downs) == 12 and len(network.mid) == 2
    widths = [(stage.block1.norm.num_channels, stage.time.out_features) for stage in network.ups
              if hasattr(stage, "block1")]
    assert widths == [(1024, 512), (1024, 512), (768, 512), (768, 256), (512, 256), (384, 256), (384, 128), (256, 128),
                      (192, 128), (192, 64), (128, 64), (128, 64)]
    assert [type(stage.shortcut) for stage in (network.downs[1], network.downs[4])] == [type(None), nn.Conv2d]
    assert not network.downs[1].swish_time
    assert len([name for name, _ in network.named_modules() if name.endswith("attention")]) == 1


def test_time_enters_without_a_swish() -> None:
    torch.manual_seed(0)
    network = SR3UNet(**TINY).eval()
    block = network.downs[1]
    seen: list[torch.Tensor] = []
    block.time.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image, condition, time = _images()
    network(image, condition, time)
    torch.testing.assert_close(seen[0], network.time_embedding(time.flatten()))


@pytest.mark.parametrize("binarizer", [bnn(), dorefa(), xnor_net(), ir_net(), react_net(), bi_conv()])
@pytest.mark.parametrize("down", ["pool", "unshuffle"])
def test_baselines_learn(binarizer: Binarizer, down: str) -> None:
    torch.manual_seed(0)
    network = BinaryBaselineUNet(binarizer, **TINY, fp_res=[16], down=down)
    _learns(network)
    network.eval()
    with torch.no_grad():
        expected = network(*_images())
        with frozen_binary_weights(network):
            torch.testing.assert_close(network(*_images()), expected, rtol=0, atol=1e-6)


def test_baseline_has_the_widths_of_the_reconstruction() -> None:
    with torch.device("meta"):
        network = BinaryBaselineUNet(react_net())
        image = torch.empty(1, 3, 8, 16)
        assert network(image, image, torch.zeros(1, 1).long()).shape == image.shape
    blocks = [stage for stage in network.ups if hasattr(stage, "block1")]
    assert [stage.block1.norm.num_channels for stage in blocks] == [
        1024, 1024, 1024, 768, 512, 512, 128, 128, 128, 64, 64, 64]
    shortcuts = [stage.shortcut.binary.kernel_size for stage in blocks if stage.shortcut is not None]
    assert shortcuts == [(1, 1)] * 6
    joined = [stage.conv.in_channels for stage in network.ups if type(stage).__name__ == "ConvFusion"]
    assert joined == [384, 256, 256, 192, 128, 128]
    assert all(layer.bias is None for _, layer in binary_layers(network))
    assert network.groups == 1 and network.group_of(1999) == 0


def test_progress_reaches_every_error_decay() -> None:
    network = BinaryBaselineUNet(ir_net(), **TINY)
    set_progress(network, 1.0)
    temperatures = [float(module.temperature) for module in network.modules() if isinstance(module, ErrorDecaySlope)]
    assert len(temperatures) == 2 * len(list(binary_layers(network))) and set(temperatures) == {10.0}


def test_meaningless_options_are_one_line() -> None:
    for options in ({"channel_mults": [1, 4]}, {"norm_groups": 5}):
        with pytest.raises(UserError) as raised:
            BinaryBaselineUNet(bnn(), **{**TINY, **options})
        assert "\n" not in str(raised.value)
