"""Files with pickled code in the place of every file that a user can name: one line, and the code is not run."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_workshop import diffusion_options, diffusion_test_options
from small_pipeline import FP, osediff_options, passionsr_options
from workshop import Workshop, error_lines, load, test_options

from basicsr_quant.cli.main import main
from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.metrics import networks
from basicsr_quant.options.annotations import fields_of
from basicsr_quant.options.method import METHODS

load_torchvision()
pytest.importorskip("diffusers")
NEEDS = {"path:text_encoder": "transformers", "weights of LPIPS": "lpips", "weights of pyiqa": "pyiqa",
         "weights of NIQE": "pyiqa", "export -w": "onnxruntime", "export -w -opt": "onnxruntime"}


class Hostile:
    """Makes the folder ``it_ran`` when it is unpickled by a reader that runs code."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("it_ran",)


def archive(content: Any, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


FORMS: dict[str, Callable[[], bytes]] = {
    "archive": lambda: archive({"params": {"weight": Hostile(), "lq": torch.ones(1)}}),
    "old": lambda: archive({"params": Hostile()}, _use_new_zipfile_serialization=False),
    "plain": lambda: pickle.dumps({"params": Hostile()}),
    "plain2": lambda: pickle.dumps([Hostile()], protocol=0),
    "script": script,
}

Case = Callable[[Workshop, str], int]


def sr(key: str) -> Case:
    return lambda place, file: place.train(place.fp, f"{key}={file}")


def at_test(*force: str) -> Case:
    return lambda place, file: place.test(test_options(place.fp, "weights/fp.pth"),
                                          *(setting.replace("FILE", file) for setting in force))


def dqc(key: str) -> Case:
    return lambda place, file: place.train(place.dqc, f"{key}={file}")


def verb(*words: str, weights: str = "weights/fp.pth", force: bool = True) -> Case:
    def run(place: Workshop, file: str) -> int:
        place.write(test_options(place.fp, weights), "tested")
        settings = ["--force_yml", f"path:pretrain_network_g={file}"] if force else []
        return main([*(word.replace("FILE", file) for word in words), *settings])

    return run


def sensitivity(place: Workshop, file: str) -> int:
    place.write(place.dqc, "o")
    return main(["sensitivity", "-opt", "o.yml", "-o", "found", "--force_yml", f"pathFP:pretrain_network_FP={file}"])


def tdquant(key: str) -> Case:
    return lambda place, file: place.test(test_options(place.dqc, "weights/fp.pth"), f"path:{key}={file}")


def diffusion(place: Workshop, file: str) -> int:
    return place.test(diffusion_test_options(diffusion_options(), file))


def one_step(method: Callable[[], dict[str, Any]], key: str, **others: str) -> Case:
    def run(place: Workshop, file: str) -> int:
        options = method()
        if key in ("path:prompt_embedding", "path:text_encoder"):
            options["one_step"]["random_context"] = 0
        kept = {name: value for name, value in options.items() if name not in ("train", "logger", "lora")}
        kept |= {"datasets": {"test_1": options["datasets"]["val"]}, "path": {**FP, **others}}
        return place.test(kept, f"{key}={file}")

    return run


def vae_quantization(place: Workshop, file: str) -> int:
    """It is read after the quantization of the UNet, which a calibration makes."""
    options = passionsr_options("made")
    options["train"] = {"order": []}
    if not (place.experiment("made") / "models").exists():
        assert place.train(options) == 0
    made = str(place.experiment("made") / "models/net_unet_latest.pth")
    return one_step(passionsr_options, "path:vae_ckpt", unet_ckpt=made)(place, file)


def folder_of(part: str, names: dict[str, str]) -> Callable[[Case], Case]:
    """Put the file into a folder of networks, under the name that they have there."""
    def decorate(case: Case) -> Case:
        def run(place: Workshop, file: str) -> int:
            folder = place.folder / "sd" / part
            folder.mkdir(parents=True)
            for name, text in names.items():
                (folder / name).write_bytes(Path(file).read_bytes() if text == "FILE" else text.encode())
            return case(place, "sd")

        return run

    return decorate


def unet_folder(place: Workshop, file: str) -> int:
    options = osediff_options()
    kept = {name: value for name, value in options.items() if name not in ("train", "logger", "lora")}
    kept |= {"datasets": {"test_1": options["datasets"]["val"]}, "path": {"sd": file}}
    return place.test(kept)


EVIL = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "auto_map": {"AutoModel": "evil.Model"}}
CASES: dict[str, Case] = {
    "path:pretrain_network_g": sr("path:pretrain_network_g"),
    "path:resume_state": sr("path:resume_state"),
    "path:pretrain_network_Q": tdquant("pretrain_network_Q"),
    "pathFP:pretrain_network_FP": dqc("pathFP:pretrain_network_FP"),
    "cali_data": dqc("cali_data"),
    "path:osediff": one_step(osediff_options, "path:osediff"),
    "path:prompt_embedding": one_step(osediff_options, "path:prompt_embedding"),
    "path:pretrain_network_unet": one_step(osediff_options, "path:pretrain_network_unet"),
    "path:pretrain_network_vae": one_step(osediff_options, "path:pretrain_network_vae"),
    "path:unet_ckpt": one_step(passionsr_options, "path:unet_ckpt", vae_ckpt="weights/vae.pth"),
    "path:vae_ckpt": vae_quantization,
    "path:sd": folder_of("unet", {"diffusion_pytorch_model.bin": "FILE"})(unet_folder),
    "path:text_encoder": folder_of("text_encoder", {
        "pytorch_model.bin": "FILE", "config.json": json.dumps(EVIL), "evil.py": "import os; os.mkdir('it_ran')",
    })(folder_of("tokenizer", {"tokenizer_config.json": '{"tokenizer_class": "CLIPTokenizer"}'})(
        one_step(osediff_options, "path:text_encoder"))),
    "network_g:weights (spandrel)": at_test("network_g={type: spandrel, weights: FILE}"),
    "a diffusion model": diffusion,
    "weights of LPIPS": at_test("val:metrics:m={type: calculate_lpips, weights: FILE}"),
    "weights of pyiqa": at_test("val:metrics:m={type: calculate_iqa, name: cnniqa, weights: FILE}"),
    "weights of NIQE": at_test("val:metrics:m={type: calculate_iqa, name: niqe, weights: FILE}"),
    "infer -w": verb("infer", "-i", "data/val/LR", "-o", "out", "-w", "FILE", force=False),
    "infer -w -opt": verb("infer", "-i", "data/val/LR", "-o", "out", "-w", "FILE", "-opt", "tested.yml", force=False),
    "export -w": verb("export", "onnx", "-o", "o.onnx", "--size", "8", "8", "-w", "FILE", force=False),
    "export -w -opt": verb("export", "onnx", "-o", "o.onnx", "--size", "8", "8", "-w", "FILE", "-opt", "tested.yml",
                           force=False),
    "pack": verb("pack", "-opt", "tested.yml", "-o", "out.safetensors"),
    "analyse": verb("analyse", "-opt", "tested.yml"),
    "inspect (spandrel)": verb("inspect", "-opt", "tested.yml", "--force_yml",
                               "network_g={type: spandrel, weights: FILE}", force=False),
    "sensitivity": sensitivity,
}


REFUSAL = re.compile(r"(hostile[.a-z]*|'sd/[^']*)' (holds (pickled|compr)|is (truncated|damaged|no )|declares)"
                     r"|path:text_encoder: 'sd' cannot be read")


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def refused(place: Workshop, case: str, form: str, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    need(NEEDS.get(case, "torch"))
    file = place.folder / f"hostile{suffix}"
    file.write_bytes(FORMS[form]())
    capfd.readouterr()
    code = CASES[case](place, file.name)
    lines = error_lines(capfd.readouterr().err)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (case, form, suffix, lines)
    assert REFUSAL.search(lines[0]), (case, form, suffix, lines)
    assert not (place.folder / "it_ran").exists(), (case, form, suffix)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("path:vae_ckpt", "sensitivity")])
def test_the_code_is_not_run(place: Workshop, capfd: pytest.CaptureFixture[str], case: str) -> None:
    refused(place, case, "archive", ".pth", capfd)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_in_other_forms_under_other_names(place: Workshop, capfd: pytest.CaptureFixture[str], case: str) -> None:
    for form, suffix in zip(FORMS, (".safetensors", ".bin", ".mat", "", ".ckpt"), strict=True):
        refused(place, case, form, suffix, capfd)
        shutil.rmtree("sd", ignore_errors=True)


def test_every_key_that_names_a_file_is_here() -> None:
    paths = [fields_of(METHODS.get(method).options)["path"].struct for method in METHODS]
    keys = {f"path:{key}" for path in paths if path is not None for key in fields_of(path)
            if not key.endswith("_root") and not key.startswith(("strict_", "param_key"))}
    assert len(keys) > 9 and keys <= set(CASES)


def test_states_of_a_run(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """A state with code is passed over; so is a network with code, though the state has its digest."""
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    folder = workshop.experiment("fp")
    network, path = folder / "models/net_g_2.pth", folder / "training_states/2.state"
    network.write_bytes(FORMS["archive"]())
    state = load(path)
    state["networks"]["net_g_2.pth"] = hashlib.sha256(network.read_bytes()).hexdigest()
    torch.save(state, path)
    capfd.readouterr()
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 2
    assert "net_g_2.pth' holds pickled objects" in error_lines(capfd.readouterr().err)[0]
    path.write_bytes(FORMS["archive"]())
    assert workshop.train(workshop.fp, "train:total_iter=1", flags=["--auto_resume"]) == 0
    assert "auto_resume passes over a state: 'experiments/fp/training_states/2.state'" in capfd.readouterr().err
    assert not (workshop.folder / "it_ran").exists()


def test_a_saved_model(workshop: Workshop) -> None:
    from basicsr_quant import from_pretrained

    weights = workshop.folder / "saved/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(FORMS["archive"]())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    facts = {"library_name": "basicsr_quant", "format_version": 1, "sha256": digest}
    (workshop.folder / "saved/config.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="model.safetensors"):
        from_pretrained("saved")
    assert not (workshop.folder / "it_ran").exists()


def test_weights_of_metric_networks(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """``evaluate`` finds them by name in a folder."""
    need("lpips")
    need("pyiqa")
    for name in ("alexnet-owt-7be5be79.pth", "niqe_modelparameters.mat", "musiq_koniq_ckpt-e95806b9.pth"):
        (workshop.folder / name).write_bytes(FORMS["archive"]())
    for metric in ("lpips", "niqe"):
        code = main(["evaluate", "--sr", "data/val/HR", "--gt", "data/val/HR", "--metrics", metric, "--weights", "."])
        lines = error_lines(capfd.readouterr().err)
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert not (workshop.folder / "it_ran").exists()


def test_pyiqa_reads_data_alone(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself refuses, whatever the check before it has let through."""
    need("pyiqa")
    monkeypatch.setattr(networks, "load_file", lambda path: None)
    Path("hostile.bin").write_bytes(FORMS["plain"]())
    with pytest.raises(pickle.UnpicklingError):
        networks.build_iqa("cnniqa", "hostile.bin", "cpu")
    assert not Path("it_ran").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
