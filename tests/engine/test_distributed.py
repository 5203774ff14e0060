"""Several gloo processes against one, started by torchrun or with what torchrun would tell them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import ranks
import torch
from every_method import METHODS, sample_by_sample, workshop_for
from workshop import REPOSITORY, Workshop, close, error_lines, load, make_pairs, test_options

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


SEVERAL = """
import os
import sys
from basicsr_quant.cli.main import train_main
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # each run meets at a port of its own
for port, file in zip(sys.argv[1::2], sys.argv[2::2]):
    os.environ["MASTER_PORT"] = port
    if code := train_main(["-opt", file, "--launcher", "pytorch"]):
        sys.exit(code)
"""


def moments(workshop: Workshop, name: str, iteration: int) -> dict[int, Any]:
    state = workshop.state(name, iteration)["optimizers"][0]["state"]
    return {number: [entry["exp_avg"], entry["exp_avg_sq"]] for number, entry in state.items()}


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether weights agree to 1e-9 of each tensor; what is zero but for rounding is compared with 1e-3."""
    return one.keys() == other.keys() and all(
        (tensor.double() - other[name].double()).abs().max() <= 1e-9 * other[name].double().abs().max().clamp_min(1e-3)
        for name, tensor in one.items() if tensor.numel())


def assert_equal_runs(workshop: Workshop, one: str, other: str) -> None:
    """Weights, averages, the best result and the logged losses of two runs."""
    files = sorted(path.name for path in workshop.experiment(one).glob("models/*.pth"))
    for file in files:
        mine, theirs = (load(workshop.experiment(name) / "models" / file) for name in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(near(mine[key], theirs[key]) for key in ("params", "params_ema") if key in mine), file
    last = max(int(path.stem) for path in workshop.experiment(one).glob("training_states/*.state"))
    assert close(workshop.state(other, last)["best"], workshop.state(one, last)["best"], 1e-9)
    assert workshop.losses(other) == workshop.losses(one)  # means over all processes


@pytest.mark.parametrize(("method", "batch", "accumulation"), [
    ("fp", 1, 2), ("dqc", 1, 2), ("diffusion", 2, 1), ("osediff", 2, 1), ("passionsr", 2, 1)])
def test_two_processes_equal_one(
    request: pytest.FixtureRequest, method: str, batch: int, accumulation: int,
) -> None:
    """Float64, no dropout, losses of single samples: all to 1e-9, validation included."""
    place = workshop_for(method, request)
    options = sample_by_sample(method)
    if method == "passionsr":  # the other parts are in the slow test
        options["train"] |= {"order": ["encoder_let", "encoder_bounds"], "total_iter": 4}
    assert place.train(options, "name=one") == 0
    code, errors = ranks.run(place, options, "name=two", f"datasets:train:batch_size_per_gpu={batch}",
                             f"train:accumulation={accumulation}", count=2)
    assert code == 0, errors
    assert_equal_runs(place, "one", "two")
    if method in ("fp", "dqc"):  # bounds are float32 in the published format, and so are their gradients
        assert close(moments(place, "two", 3), moments(place, "one", 3), 1e-9 if method == "fp" else 1e-5)
    assert "2 process(es)" in errors and "iteration 3/" in errors  # rank 0 is heard


@pytest.mark.slow
def test_torchrun_equals_one_process(request: pytest.FixtureRequest) -> None:
    """Every method, under torchrun with one, two and four processes, against a run without it."""
    place = workshop_for("passionsr", request)
    (place.folder / "several.py").write_text(SEVERAL)
    for method in METHODS:
        assert place.train(sample_by_sample(method), f"name={method}_0") == 0
    for count in (1, 2, 4):
        arguments = []
        for method in METHODS:
            options = sample_by_sample(method) | {"name": f"{method}_{count}"}
            options["datasets"]["train"]["batch_size_per_gpu"] = 4 // count
            arguments += [str(ranks.free_port()), str(place.write(options))]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "--rdzv-backend",
                   "c10d", "--rdzv-endpoint", "localhost:0", "several.py", *arguments]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=place.folder, env=variables, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        for method in METHODS:
            assert_equal_runs(place, f"{method}_0", f"{method}_{count}")


def test_first_gradients_in_single_precision(workshop: Workshop) -> None:
    workshop.fp["network_g"]["drop_path_rate"] = 0
    workshop.fp["train"] |= {"total_iter": 1}
    workshop.fp["find_unused_parameters"] = True
    assert workshop.train(workshop.fp, "name=one", "datasets:train:batch_size_per_gpu=4") == 0
    code, errors = ranks.run(workshop, workshop.fp, "name=two", "datasets:train:batch_size_per_gpu=2", count=2)
    assert code == 0, errors
    assert close(moments(workshop, "two", 1), moments(workshop, "one", 1), 1e-4)


@pytest.mark.parametrize(("count", "processes"), [
    (3, 2), (1, 2), pytest.param(5, 4, marks=pytest.mark.slow), pytest.param(1, 4, marks=pytest.mark.slow)])
def test_sharded_test_equals_one_process(workshop: Workshop, count: int, processes: int) -> None:
    """Also if the images cannot be shared out evenly, or some process gets none."""
    make_pairs(workshop.folder / "data" / "more", count, 9, 24, 28)
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"]["test_1"] |= {"dataroot_gt": "data/more/HR", "dataroot_lq": "data/more/LR"}
    assert workshop.test(tested, "name=one") == 0
    code, errors = ranks.run(workshop, tested, "name=two", "val:save_img=true", count=processes, testing=True)
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
