"""Block reconstruction: which blocks, what they see, what they learn, and going on in the middle."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.adaround import install_learned_rounding
from basicsr_quant.quant.block_samples import blocks_in_order, first_call, joined
from basicsr_quant.quant.bounds import RelativeSteps
from basicsr_quant.quant.calibrate import activation_quantizers, calibrate, named_quantizers, set_state
from basicsr_quant.quant.layers.weighted import merge_weights, weighted_layers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.reconstruction import (
    PHASES,
    Phase,
    Reconstruction,
    RoundingPhase,
    block_distance,
    finished_form,
)
from basicsr_quant.registry import SELECTORS


class Block(nn.Module):
    """Two convolutions around an activation, with a shift given by keyword, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, unused: None = None) -> tuple[torch.Tensor]:
        return (x + self.conv2(nn.functional.silu(self.conv1(x) + shift[:, :, None, None])),)


class Network(nn.Module):
    """The parts are declared in another order than they run in; one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(6, 3, 1)
        self.idle = nn.Conv2d(6, 6, 1)
        self.blocks = nn.ModuleList(Block(6) for _ in range(2))
        self.embed = nn.Linear(2, 6)
        self.inlet = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift = self.embed(x.mean((2, 3))[:, :2])
        x = self.inlet(x)
        for block in self.blocks:
            (x,) = block(x, shift=shift)
        return self.out(x)


ORDER = ["embed", "inlet", "blocks.0", "blocks.1", "out"]
PATTERNS = ("blocks.*",)


def forward(network: nn.Module, batch: torch.Tensor) -> object:
    return network(batch)


def batches() -> list[torch.Tensor]:
    return list(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3)).split(1))


def networks(weight_bits: int = 2, activation_bits: int = 4) -> tuple[nn.Module, nn.Module]:
    """A calibrated model and its teacher."""
    torch.manual_seed(0)
    teacher = Network().eval().requires_grad_(False)
    grid = {"grid": "int_zero_point"}
    weight = {"bits": weight_bits, "per": "channel", "observer": "dobi", **grid}
    lines = [{"idle": "none"}, {"*": {"weight": weight, "activation": {"bits": activation_bits, **grid}}}]
    model = prepare(copy.deepcopy(teacher), QuantPlan.parse(lines)).eval()
    calibrate(model, [torch.cat(batches())])
    return model, teacher


def learn(model: nn.Module, teacher: nn.Module, what: str = "rounding", iterations: int = 80, rate: float = 0.05,
          start: int = 0, after: Callable[[int], None] = lambda iteration: None) -> list[dict[str, torch.Tensor]]:
    """Learn ``rounding`` or ``activation_bounds`` on four of the batches in turn; return the losses."""
    phase: Phase = PHASES[what]
    phase.prepare(model)
    if what == "rounding":
        install_learned_rounding(model)
    selection = SELECTORS.get(what)(model, 0.01)
    learning = Reconstruction(model, teacher, [(batch, batch) for batch in batches()], ORDER, phase, forward=forward,
                              iterations=iterations)
    optimizer = torch.optim.Adam(selection.parameters, lr=rate)
    if selection.units:
        RelativeSteps(optimizer, list(selection.units))
    seen = []
    assert learning.length == 5 * iterations
    for iteration in range(start, learning.length):
        losses = learning.loss(iteration, [(iteration + number) % 8 for number in range(4)])
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if selection.keep is not None:
            selection.keep()
        learning.after_step(iteration)
        after(iteration)
        seen.append(losses)
    return seen


def test_blocks_in_the_order_of_execution() -> None:
    model, _ = networks()
    assert blocks_in_order(model, batches()[0], forward, PATTERNS) == ORDER
    assert blocks_in_order(model, batches()[0], forward)[2:6] == [
        f"blocks.{number}.conv{which}" for number in range(2) for which in (1, 2)]
    with pytest.raises(UserError, match=r"block pattern 'body.\*' matches no module"):
        blocks_in_order(model, batches()[0], forward, ("body.*",))


def test_a_call_holds_what_went_in_and_came_out() -> None:
    model, teacher = networks()
    calls = [first_call(model, "blocks.1", batch, forward) for batch in batches()[:3]]
    call = joined(calls, torch.device("cpu"))
    assert call.arguments[0].shape == (3, 6, 8, 8)
    assert call.keywords["shift"].shape == (3, 6)
    with torch.no_grad():
        torch.testing.assert_close(model.blocks[1](*call.arguments, **call.keywords)[0], call.output)
    with pytest.raises(UserError, match="'idle' is no part of the forward pass"):
        first_call(teacher, "idle", batches()[0], forward)


def block_errors(model: nn.Module, teacher: nn.Module, activations: bool = False) -> list[float]:
    """How far each block, on the inputs it gets now, is from what the teacher gives in its place."""
    for _, quantizer in activation_quantizers(model):
        quantizer.state = State.QUANTIZE if activations else State.OFF
    errors = [sum(block_distance(first_call(model, name, batch, forward).output,
                                 first_call(teacher, name, batch, forward).output).item() for batch in batches())
              for name in ORDER]
    set_state(model, State.QUANTIZE)
    return errors


def test_learned_rounding_beats_nearest_rounding() -> None:
    model, teacher = networks()
    nearest = block_errors(model, teacher)
    bounds = {name: quantizer.lower_bound.clone() for name, quantizer in named_quantizers(model)}
    learn(model, teacher)
    set_state(model, State.QUANTIZE)
    learned = block_errors(model, teacher)
    assert all(mine <= theirs for mine, theirs in zip(learned, nearest, strict=True))
    assert all(mine < 0.8 * theirs for mine, theirs in zip(learned[2:], nearest[2:], strict=True))
    assert all(torch.equal(quantizer.lower_bound, bounds[name]) for name, quantizer in named_quantizers(model))
    assert not any("parametrization" in name for name in model.state_dict())
    for _, layer in weighted_layers(model):
        assert all(len(row.unique()) <= 4 for row in layer.parts().weight)
        torch.testing.assert_close(layer.weight, layer.parts().weight, rtol=1e-5, atol=1e-6)


def test_learned_steps_beat_calibrated_ones() -> None:
    model, teacher = networks(8, 2)
    before = block_errors(model, teacher, activations=True)
    weights = {name: value.clone() for name, value in model.state_dict().items() if name.endswith("weight")}
    learn(model, teacher, "activation_bounds", rate=0.01)
    after = block_errors(model, teacher, activations=True)
    assert after[-1] < 0.9 * before[-1]
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize("what", list(PHASES))
def test_equal_when_repeated_and_when_resumed(what: str) -> None:
    """A run that begins again with the fourth block, from the weights of then, ends with the same numbers."""
    saved: dict[int, dict[str, torch.Tensor]] = {}

    def save(iteration: int) -> None:
        saved[iteration] = {name: value.clone() for name, value in model.state_dict().items()
                            if "parametrization" not in name}

    model, teacher = networks()
    learn(model, teacher, what, 6, after=save)
    again, _ = networks()
    learn(again, teacher, what, 6)
    resumed, _ = networks()
    resumed.load_state_dict(saved[17])
    learn(resumed, teacher, what, 6, start=18)
    for other in (again, resumed):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_network_that_is_learning_can_be_judged_as_finished() -> None:
    model, teacher = networks()
    x = batches()[0]

    def judge(iteration: int) -> None:
        if iteration == 150:
            with torch.no_grad(), finished_form(model):
                found.append(model(x))
                assert all(quantizer.state is State.QUANTIZE for _, quantizer in named_quantizers(model))
            assert any(quantizer.state is State.OFF for _, quantizer in named_quantizers(model))
            finished = copy.deepcopy(model)
            merge_weights(finished)
            set_state(finished, State.QUANTIZE)
            found.append(finished(x))

    found: list[torch.Tensor] = []
    learn(model, teacher, after=judge)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_penalty_comes_after_the_warm_up_with_a_falling_exponent() -> None:
    phase = RoundingPhase()
    assert [phase.exponent(progress) for progress in (0.2, 0.6, 1.0)] == pytest.approx([20, 11, 2])
    model, teacher = networks()
    losses = learn(model, teacher, iterations=10)
    assert all((loss["penalty"].item() > 0) == (number % 10 >= 2) for number, loss in enumerate(losses))
    assert all("penalty" not in loss for loss in learn(model, teacher, "activation_bounds", iterations=2))
