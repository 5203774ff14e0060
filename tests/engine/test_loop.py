"""The training loop: accumulation, clipping, precision, schedules in use, NaN, averages, images that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from workshop import Workshop, error_lines, make_pairs, same

from basicsr_quant.engine.averages import Averages
from basicsr_quant.engine.checkpoint import Progress
from basicsr_quant.engine.distributed import Process
from basicsr_quant.engine.loop import Hooks, Loop
from basicsr_quant.engine.schedules import Constant
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import encode_image, read_image
from basicsr_quant.models.base import Stage
from basicsr_quant.options.types import TrainOptions

CPU = Process(0, 1, torch.device("cpu"))


class LineStep(nn.Module):
    """y = w x against 0: the loss is the mean of (w x)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(self.network.weight)

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"square": self.network(batch["x"]).square().mean()}


def batches(*values: float) -> list[dict[str, Any]]:
    return [{"x": torch.tensor([[value]], dtype=torch.float64)} for value in values]


def make_loop(options: TrainOptions, **hooks: Any) -> tuple[Loop, LineStep]:
    step = LineStep()
    stage = Stage("test", "g", step, [torch.optim.SGD(step.parameters(), lr=0.1)])
    hooks = {"log": lambda i, losses: None, "validate": lambda i: None, "save": lambda i: None, "print_freq": 1,
             "val_freq": 100, "save_freq": 100} | hooks
    return Loop(stage, options.total_iter, options, Constant(), CPU, Progress(), None, Hooks(**hooks)), step


def test_step_is_gradient_descent() -> None:
    loop, step = make_loop(TrainOptions(total_iter=2))
    loop.run(batches(1.0, 2.0))
    expected = (1 - 0.1 * 2) * (1 - 0.1 * 2 * 4)
    assert step.network.weight.item() == pytest.approx(expected, abs=1e-15)
    assert loop.progress.iteration == 2


def test_gradient_is_clipped() -> None:
    loop, step = make_loop(TrainOptions(total_iter=1, gradient_clip=0.5))
    loop.run(batches(10.0))
    assert step.network.weight.item() == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)


def test_hooks_are_called_when_due() -> None:
    calls: list[tuple[str, int]] = []
    hooks = {name: lambda i, *_, name=name: calls.append((name, i)) for name in ("log", "validate", "save")}
    loop, _ = make_loop(TrainOptions(total_iter=5), **hooks, print_freq=2, val_freq=3, save_freq=4)
    loop.run(batches(*[0.1] * 5))
    assert calls == [("log", 2), ("validate", 3), ("log", 4), ("save", 4), ("validate", 5), ("save", 5)]


def test_failed_validation_saves_first() -> None:
    saved: list[int] = []

    def validate(iteration: int) -> None:
        raise UserError("an image is gone")

    loop, _ = make_loop(TrainOptions(total_iter=5), validate=validate, val_freq=2, save=saved.append)
    with pytest.raises(UserError, match="an image is gone"):
        loop.run(batches(*[0.1] * 5))
    assert saved == [2]


def test_nan_stops_with_iteration_and_loss() -> None:
    loop, _ = make_loop(TrainOptions(total_iter=3))
    with pytest.raises(UserError, match=r"iteration 2: loss 'square' is NaN or infinite; .*train:on_nan=skip"):
        loop.run(batches(1.0, float("nan"), 1.0))


def test_nan_is_skipped(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("basicsr_quant"), "propagate", True)
    logged: list[dict[str, float]] = []
    loop, step = make_loop(TrainOptions(total_iter=3, on_nan="skip"), log=lambda i, losses: logged.append(losses))
    loop.run(batches(1.0, float("inf"), 1.0))
    assert step.network.weight.item() == pytest.approx(0.8 * 0.8)
    assert "iteration 2: loss 'square' is NaN or infinite; the step is left out" in caplog.text
    assert logged == [{"square": 1.0}, {}, {"square": pytest.approx(0.64)}]


def test_gradient_that_is_not_finite_is_named() -> None:
    class Root(LineStep):
        def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            return {"root": self.network(batch["x"]).abs().sqrt().mean()}

    loop, _ = make_loop(TrainOptions(total_iter=1))
    loop.stage.step = Root()
    loop.stage.optimizers = [torch.optim.SGD(loop.stage.step.parameters(), lr=0.1)]
    with pytest.raises(UserError, match="iteration 1: the gradient is NaN or infinite"):
        loop.run(batches(0.0))


def test_averages_survive_a_checkpoint() -> None:
    whole, first, second = Averages(), Averages(), Averages()
    terms = [[{"a": torch.tensor(float(i) / 3)}] for i in range(4)]
    for term in terms:
        whole.add(term)
    first.add(terms[0])
    first.add(terms[1])
    second.restore(first.state(), torch.device("cpu"))
    second.add(terms[2])
    second.add(terms[3])
    assert whole.take(CPU) == second.take(CPU)
    assert whole.take(CPU) == {}


def test_accumulation_equals_the_bigger_batch(workshop: Workshop) -> None:
    """In float64 with dropout: draws belong to the global sample."""
    workshop.fp["train"] |= {"precision": "fp64"}
    workshop.fp["logger"]["save_checkpoint_freq"] = 1
    assert workshop.train(workshop.fp, "name=big", "datasets:train:batch_size_per_gpu=4") == 0
    assert workshop.train(workshop.fp, "name=small", "datasets:train:batch_size_per_gpu=2", "train:accumulation=2") == 0
    big, small = (workshop.network(name, "g")["params"] for name in ("big", "small"))
    assert all((big[key] - small[key]).abs().max() < 1e-9 for key in big if big[key].is_floating_point())
    assert workshop.losses("big") == workshop.losses("small")


def test_worker_processes_change_nothing(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "name=none") == 0
    assert workshop.train(workshop.fp, "name=two", "datasets:train:num_worker_per_gpu=2") == 0
    assert same(workshop.network("none", "g"), workshop.network("two", "g"))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64"])
def test_precisions_stay_near_fp32(workshop: Workshop, precision: str) -> None:
    for options in (workshop.fp, workshop.dqc):
        assert workshop.train(options, "name=plain") == 0
        assert workshop.train(options, "name=other", f"train:precision={precision}") == 0
        plain, other = (workshop.state(name, 4)["best"]["value"] for name in ("plain", "other"))
        assert other == pytest.approx(plain, abs=0.02) and other != plain


@pytest.mark.slow
def test_compile(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "name=plain") == 0
    assert workshop.train(workshop.fp, "name=compiled", "train:compile=true") == 0
    plain, compiled = (workshop.network(name, "g")["params"] for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[key].double(), compiled[key].double(), atol=1e-3) for key in plain)
    assert workshop.train(workshop.dqc, "train:compile=true") == 0


def test_ema_formula(workshop: Workshop) -> None:
    workshop.fp["logger"]["save_checkpoint_freq"] = 1
    workshop.fp["train"] |= {"precision": "fp64", "ema_decay": 0.75}
    assert workshop.train(workshop.fp, "train:total_iter=3") == 0
    saved = [workshop.network("fp", "g", i) for i in (1, 2, 3)]
    for before, after in zip(saved, saved[1:], strict=False):
        for name, value in after["params"].items():
            if value.is_floating_point():
                expected = 0.75 * before["params_ema"][name] + 0.25 * value
                assert torch.allclose(after["params_ema"][name], expected, rtol=0, atol=1e-14), name


def test_warm_up_and_schedule_reach_the_optimizer(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:warmup_iter=2", "train:total_iter=5") == 0
    rates = [float(line.split()[1].rstrip(",")) for line in workshop.losses("fp").values()]
    assert rates == pytest.approx([1e-3, 2e-3, 2e-3, 1e-3, 1e-3])


def test_runaway_training_stops_and_names_the_iteration(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    workshop.fp["train"]["optim_g"] = {"type": "SGD", "lr": 1e30}
    assert workshop.train(workshop.fp, "val:val_freq=100") == 2
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1 and lines[0].startswith("error: iteration 2: loss 'pixel' is NaN or infinite")


def test_corrupt_image_in_the_middle_saves_first(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    make_pairs(workshop.folder / "data/train", 8, 1)
    path: Path = workshop.folder / "data/train/LR/im6x2.png"
    content = encode_image(read_image(path), ".bmp")
    path.unlink()
    path.with_suffix(".bmp").write_bytes(content[: len(content) // 2])
    workshop.fp["datasets"]["train"]["use_shuffle"] = False
    for workers in (0, 1):
        assert workshop.train(workshop.fp, "logger:save_checkpoint_freq=100",
                              f"datasets:train:num_worker_per_gpu={workers}") == 2
        lines = error_lines(capfd.readouterr().err)
        assert len(lines) == 1 and "im6x2.bmp' is truncated or damaged" in lines[0]
        assert workshop.state("fp", 3)["iteration"] == 3
