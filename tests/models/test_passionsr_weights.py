"""PassionSR's published weight files: names, shapes, numbers there and back."""

from __future__ import annotations

import pytest
import torch
from passionsr_networks import RELEASED, example, full_on_meta, narrow, prepared, run

from basicsr_quant.archs.published.passionsr_state import export_passionsr, import_passionsr
from basicsr_quant.errors import UserError
from basicsr_quant.models.passionsr_weights import load_published
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.let_calibration import calibrate_in_one_pass

SPLIT = {"unet": "half", "vae": "none"}


@pytest.mark.parametrize(("component", "count", "norms"), [("unet", 3730, 218), ("vae", 680, 104)])
def test_keys_of_the_full_networks(component: str, count: int, norms: int) -> None:
    network = prepared(component, full_on_meta(component), (64, 64), split=SPLIT[component], **RELEASED)
    state = network.state_dict()
    published = export_passionsr(component, state)
    assert len(published) == count
    shapes = {key.removeprefix("model.model."): tuple(tensor.shape) for key, tensor in published.items()}
    if component == "unet":
        block = "input_blocks.1.1.transformer_blocks.0"
        assert shapes["input_blocks.0.0.scale_factor"] == (1, 4, 1, 1)
        assert shapes["time_embed.0.offset"] == (1, 320)
        assert shapes["input_blocks.0.0.weight_quantizer_1.x_max"] == (320, 1, 1, 1)
        assert shapes["time_embed.2.act_quantizer_1.x_min"] == shapes["time_embed.2.bias_quantizer.x_min"] == ()
        assert shapes[f"{block}.attn1.scale_factor_qk"] == (64,) and shapes[f"{block}.attn1.scale_factor_vw"] == (4096,)
        assert shapes[f"{block}.attn2.scale_factor_vw"] == (77,)
        assert shapes[f"{block}.attn2.act_quantizer_w.x_min"] == ()
    else:
        assert shapes["encoder.mid.attn_1.q.scale_factor"] == (1, 512, 1, 1)
        assert shapes["encoder.mid.attn_1.q.weight_quantizer_0.x_min"] == (512, 1, 1, 1)
        assert not any("_1.x_" in key for key in shapes)
    quantized, found_norms = import_passionsr(component, published, "file")
    assert len(found_norms) == norms and len(quantized) == count - norms
    assert all(state[name].shape == tensor.shape for name, tensor in {**quantized, **found_norms}.items())
    load_published(network, component, published, "file")


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_there_and_back(component: str) -> None:
    first = prepared(component, narrow(component), split=SPLIT[component], **RELEASED)
    calibrate_in_one_pass(first, [example(component)], forward=lambda x: run(component, first, x))
    published = export_passionsr(component, first.state_dict())
    second = prepared(component, narrow(component), split=SPLIT[component], **RELEASED)
    load_published(second, component, published, "file")
    found = second.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in first.state_dict().items())
    assert torch.equal(run(component, second, example(component, 3)), run(component, first, example(component, 3)))
    assert {quantizer.bits for _, quantizer in named_quantizers(second)} == {8}


def test_files_that_do_not_fit() -> None:
    network = prepared("vae", narrow("vae"), **RELEASED)
    published = export_passionsr("vae", network.state_dict())

    def changed(**keys: torch.Tensor | None) -> dict[str, torch.Tensor]:
        table = {**published, **{f"model.model.{key.replace('/', '.')}": value for key, value in keys.items()}}
        return {key: value for key, value in table.items() if value is not None}

    cases = {
        "f: unknown key 'conv_in.weight'": {"conv_in.weight": torch.ones(3)},
        "f: unknown key 'model.model.quant_conv.delta'": changed(**{"quant_conv/delta": torch.ones(1)}),
        "'model.model.quant_conv.act_quantizer_0.x_min' was never set": changed(
            **{"quant_conv/act_quantizer_0/x_min": torch.tensor(-0.5, dtype=torch.float64)}),
        "'quant_conv.let.offset' is missing": changed(**{"quant_conv/offset": None}),
        "'quant_conv.let.offset' has shape \\(3,\\), expected \\(8,\\)": changed(
            **{"quant_conv/offset": torch.ones(1, 3, 1, 1)}),
        "its norm 'encoder.conv_norm_out.weight' differs": changed(**{"encoder/norm_out/weight": torch.zeros(24)}),
        "its norm 'encoder.conv_norm_out.weight' does not fit": changed(**{"encoder/norm_out/weight": torch.ones(5)}),
        "'quant_conv.processor.scale_qk.value' is not part of it": changed(
            **{"quant_conv/scale_factor_qk": torch.ones(8)}),
        "'quant_conv.weight_quantizer.lower_bound' is missing": changed(
            **{"quant_conv/weight_quantizer_1/x_min": torch.ones(8, 1, 1, 1),
               "quant_conv/weight_quantizer_1/x_max": torch.ones(8, 1, 1, 1)}),
    }
    for message, state in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            load_published(network, "vae", state, "f")
        assert "\n" not in str(raised.value)
