"""The verb ``bench``: variants compute the same, and the report holds what it should. Times are never tested."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from basicsr_quant.archs.published.swinir import export_2dquant, import_2dquant, import_swinir
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.cli import bench
from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.report.bench import brute_force, child, dobi, dqc, driver
from basicsr_quant.report.bench.networks import LINES, Network
from basicsr_quant.report.bench.released_step import ReleasedQuantizer, ReleasedStep

CPU = torch.device("cpu")
TINY = ["--depths", "1", "--channels", "12", "--batch", "2"]
NETWORK = Network([2], 12, 4, 2, 16, "cpu", 0)


def run(*argv: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["bench", *argv])
    arguments.func(arguments)


def test_dobi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("dobi", *TINY, "--patch-size", "64", "--rounds", "2", "--json", str(tmp_path / "dobi.json"))
    found = json.loads((tmp_path / "dobi.json").read_text())
    search, calibration = found["tables"].values()
    assert [row["variant"] for row in search[:2]] == [dobi.BRUTE_FORCE, dobi.PLAIN]
    assert len({row["candidate"] for row in search[1:]}) == 1
    assert all(abs(row["score error"]) < 1e-6 for row in search[1:])
    assert [row["variant"] for row in calibration[:3]] == [dobi.FORWARD, dobi.BRUTE_FORCE, dobi.PLAIN]
    assert all(row["peak MB"] > row["added MB"] > 0 for row in calibration)
    assert all(row["other bounds"] <= 1 for row in calibration[1:])
    assert {"processor", "ISA", "threads", "load average", "versions", "allocator"} <= set(found["environment"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in (dobi.PLAIN, "Checked", "allocator", found["title"]))


def test_dqc(tmp_path: Path) -> None:
    run("dqc", *TINY, "--patch-size", "16", "--rounds", "2", "--json", str(tmp_path / "dqc.json"))
    (rows,) = json.loads((tmp_path / "dqc.json").read_text())["tables"].values()
    assert [row["variant"] for row in rows] == [dqc.RELEASED, dqc.QUIET, dqc.OURS]
    for row in rows:
        assert row["pixel loss"] == pytest.approx(rows[0]["pixel loss"], rel=1e-5)
        assert row["feature loss"] == pytest.approx(rows[0]["feature loss"], rel=5e-3)
        assert row["gradient error"] < 1e-3
        assert row["rounds"] == 2


@pytest.mark.parametrize("argv", [("dobi", "--rounds", "0"), ("dqc", "--rounds", "0"), ("dqc", "--threads", "0")])
def test_arguments_out_of_range(argv: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="positive|at least 1"):
        run(*argv)


@pytest.mark.parametrize("name", ["gauss", "softmax", "longtail", "gelu"])
@pytest.mark.parametrize("bits", [2, 4])
def test_brute_force_is_the_released_search(fixtures: Path, name: str, bits: int) -> None:
    records = load_file(fixtures / "2dquant" / "dobi.safetensors")
    x, curve = records[f"{name}.input"], records[f"{name}.b{bits}.two.curve"].double()
    found, exact = brute_force.search(x, bits), brute_force.exact_errors(x, bits)
    assert found.index == records[f"{name}.b{bits}.two.best_i"] == exact.argmin()
    torch.testing.assert_close(exact.sqrt(), curve, rtol=1e-4, atol=1e-9)
    assert found.squared_error == pytest.approx(float(curve[found.index] ** 2), rel=1e-4)
    assert (found.lower, found.upper) == (records[f"{name}.b{bits}.two.lb"], records[f"{name}.b{bits}.two.ub"])


def bounds_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([torch.cat([quantizer.lower_bound, quantizer.upper_bound]).detach()
                      for _, quantizer in named_quantizers(model)])


def test_both_calibrations_find_the_same_bounds() -> None:
    models = [NETWORK.quantized() for _ in range(2)]
    brute_force.calibrate(models[0], NETWORK.images())
    calibrate(models[1], [NETWORK.images()])
    assert dobi._different(*(bounds_of(model) for model in models)) <= 1
    assert all(quantizer.watcher is None for _, quantizer in named_quantizers(models[0]))


@pytest.fixture
def recorded(fixtures: Path) -> Callable[[], tuple[torch.nn.Module, torch.nn.Module, dict[str, torch.Tensor]]]:
    """Maker of student and teacher at the start of the recorded distillation, and the record."""
    def make() -> tuple[torch.nn.Module, torch.nn.Module, dict[str, torch.Tensor]]:
        state = {name.removeprefix("weights."): value
                 for name, value in load_file(fixtures / "2dquant" / "tiny_swinir_fp.safetensors").items()
                 if name.startswith("weights.")}
        record = load_file(fixtures / "2dquant" / "tiny_swinir_dqc.safetensors")
        networks = []
        for _ in range(2):
            networks.append(SwinIR(upscale=2, img_size=32, depths=(2, 2), embed_dim=24, num_heads=(3, 3)).eval())
            networks[-1].load_state_dict(import_swinir(state))
        student = prepare(networks[0], QuantPlan.parse(LINES, {name: {"bits": 4, "observer": "minmax"}
                                                               for name in ("weight", "activation")}))
        bits = {name: 4 for name, _ in named_quantizers(student)}
        start = {name.removeprefix("bounds_init."): value for name, value in record.items()
                 if name.startswith("bounds_init.")}
        student.load_state_dict(import_2dquant({**export_2dquant(student.state_dict(), bits), **start})[0])
        return student, networks[1], record

    return make


@pytest.mark.parametrize("anomaly_detection", [True, False])
def test_released_step_is_the_recorded_one(recorded: Callable[[], Any], anomaly_detection: bool) -> None:
    student, teacher, record = recorded()
    taps = ["layers.0.residual_group", "layers.1.residual_group"]
    step = ReleasedStep(student, teacher, taps, anomaly_detection)
    for number in (1, 2):
        losses = step.losses(record["lq"])
        rtol = 5e-3 if number == 1 else 3e-2
        assert losses["pixel"].item() == pytest.approx(record[f"step{number}.l_pix"].item(), rel=rtol)
        assert losses["feature"].item() == pytest.approx(record[f"step{number}.l_feature"].item(), rel=rtol)
        step.iterate(record["lq"])
    names = [name.removeprefix("step1.grad.") for name in record if name.startswith("step1.grad.")]
    assert len(step.bounds) == len(names) == 128
    weight = next(module for module in step.student.modules() if hasattr(module, "weight_quantizer")).weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert all(len(features) == 2 for features in step._features.values())


@pytest.mark.parametrize("case", ["inner", "minmax", "ties", "halves", "onesided", "crossed"])
@pytest.mark.parametrize("bits", [2, 4])
def test_released_quantizer_is_the_recorded_one(fixtures: Path, case: str, bits: int) -> None:
    records, key = load_file(fixtures / "2dquant" / "fakequant.safetensors"), f"b{bits}.{case}."
    model = NETWORK.quantized()
    quantizer = next(quantizer for _, quantizer in named_quantizers(model))
    quantizer.set_bits(bits)
    quantizer.set_bounds(records[key + "lb"], records[key + "ub"])
    released, x = ReleasedQuantizer(quantizer), records[key + "input"].requires_grad_()
    output = released(x)
    torch.testing.assert_close(output, records[key + "output"], rtol=0, atol=1e-6)
    output.backward(records[key + "grad_output"])
    torch.testing.assert_close(x.grad, records[key + "grad_input"], rtol=0, atol=1e-6)
    torch.testing.assert_close(released.lower_bound.grad, records[key + "grad_lb"], rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(released.upper_bound.grad, records[key + "grad_ub"], rtol=1e-4, atol=5e-5)


def test_other_losses_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    original = dqc.OurStep.losses

    def wrong(self: dqc.OurStep, images: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = original(self, images)
        return {**losses, "pixel": losses["pixel"] * 1.01}

    monkeypatch.setattr(dqc.OurStep, "losses", wrong)
    with pytest.raises(UserError, match="pixel loss of 'ours'"):
        run("dqc", *TINY, "--patch-size", "16", "--rounds", "1")


def test_other_candidates_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dobi, "_our_search", lambda x, bits: brute_force.Found(99, 0.0, 1.0, 1.0))
    with pytest.raises(UserError, match="chose candidate 99"):
        run("dobi", *TINY, "--patch-size", "16", "--rounds", "1", "--parts", "search")


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = driver.interleave(variants, 3, CPU, "test")
    assert calls == list("ab" * 4)
    assert all(len(values) == 3 for values in seconds.values())


def test_statistics() -> None:
    found = driver.timing([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 8.0, 6.0, 8.0, 50.0])
    assert found == {"median s": 3.0, "min s": 1.0, "IQR/median": pytest.approx(2 / 3), "speed-up": 2.0, "rounds": 5}
    assert driver.timing([2.0], [1.0])["IQR/median"] == 0.0
    assert driver.unsteady_note([{"variant": "calm", "IQR/median": 0.1}]) == []
    (note,) = driver.unsteady_note([{"variant": "wild", "IQR/median": 0.11}])
    assert "wild" in note


def test_allocator_settings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert driver.environment()["allocator"] == "preloaded libjemalloc.so.2, MALLOC_TRIM_THRESHOLD_=1000"


def test_peak_of_memory() -> None:
    usage = child.measure(lambda: float(torch.ones(10_000_000).sum()), CPU)
    assert usage.result == 1e7
    assert usage.peak_mb >= usage.before_mb
    assert usage.added_mb == pytest.approx(40, abs=15)


def test_a_failing_process_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere.*exit code 1"):
        child.in_own_process("basicsr_quant.report.bench.nowhere:work", {"device": "cpu"}, {})


def test_network_is_the_same_every_time() -> None:
    first, second = (NETWORK.full_precision().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert NETWORK.images().shape == (2, 3, 16, 16)
    assert str(NETWORK) == "SwinIR with depths [2] and 12 channels x4, 4 bits, batch 2x3x16x16"
