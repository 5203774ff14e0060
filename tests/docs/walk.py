"""Run by the test of docs/extending.md in a copy of the package with the new files in it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import basicsr_quant
from basicsr_quant.cli.main import main, train_main
from basicsr_quant.cli.main import test_main as run_test
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.registry import ARCHS, QUANTIZERS

assert Path(basicsr_quant.__file__).is_relative_to(Path.cwd()), "this is not the copy"

# the observer, by its numbers and in a checkpoint of the third training below
torch.manual_seed(0)
layer = nn.Linear(6, 4)
recipe = {"bits": 3, "observer": {"type": "symmetric", "part": 0.5}, "grid": "power_of_two"}
quantized = prepare(nn.Sequential(layer), QuantPlan.parse([{"0": {"weight": recipe, "activation": recipe}}]))
data = [torch.randn(50, 6) for _ in range(2)]
calibrate(quantized, data)
bounds = {name: quantizer for name, quantizer in named_quantizers(quantized)}
expected = 0.5 * torch.cat(data).abs().max()
assert torch.equal(bounds["0.activation_quantizer"].upper_bound[0], expected)
assert torch.equal(bounds["0.activation_quantizer"].lower_bound[0], -expected)

# the grid: at most 2^b values a power of two apart, the two halves agree, gradients reach everything
grid = QUANTIZERS.build("power_of_two")
x = torch.randn(500, requires_grad=True)
lower, upper = torch.tensor([-1.5], requires_grad=True), torch.tensor([1.7], requires_grad=True)
rounded = grid.fake_quantize(x, lower, upper, 3)
codes = grid.encode(x, lower, upper, 3)
assert codes.dtype == torch.uint8 and int(codes.max()) <= 7
torch.testing.assert_close(rounded, grid.decode(codes, lower, upper, 3), rtol=0, atol=0)
torch.testing.assert_close(rounded.unique().diff(), torch.full((rounded.unique().numel() - 1,), 0.5))
assert torch.equal(grid.fake_quantize(rounded, lower, upper, 3), rounded)
rounded.square().sum().backward()
assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in (x, lower, upper))

# the quantized layer
up = nn.ConvTranspose2d(4, 6, 4, 2, 1)
image = torch.rand(2, 4, 5, 7)
wanted = up(image)
eight = {"bits": 8, "observer": "minmax"}
prepared = prepare(nn.Sequential(up), QuantPlan.parse([{"0": {"weight": eight, "activation": eight}}]))
calibrate(prepared, [image])
assert (prepared(image) - wanted).abs().max() < 0.05
assert type(prepared[0]).__name__ == "QuantConvTranspose2d"

# the network, through option files
assert ARCHS.build("ESPCN", upscale=3)(torch.rand(1, 3, 5, 6)).shape == (1, 3, 15, 18)
for run, file in ((train_main, "fp.yml"), (train_main, "low.yml"), (run_test, "test_low.yml")):
    assert run(["-opt", file]) == 0, file
saved = torch.load("experiments/low/models/net_Q_latest.pth", weights_only=True)["params"]
assert any(name.endswith("n_bit") for name in saved)

# the verb that the document names
assert main(["docs", "--root", "generated"]) == 0
text = Path("generated/docs/options.md").read_text()
assert all(name in text for name in ("symmetric", "ESPCN"))
sys.stdout.write("walked\n")
