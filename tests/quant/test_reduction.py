"""Calibration spread over two processes gives the bounds of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

OBSERVERS: list[Any] = ["minmax", "percentile", "dobi", {"type": "dobi", "search": "one_sided"}, "ema_minmax"]


def bounds(observer: Any, batches: list[torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    part = {"bits": 3, "observer": observer}
    model = prepare(model, QuantPlan.parse([{"0": {"weight": {**part, "per": "channel"}, "activation": part}},
                                            {"2": {"weight": part, "activation": part}}]))
    calibrate(model, batches)
    return torch.cat([bound.detach().flatten() for _, quantizer in named_quantizers(model)
                      for bound in quantizer.parameters()])


def batches() -> list[torch.Tensor]:
    return list(torch.randn(80, 6, generator=torch.Generator().manual_seed(1)).split(20))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for index, observer in enumerate(OBSERVERS):
        found[f"{index} several"] = bounds(observer, batches()[rank::2])
        found[f"{index} one"] = bounds(observer, [torch.cat(batches()[rank::2])])
    try:
        bounds("minmax", batches()[rank:2])
    except UserError as error:
        found["message"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert "different numbers of batches" in first.pop("message")
    assert "different numbers of batches" in second.pop("message")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for index, observer in enumerate(OBSERVERS):
        if observer != "ema_minmax":
            alone = bounds(observer, batches())
            torch.testing.assert_close(first[f"{index} several"], alone, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(first[f"{index} one"], alone, rtol=1e-6, atol=1e-7)
    # A running average sees each step's batches of all processes as one.
    joint = [torch.cat(batches()[start:start + 2]) for start in (0, 2)]
    torch.testing.assert_close(first["4 several"], bounds("ema_minmax", joint), rtol=1e-6, atol=1e-7)
