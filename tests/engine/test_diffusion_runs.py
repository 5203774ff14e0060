"""Diffusion networks from option files: trained, validated, tested, resumed, on one and on two processes."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusion_workshop import diffusion_options, diffusion_test_options
from workshop import Workshop, close, error_lines, same


@pytest.mark.parametrize(("kind", "mode"), [
    ("bi_diffsr", "released"), ("bi_diffsr", "corrected"), ("sr3", "corrected"), ("bnn", "corrected")])
def test_train_validate_test(
    workshop: Workshop, kind: str, mode: str, capfd: pytest.CaptureFixture[str],
) -> None:
    options = diffusion_options(kind) | {"mode": mode}
    options["val"] |= {"save_img": True}
    assert workshop.train(options) == 0
    output = capfd.readouterr().err
    assert not error_lines(output) and "validation val, iteration 4: psnr" in output
    assert len(list((workshop.experiment("diffusion") / "visualization/val").glob("*_4.png"))) == 3
    weights = workshop.network("diffusion", "g")
    assert weights.keys() == {"params", "params_ema", "metadata"}
    assert weights["metadata"]["beta_schedule"]["n_timestep"] == 12
    assert any(name.startswith("timestep_level_mlp.1") for name in weights["params"]) == (kind == "bi_diffsr")
    tested = diffusion_test_options(options, "experiments/diffusion/models/net_g_latest.pth")
    assert workshop.test(tested) == 0
    folder = workshop.folder / "results/test_diffusion"
    mean = json.loads((folder / "metrics.json").read_text())["val"]["mean"]
    assert mean["psnr"] > 3
    logged = re.findall(r"iteration 4: psnr ([\d.]+)", output)
    assert [float(value) for value in logged] == [round(mean["psnr"], 4)]  # the averaged weights, the same noise
    assert workshop.test(tested, "beta_schedule:scheduler_type=DDPM", "beta_schedule:num_inference_steps=12") == 0
    ancestral = json.loads((folder / "metrics.json").read_text())["val"]["mean"]
    assert ancestral != mean


def test_another_seed_gives_other_samples(workshop: Workshop) -> None:
    options = diffusion_options()
    assert workshop.train(options, "train:total_iter=1") == 0
    tested = diffusion_test_options(options, "experiments/diffusion/models/net_g_latest.pth")
    found = []
    for force in ("manual_seed=1", "manual_seed=1", "manual_seed=2"):
        assert workshop.test(tested, force) == 0
        found.append((workshop.folder / "results/test_diffusion/val.csv").read_text())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("kind", "mode"), [("bi_diffsr", "corrected"), ("ir_net", "corrected"), ("sr3", "released")])
def test_resume_without_a_kill(workshop: Workshop, kind: str, mode: str) -> None:
    options = diffusion_options(kind) | {"mode": mode}
    options["train"]["accumulation"] = 2
    assert workshop.train(options, "name=reference") == 0
    assert workshop.train(options) == 0
    (workshop.experiment("diffusion") / "training_states" / "4.state").unlink()
    assert workshop.train(options, flags=["--auto_resume"]) == 0
    assert same(workshop.network("diffusion", "g", 4), workshop.network("reference", "g", 4))


@pytest.mark.parametrize(("kind", "batch"), [("bi_diffsr", "1"), ("bi_diffsr", "4"), ("ir_net", "1")])
def test_two_processes_equal_one(workshop: Workshop, kind: str, batch: str) -> None:
    """Float64, no dropout, a timestep for each sample: weights, averages, moments and validation to 1e-9."""
    options = diffusion_options(kind, dropout=0)
    options["train"] |= {"precision": "fp64", "total_iter": 3}
    options["logger"] |= {"save_checkpoint_freq": 1}
    batches = "datasets:train:batch_size_per_gpu="
    assert workshop.train(options, "name=one", f"{batches}{2 * int(batch)}") == 0
    code, errors = workshop.run("train.py", options, "name=two", f"{batches}{batch}", processes=2)
    assert code == 0, errors
    one, two = (workshop.network(name, "g") for name in ("one", "two"))
    assert close(two["params"], one["params"], 1e-9) and close(two["params_ema"], one["params_ema"], 1e-9)
    states = [workshop.state(name, 3) for name in ("one", "two")]
    moments = [{number: {key: entry[key] for key in ("step", "exp_avg", "exp_avg_sq")}
                for number, entry in state["optimizers"][0]["state"].items()} for state in states]
    assert close(moments[1], moments[0], 1e-9)
    assert close(states[1]["best"], states[0]["best"], 1e-9)
    assert workshop.losses("two") == workshop.losses("one")


@pytest.mark.parametrize(("kind", "precision"), [("bi_diffsr", "bf16"), ("ir_net", "bf16"), ("sr3", "fp16")])
def test_half_precision(workshop: Workshop, kind: str, precision: str) -> None:
    options = diffusion_options(kind) | {"mode": "released"}
    options["train"] |= {"precision": precision, "gradient_clip": 0.5, "total_iter": 2}
    assert workshop.train(options) == 0
    assert all(tensor.dtype is torch.float32 for tensor in workshop.network("diffusion", "g")["params"].values())


@pytest.mark.parametrize(("force", "part"), [
    ("beta_schedule:scheduler_type=DIM", "must be one of DDIM, DDPM"),
    ("beta_schedule:n_timestep=13", "network_g:total_step is 12"),
    ("beta_schedule:num_inference_steps=13", "from 1 to n_timestep, 12"),
    ("network_g:dynamic_group=2", "set network_g:dynamic_group=3"),
    ("network_g:dynamic_group=13", "13 timestep groups for 12 timesteps"),
    ("datasets:train:type=PairedImageDataset", "set it to MultiPairedImageDataset"),
    ("network_g:channel_mults=[1, 2, 4, 8, 16, 32]", "must be a multiple of 32"),
    ("val:tile=64", "'val:tile' must be 0"),
])
def test_bad_input_is_one_line(
    workshop: Workshop, capfd: pytest.CaptureFixture[str], force: str, part: str,
) -> None:
    options = diffusion_options() | {"mode": "corrected"}
    if "dynamic_group=2" in force:
        assert workshop.train(options, "train:total_iter=1", "name=first") == 0
        options["path"] = {"pretrain_network_g": "experiments/first/models/net_g_latest.pth"}
    capfd.readouterr()
    assert workshop.train(options, force) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert line.startswith("error: ") and part in line
