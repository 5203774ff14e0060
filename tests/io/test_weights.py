"""Reading weights: nothing but data, damage noticed, misfits named."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict, file_digest, load_file, load_state_dict

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}


def saved(path: Path, content: Any, **settings: Any) -> Path:
    torch.save(content, path, **settings)
    return path


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_key_or_else_what_is_there(tmp_path: Path, key: str | None) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    both = saved(tmp_path / "both.pth", {"params": STATE, "params_ema": other, "metadata": {}})
    assert equal(load_state_dict(both, key), STATE if key == "params" else other)
    for number, content in enumerate([STATE, {"params": STATE}, {"params_ema": STATE}, {"state_dict": STATE},
                                      {"params": {f"module.{name}": tensor for name, tensor in STATE.items()}}]):
        path = saved(tmp_path / f"{number}.pth", content)
        if key in (None, *content) or content is STATE:
            assert equal(load_state_dict(path, key), STATE)
        else:
            with pytest.raises(UserError, match=f"has no entry '{key}'; it has {next(iter(content))}"):
                load_state_dict(path, key)


def test_formats(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "file.safetensors")
    assert equal(load_state_dict(tmp_path / "file.safetensors"), STATE)
    old = saved(tmp_path / "old.pth", STATE, _use_new_zipfile_serialization=False)
    assert equal(load_state_dict(old), STATE)


@pytest.mark.parametrize("content", [[1, 2], {}, {"params": {}}, {"weight": 3}, {1: torch.ones(1)}, torch.ones(2)])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="holds no state dict"):
        load_state_dict(saved(tmp_path / "file.pth", content))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match="tensor 'bias' holds NaN or infinite values"):
        load_state_dict(saved(tmp_path / "file.pth", {**STATE, "bias": torch.tensor([value])}))


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_file(tmp_path / "nowhere.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="is empty"):
        load_file(tmp_path / "empty.pth")


def test_flip_in_a_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", {"weight": torch.ones(64)})
    content = path.read_bytes()
    position = content.index(torch.ones(64).numpy().tobytes())
    path.write_bytes(content[:position] + b"\x01" + content[position + 1:])
    assert torch.load(path, weights_only=True)["weight"][0] != 1  # torch itself does not notice
    with pytest.raises(UserError, match=r"is damaged: record '.*/data/0' fails its checksum"):
        load_file(path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """They could be small on disk and huge in memory."""
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(UserError, match="holds compressed or overlapping records"):
        load_file(tmp_path / "bomb.pth")


@pytest.mark.parametrize("header", [2**40, 17 * 2**20, 300])
def test_safetensors_header_that_is_too_long(tmp_path: Path, header: int) -> None:
    (tmp_path / "file.safetensors").write_bytes(struct.pack("<Q", header) + b"{}" + bytes(50))
    with pytest.raises(UserError, match=f"declares a header of {header} bytes"):
        load_file(tmp_path / "file.safetensors")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.98])
def test_truncated_safetensors(tmp_path: Path, part: float) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"weight": torch.ones(100)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="truncated, damaged"):
        load_file(path)


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pickled objects other than tensors .* were not run"):
        load_file(saved(tmp_path / "module.pth", nn.Linear(2, 2)))


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_apply(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    apply_state_dict(network, STATE, "file.pth")
    assert equal(dict(network.state_dict()), STATE)
    with pytest.raises(UserError, match=r"'file.pth' .*'weight' has shape \(2, 4\), expected \(2, 3\) \(and 1 more\)"):
        apply_state_dict(network, {"weight": torch.ones(2, 4), "bias": torch.ones(4)}, "file.pth", strict=False)
    with pytest.raises(UserError, match="'bias' is missing; check the network options"):
        apply_state_dict(network, {"weight": STATE["weight"]}, "file.pth")
    with pytest.raises(UserError, match=r"'a' is not part of it \(and 1 more\)"):
        apply_state_dict(network, {**STATE, "a": torch.ones(1), "b": torch.ones(1)}, "file.pth")


def test_apply_what_fits() -> None:
    network = nn.Linear(3, 2)
    bias = network.bias.detach().clone()
    apply_state_dict(network, {"weight": STATE["weight"], "other": torch.ones(1)}, "file.pth", strict=False)
    assert torch.equal(network.weight, STATE["weight"]) and torch.equal(network.bias, bias)
