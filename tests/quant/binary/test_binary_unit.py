"""The binary unit against the released BI-Conv, and the other methods composed of the same parts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from basicsr_quant import registry
from basicsr_quant.archs.published.bi_diffsr import import_bi_diffsr
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.binarizers import (
    bi_conv,
    bnn,
    dorefa,
    ir_net,
    make_binarizer,
    react_net,
    xnor_net,
)
from basicsr_quant.quant.binary.unit import Binarizer, BinaryUnit

METHODS = {"bnn": bnn, "dorefa": dorefa, "xnor_net": xnor_net, "ir_net": ir_net, "react_net": react_net,
           "bbcu": bi_conv, "bi_conv": bi_conv}


def _parameters(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return import_bi_diffsr({name.removeprefix(prefix): value for name, value in tensors.items()
                             if name.startswith(prefix)})


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("group", range(5))
def test_released_bi_conv(recorded, kernel: int, as_tensor: bool, group: int) -> None:
    tensors = recorded(f"biconv_k{kernel}")
    unit = BinaryUnit(8, 8, kernel, bi_conv(), shift_groups=5, activation_groups=5)
    unit.load_state_dict(_parameters(tensors, "param."))
    chosen = torch.tensor([group]) if as_tensor else group
    for dtype, suffix, tolerance in ((torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-10)):
        unit = unit.to(dtype)
        unit.zero_grad()
        x = tensors["x0"].to(dtype, copy=True).requires_grad_()
        y = unit(x, chosen)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)).sum().backward()
        torch.testing.assert_close(y, tensors[f"y.t{group}.{suffix}"], rtol=0, atol=tolerance)
        torch.testing.assert_close(x.grad, tensors[f"dx.t{group}.{suffix}"], rtol=0, atol=tolerance)
    expected = _parameters(tensors, f"grad.t{group}.f64.")
    for name, parameter in unit.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-10)
        elif as_tensor:
            assert parameter.grad is not None and not parameter.grad.any()
        else:
            assert parameter.grad is None


def test_bbcu_is_bi_conv_with_one_group() -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(4, 4, 3, bi_conv())
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter)
    shift, bent = unit.shift.members[0], unit.activation.members[0]
    x = torch.randn(2, 4, 6, 6)
    signs, scale = unit.binary.binary_weight()
    y = functional.conv2d((x + shift.bias).sign(), signs * scale, padding=1) + bent.shift_in
    y = torch.where(y > 0, y, bent.slope * y) + bent.shift_out
    torch.testing.assert_close(unit(x), y + x)
    for group in (0, 3, torch.tensor([4]), torch.tensor([1, 2])):
        assert torch.equal(unit(x, group), unit(x))


def test_react_net_adds_the_identity_before_the_rprelu() -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(4, 4, 1, react_net())
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(unit(x), unit.activation(unit.binary(unit.shift(x, 0)) + x, 0))


def test_identity_needs_equal_widths() -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(4, 8, 3, bi_conv())
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(unit(x), unit.activation(unit.binary(x), 0))
    assert not BinaryUnit(4, 4, 3, bi_conv(identity=False)).identity


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_counts(method: str) -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(4, 4, 3, METHODS[method]())
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    unit(x).square().mean().backward()
    for parameter in unit.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any()
    learnable = 16 if method in ("react_net", "bbcu", "bi_conv") else 0
    assert sum(parameter.numel() for parameter in unit.parameters()) == 144 + learnable
    assert x.grad is not None and x.grad.any()
    x = torch.zeros(1, 4, 3, 3)
    unit.zero_grad()
    plus_one = BinaryUnit(4, 4, 3, METHODS[method](sign_zero="plus_one"))
    activation = plus_one.binary.activation_binarizer
    assert activation(x).eq(0.0 if method == "dorefa" else 1.0).all()


@pytest.mark.parametrize("method", ["bi_conv", "ir_net", "xnor_net"])
def test_compiles_with_its_gradients(method: str) -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(4, 4, 3, METHODS[method](), shift_groups=2, activation_groups=2)
    x, group = torch.randn(2, 4, 5, 5), torch.tensor([1, 0])
    results = []
    for run in (unit, torch.compile(unit, backend="aot_eager", fullgraph=True)):
        unit.zero_grad()
        y = run(x, group)
        y.square().sum().backward()
        results.append([y.detach(), *[parameter.grad.clone() for parameter in unit.parameters()]])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_options_of_methods() -> None:
    x = torch.tensor([[[[-0.2, 0.7]]]])
    ports = BinaryUnit(1, 1, 1, dorefa(levels="plus_minus_one"))
    assert ports.binary.activation_binarizer(x).flatten().tolist() == [-1, 1]
    assert not BinaryUnit(1, 1, 1, xnor_net(spatial_scale=False)).binary.spatial_scale
    weight = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    for gradient, expected in (("scaled", 1.5), ("clipped", 1.0)):
        weight.grad = None
        signs, scale = xnor_net(weight_gradient=gradient).weight()(weight)
        (signs * scale).backward()
        assert float(weight.grad) == expected
    assert ir_net(lowest=1e-3).activation().slope.lowest == 1e-3
    assert BinaryUnit(1, 1, 1, bnn()).binary.weight_binarizer.latent_bound == 1


def test_units_share_no_modules() -> None:
    for make in METHODS.values():
        method = make()
        first, second = (BinaryUnit(2, 2, 1, method) for _ in range(2))
        assert {id(module) for module in first.modules()}.isdisjoint(id(module) for module in second.modules())


def test_methods_by_name() -> None:
    assert set(METHODS) == set(registry.BINARIZERS)
    for name in METHODS:
        assert isinstance(make_binarizer(name), Binarizer)
    chosen = make_binarizer({"type": "bi_conv", "identity": False}, "plus_one")
    assert not chosen.identity and chosen.weight().sign_zero == "plus_one"
    assert make_binarizer({"type": "bnn", "sign_zero": "zero"}, "plus_one").weight().sign_zero == "zero"
    assert make_binarizer(chosen) is chosen
    for wrong in ("bn", {"type": "bnn", "levels": 2}, 3):
        with pytest.raises(UserError) as raised:
            make_binarizer(wrong)
        assert "\n" not in str(raised.value)
