"""NaN and infinite values: noticed at once, named, left out if the options say so; and runs that repeat to the bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from every_method import METHODS, test_file, workshop_for
from torch import nn
from workshop import Workshop, error_lines, load, same

from basicsr_quant.cli.main import guarded
from basicsr_quant.engine.checkpoint import Progress
from basicsr_quant.engine.distributed import Process
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.loop import Hooks, Loop
from basicsr_quant.engine.nonfinite import GRADIENT, describe
from basicsr_quant.engine.schedules import Constant
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import Stage
from basicsr_quant.options.types import TrainOptions

NAN = float("nan")
Capture = pytest.CaptureFixture[str]


class Overflow(nn.Module):
    """Passes tensors on; those of one call (None: of every call), forwards or backwards, lose their numbers."""

    def __init__(self, call: int | None = None, backwards: bool = False) -> None:
        super().__init__()
        self.call, self.backwards, self.calls = call, backwards, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.call not in (None, self.calls):
            return x
        if self.backwards and x.requires_grad:
            x.register_hook(lambda gradient: gradient * NAN)
        return x if self.backwards else x * NAN


class TwoLayers(nn.Module):
    """Linear layers with something between them, against zero."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(2, 2), between, nn.Linear(2, 2))

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"square": self.network(batch["lq"]).square().mean()}


def make_loop(between: nn.Module, ended: list[int] | None = None, **options: Any) -> Loop:
    step = TwoLayers(between)
    stage = Stage("test", "g", step, [torch.optim.Adam(step.parameters(), lr=0.1)])
    if ended is not None:
        stage.after_iteration = lambda: ended.append(1)
    hooks = Hooks(lambda i, losses: None, lambda i: None, lambda i: None, 100, 100, 100)
    settings = TrainOptions(**{"total_iter": 4, **options})
    return Loop(stage, settings.total_iter, settings, Constant(), Process(0, 1, torch.device("cpu")), Progress(),
                Ema(step.network, 0.5, "g"), hooks)


def batches(count: int = 4, **changed: float) -> list[dict[str, Any]]:
    made = [{"lq": torch.full((1, 2), 0.5 + number)} for number in range(count)]
    for number, value in changed.items():
        made[int(number[1:])]["lq"][0, 1] = value
    return made


def contents(loop: Loop) -> Any:
    assert loop.ema is not None
    return [loop.stage.step.state_dict(), loop.stage.optimizers[0].state_dict(), loop.ema.network.state_dict()]


@pytest.mark.parametrize(("between", "accumulation", "images", "parts"), [
    (nn.Identity(), 1, {"n2": math.inf}, ["iteration 3: loss 'square' is NaN or infinite", "at the images 'lq'"]),
    (nn.Identity(), 2, {"n3": NAN}, ["iteration 2: loss 'square'", "at the images 'lq'"]),
    (Overflow(), 1, {}, ["iteration 1: loss 'square'", "begins at the output of 'network.1'"]),
    (Overflow(3, backwards=True), 1, {}, ["iteration 3: the gradient", "begins at the gradient of 'network.0.bias'"]),
])
def test_step_and_tensor_are_named(
    between: nn.Module, accumulation: int, images: dict[str, float], parts: list[str],
) -> None:
    loop = make_loop(between, accumulation=accumulation)
    with pytest.raises(UserError, match="lower the learning rate, or set train:on_nan=skip") as caught:
        loop.run(batches(8, **images))
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_weight_that_is_not_finite_stops_in_any_case(on_nan: str) -> None:
    """Leaving out steps would go on for ever."""
    loop = make_loop(nn.Identity(), on_nan=on_nan)
    nn.init.constant_(loop.stage.step.network[2].weight, math.inf)
    with pytest.raises(UserError, match=r"iteration 1: .*begins at weight 'network.2.weight'; go on from an earlier"):
        loop.run(batches())


@pytest.mark.parametrize(("backwards", "accumulation"), [(False, 1), (True, 1), (False, 2)])
def test_step_left_out_touches_nothing(
    backwards: bool, accumulation: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the last step had not been asked for: weights, moments, average; but it is counted."""
    monkeypatch.setattr(logging.getLogger("basicsr_quant"), "propagate", True)
    ended: list[int] = []
    options = {"on_nan": "skip", "accumulation": accumulation}
    loop = make_loop(Overflow(4 * accumulation, backwards), ended, **options)
    shorter = make_loop(nn.Identity(), total_iter=3, **options)
    loop.run(batches(4 * accumulation))
    shorter.run(batches(3 * accumulation))
    assert same(contents(loop), contents(shorter))
    assert loop.progress.iteration == 4 and loop.progress.skipped == 1 and len(ended) == 4
    assert "iteration 4: " in caplog.text and "the step is left out (1 so far)" in caplog.text
    assert "steps left out so far, as a loss or gradient was not finite: 1" in caplog.text


def test_process_whose_loss_it_is_is_named() -> None:
    """The others only see what it makes of the common gradient."""
    class Second(Process):
        def gather(self, value: Any) -> list[Any]:
            return [([GRADIENT], "the gradient of 'network.0.bias'"), value]

    process = Second(1, 2, torch.device("cpu"))
    text, broken = describe(["loss 'square'"], TwoLayers(Overflow()), batches(1), nullcontext, process)
    assert not broken
    assert text == "loss 'square' of process 1 is NaN or infinite; it begins at the output of 'network.1'"


def test_half_precision_that_no_scale_can_help() -> None:
    """The scaler leaves steps out by itself while it searches for a scale; where it ends, NaN is noticed."""
    loop = make_loop(Overflow(backwards=True), total_iter=40, precision="fp16")
    with pytest.raises(UserError, match=r"iteration 17: the gradient is NaN or infinite; it begins at the gradient of"):
        loop.run(batches(40))


def test_count_survives_a_checkpoint(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr_quant.losses.pixel import L1Loss

    calls: list[int] = []

    def forward(self: Any, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (prediction - target).abs().mean() * (NAN if len(calls) == 2 else 1)

    monkeypatch.setattr(L1Loss, "forward", forward)
    assert workshop.train(workshop.fp, "train:on_nan=skip", "train:total_iter=3") == 0
    assert workshop.train(workshop.fp, "train:on_nan=skip", flags=["--auto_resume"]) == 0
    assert [workshop.state("fp", iteration)["skipped"] for iteration in (3, 4)] == [1, 1]
    log = (workshop.experiment("fp") / "train_fp.log").read_text()
    assert "iteration 2: loss 'pixel' is NaN or infinite; the step is left out (1 so far)" in log
    assert "nan" not in "".join(workshop.losses("fp").values())


def test_images_of_floats_are_refused(workshop: Workshop, capfd: Capture) -> None:
    """So that no image can hold NaN."""
    path = workshop.folder / "data/train/LR/im1x2.png"
    image = np.full((16, 18, 3), NAN, np.float32)
    path.unlink()
    assert cv2.imwrite(str(path.with_suffix(".tiff")), image)
    assert workshop.train(workshop.fp) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert line.startswith("error: ") and "im1x2.tiff" in line


def test_patches_that_hold_nan(workshop: Workshop, capfd: Capture) -> None:
    patches = torch.rand(4, 3, 8, 8)
    patches[2, 1, 3, 3] = NAN
    torch.save({"lq": patches}, workshop.folder / "patches.pth")
    assert workshop.train(workshop.dqc, "cali_data=patches.pth") == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert "patches.pth': 'lq' holds NaN" in line


def test_metric_that_is_nan_is_never_the_best(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr_quant.metrics import psnr_ssim

    values = iter([20.0] * 3 + [NAN] * 3)
    monkeypatch.setattr(psnr_ssim, "calculate_psnr", lambda *images, **arguments: next(values))
    workshop.fp["val"] = {"val_freq": 2, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}}
    assert workshop.train(workshop.fp) == 0
    assert workshop.state("fp", 4)["best"] == {"metric": "psnr", "value": 20.0, "iteration": 2}


def everything(place: Workshop, name: str) -> dict[str, Any]:
    """What a training and its test left behind, by file."""
    networks = {path.name: load(path) for path in place.experiment(name).glob("models/*.pth")}
    states = {path.name: load(path) | {"options": "", "networks": {}}
              for path in place.experiment(name).glob("training_states/*")}
    folder = place.folder / "results" / f"test_{name}"
    results = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    return networks | states | results | {"val.csv": (folder / "val.csv").read_bytes()}


def repeats(place: Workshop, method: str) -> None:
    """Run it here and in a process that orders sets otherwise and loads images by a worker."""
    for name in ("here", "there"):
        options = METHODS[method]() | {"deterministic": True, "name": name}
        tested = test_file(options) | {"deterministic": True}
        tested["val"] |= {"save_img": True, "suffix": ""}
        if name == "here":
            assert place.train(options) == 0 and place.test(tested) == 0
            assert torch.are_deterministic_algorithms_enabled()
            continue
        options["datasets"]["train"]["num_worker_per_gpu"] = 1
        for script, file in (("train.py", options), ("test.py", tested)):
            code, errors = place.run(script, file, environment={"PYTHONHASHSEED": "71"})
            assert code == 0, errors
    here, there = everything(place, "here"), everything(place, "there")
    assert len([name for name in here if name.endswith(".png")]) >= 1 and "val.csv" in here
    assert here.keys() == there.keys()
    assert not [name for name in here if not same(here[name], there[name])]


@pytest.fixture
def determinism() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("determinism")
def test_deterministic_runs_repeat_to_the_bit(workshop: Workshop) -> None:
    repeats(workshop, "dqc")


@pytest.mark.slow
@pytest.mark.usefixtures("determinism")
@pytest.mark.parametrize("method", [method for method in METHODS if method != "dqc"])
def test_deterministic_runs_of_every_method_repeat_to_the_bit(request: pytest.FixtureRequest, method: str) -> None:
    repeats(workshop_for(method, request), method)


def test_determinism_is_switched_off_again(workshop: Workshop) -> None:
    torch.use_deterministic_algorithms(True)
    assert workshop.train(workshop.fp, "train:total_iter=1", "val=~") == 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_operation_without_a_deterministic_form(capfd: Capture) -> None:
    def run() -> None:
        raise RuntimeError("reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set "
                           "'torch.use_deterministic_algorithms(True)'. You can turn off determinism ...")

    assert guarded(run) == 2
    assert capfd.readouterr().err == ("error: reflection_pad2d_backward_cuda does not have a deterministic "
                                      "implementation; set deterministic=false\n")
