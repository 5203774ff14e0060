"""torchrun with two gloo processes against one process."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from workshop import Workshop, close, error_lines, make_pairs, test_options

from basicsr_quant.engine.checkpoint import newest_valid
from basicsr_quant.engine.distributed import choose_device, processes
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import encode_image, read_image

BOUNDS = """
import sys
import torch
from basicsr_quant.data.build import build_dataset
from basicsr_quant.engine.distributed import processes
from basicsr_quant.models.tdquant import TDQuantModel
from basicsr_quant.options.load import load_options, parse_arguments
from basicsr_quant.quant.calibrate import named_quantizers

arguments = parse_arguments(None, is_train=True)
options = load_options(arguments.opt, arguments.force_yml)
with processes(arguments.launcher, 0, None, "gloo", 29500) as process:
    torch.manual_seed(process.rank)  # what is calibrated owes nothing to the process's own generator
    model = TDQuantModel(options, process.device)
    model.load_pretrained(training=True)
    model.prepare_training(build_dataset(options.datasets["train"], 2, "train", 0, "train", False))
    mine = [(name, q.lower_bound.tolist(), q.upper_bound.tolist()) for name, q in named_quantizers(model.network)]
    first, second = process.gather(mine)
    sys.exit(0 if first == second and len(mine) > 8 else 7)
"""


def trained(workshop: Workshop, name: str, label: str) -> dict[str, Any]:
    network, state = workshop.network(name, label), workshop.state(name, 3)
    return {"params": network["params"], "params_ema": network["params_ema"], "best": state["best"]}


def moments(workshop: Workshop, name: str, iteration: int) -> dict[int, Any]:
    state = workshop.state(name, iteration)["optimizers"][0]["state"]
    return {number: [entry["exp_avg"], entry["exp_avg_sq"]] for number, entry in state.items()}


@pytest.mark.parametrize("kind", ["fp", "dqc"])
def test_two_processes_equal_one(workshop: Workshop, kind: str) -> None:
    """Float64, no dropout, losses of single samples, accumulation: all to 1e-9, validation included."""
    options, label = (workshop.fp, "g") if kind == "fp" else (workshop.dqc, "Q")
    options["network_g" if kind == "fp" else "network_Q"]["drop_path_rate"] = 0
    options["train"] |= {"precision": "fp64", "ema_decay": 0.9, "total_iter": 3}
    options["logger"] |= {"save_checkpoint_freq": 1}
    batches = "datasets:train:batch_size_per_gpu="
    assert workshop.train(options, "name=one", batches + "4") == 0
    code, errors = workshop.run("train.py", options, "name=two", batches + "1", "train:accumulation=2", processes=2)
    assert code == 0, errors
    assert close(trained(workshop, "two", label), trained(workshop, "one", label), 1e-9)
    # bounds are float32 in the published format, and so are their gradients
    assert close(moments(workshop, "two", 3), moments(workshop, "one", 3), 1e-9 if kind == "fp" else 1e-5)
    assert workshop.losses("two") == workshop.losses("one")  # means over both processes
    assert "2 process(es)" in errors and "iteration 3/3" in errors  # rank 0 is heard


def test_first_gradients_in_single_precision(workshop: Workshop) -> None:
    workshop.fp["network_g"]["drop_path_rate"] = 0
    workshop.fp["train"] |= {"total_iter": 1}
    workshop.fp["find_unused_parameters"] = True
    assert workshop.train(workshop.fp, "name=one", "datasets:train:batch_size_per_gpu=4") == 0
    code, errors = workshop.run("train.py", workshop.fp, "name=two", "datasets:train:batch_size_per_gpu=2", processes=2)
    assert code == 0, errors
    assert close(moments(workshop, "two", 1), moments(workshop, "one", 1), 1e-4)


@pytest.mark.parametrize("count", [3, 1])
def test_sharded_test_equals_one_process(workshop: Workshop, count: int) -> None:
    make_pairs(workshop.folder / "data" / "more", count, 9, 24, 28)
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"]["test_1"] |= {"dataroot_gt": "data/more/HR", "dataroot_lq": "data/more/LR"}
    assert workshop.test(tested, "name=one") == 0
    code, errors = workshop.run("test.py", tested, "name=two", "val:save_img=true", processes=2)
    assert code == 0, errors
    results = workshop.folder / "results"
    one, two = (json.loads((results / name / "metrics.json").read_text())["val"] for name in ("one", "two"))
    assert one["mean"] == two["mean"] and one["images"] == two["images"] == count
    assert (results / "one/val.csv").read_text() == (results / "two/val.csv").read_text()
    assert len(list((results / "two/visualization/val").iterdir())) == count


def test_calibration_gives_all_processes_the_same_bounds(workshop: Workshop) -> None:
    script = workshop.folder / "bounds.py"
    script.write_text(BOUNDS)
    workshop.dqc["mode"] = "released"  # calibrates in train mode, with drop path
    code, errors = workshop.run(str(script), workshop.dqc, processes=2)
    assert code == 0, errors


def test_failure_of_one_process_ends_all_and_saves(workshop: Workshop) -> None:
    """In the second iteration process 1 meets a corrupt image."""
    workshop.fp["datasets"]["train"] |= {"batch_size_per_gpu": 1, "use_shuffle": False}
    make_pairs(workshop.folder / "data" / "train", 4, 1)
    path = workshop.folder / "data/train/LR/im3x2.png"
    content = encode_image(read_image(path), ".bmp")
    path.unlink()
    path.with_suffix(".bmp").write_bytes(content[: len(content) // 2])  # its header is whole
    workshop.fp["logger"]["save_checkpoint_freq"] = 1000
    code, errors = workshop.run("train.py", workshop.fp, processes=2)
    assert code != 0
    lines = [line for line in error_lines(errors) if line.startswith("error: ")]
    assert any("im3x2.bmp" in line for line in lines) and len(lines) <= 2
    assert "basicsr_quant" not in "".join(line for line in error_lines(errors) if line.lstrip().startswith("File "))
    assert workshop.state("fp", 1)["iteration"] == 1


def test_torchrun_without_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match="add --launcher pytorch"), processes("none", 0, None, "gloo", 29500):
        pass


@pytest.mark.parametrize(("launcher", "environment", "message"), [
    ("pytorch", {}, "needs RANK in the environment; start with torchrun"),
    ("pytorch", {"RANK": "0", "WORLD_SIZE": "1"}, "needs MASTER_ADDR"),
    ("pytorch", {"RANK": "x", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "is no number"),
    ("slurm", {}, "needs RANK in the environment; start with srun"),
])
def test_wrong_environment(
    monkeypatch: pytest.MonkeyPatch, launcher: str, environment: dict[str, str], message: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), processes(launcher, 0, None, "gloo", 29500):
        pass


def test_slurm_variables_make_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with processes("slurm", 0, None, "nccl", 29517) as process:
        assert (process.rank, process.world_size, process.device.type) == (0, 1, "cpu")
        assert process.gather("x") == ["x"] and process.any(True) and not process.any(False)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", None) == choose_device(0, 3) == torch.device("cpu")
    with pytest.raises(UserError, match="set num_gpu=0"):
        choose_device(1, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", None) == torch.device("cuda", 0)
    assert choose_device(1, 1) == torch.device("cuda", 1)
    assert choose_device(2, None, 1) == torch.device("cuda", 1)
    assert choose_device(0, None) == torch.device("cpu")
    with pytest.raises(UserError, match="only 2 are there"):
        choose_device(8, None, 2)


def test_signal_to_torchrun_saves(workshop: Workshop) -> None:
    workshop.fp["train"]["total_iter"] = 3000
    workshop.fp["logger"]["save_checkpoint_freq"] = workshop.fp["val"]["val_freq"] = 10_000
    process = workshop.start("train.py", workshop.fp, processes=2)
    workshop.wait_for_iteration(process, "fp", 6)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("interrupted by SIGTERM; the state was saved") == 2
    path, state, reasons = newest_valid(workshop.experiment("fp"))
    assert path is not None and state is not None and state["iteration"] >= 6 and not reasons
