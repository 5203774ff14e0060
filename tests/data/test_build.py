"""Loaders: workers, processes and resume change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from basicsr_quant.data import build
from basicsr_quant.data.build import build_dataset, build_train_loader, missing_folders
from basicsr_quant.errors import UserError
from basicsr_quant.options.types import DatasetOptions

MakePairs = Callable[..., tuple[Path, Path]]
Stream = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def enough_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "worker_count", lambda wanted: wanted)


def block(folders: tuple[Path, Path], **changes: Any) -> DatasetOptions:
    named = {"name": "small", "dataroot_gt": str(folders[0]), "dataroot_lq": str(folders[1]), "filename_tmpl": "{}x2",
             "gt_size": 16, "batch_size_per_gpu": 2}
    return DatasetOptions(**named | changes)


def batches(options: DatasetOptions, **arguments: Any) -> Stream:
    dataset = build_dataset(options, 2, "train", seed=11)
    return list(build_train_loader(dataset, options, **{"seed": 11, "total_iter": 6} | arguments))


def same(one: Stream, other: Stream) -> bool:
    return len(one) == len(other) and all(
        a["name"] == b["name"] and a["sample"] == b["sample"] and a["iteration"] == b["iteration"]
        and torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"]) for a, b in zip(one, other, strict=True))


def test_workers_and_global_random_state_do_not_matter(make_pairs: MakePairs) -> None:
    folders = make_pairs(5, size=(40, 48))
    alone = batches(block(folders))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(alone, batches(block(folders, num_worker_per_gpu=2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_resume(make_pairs: MakePairs) -> None:
    options = block(make_pairs(5, size=(40, 48)), num_worker_per_gpu=1)
    assert same(batches(options, accumulation=2)[8:], batches(options, accumulation=2, start_iteration=4))


def test_one_process_of_four_and_two_of_two(make_pairs: MakePairs) -> None:
    folders = make_pairs(5, size=(40, 48))
    whole = batches(block(folders, batch_size_per_gpu=4))
    halves = [batches(block(folders), rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch["lq"], torch.cat([first["lq"], second["lq"]]))
        assert torch.equal(batch["gt"], torch.cat([first["gt"], second["gt"]]))
        assert batch["sample"] == first["sample"] + second["sample"] == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_one_line(make_pairs: MakePairs, workers: int) -> None:
    folders = make_pairs(3)
    path = folders[0] / "im1.png"
    path.write_bytes(path.read_bytes()[:-200])
    options = block(folders, num_worker_per_gpu=workers)
    with pytest.raises(UserError) as caught:
        list(build_train_loader(build_dataset(options, 2, "train", seed=0), options, seed=0, total_iter=3))
    assert str(caught.value) == f"'{path}' is truncated or damaged; restore it from a copy or remove it"


def test_what_training_needs(make_pairs: MakePairs, tmp_path: Path) -> None:
    folders = make_pairs(2)
    with pytest.raises(UserError, match=r"train:dataroot_lq is missing.*prepare-data --hr .*HR --out DIR --scale 2"):
        build_dataset(block(folders, dataroot_lq=None), 2, "train", seed=0)
    with pytest.raises(UserError, match="datasets:train_2:dataroot_gt is missing"):
        build_dataset(block(folders, dataroot_gt=None), 2, "train", seed=0, key="train_2")
    assert not build_dataset(block(folders, dataroot_gt=None), 2, "train", seed=0, read_gt=False).has_gt
    with pytest.raises(UserError, match="datasets:train:gt_size is missing"):
        build_dataset(block(folders, gt_size=None), 2, "train", seed=0)
    nowhere = str(tmp_path / "nowhere")
    assert missing_folders(block(folders)) == [] and missing_folders(block(folders, dataroot_lq=nowhere)) == [nowhere]


def test_workers_are_bounded_by_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert build.worker_count(0) == 0 and 1 <= build.worker_count(10_000) < 10_000
