"""A small option file for the tests of options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from basicsr_quant.options.load import load_options

Loader = Callable[..., Any]


def small() -> dict[str, Any]:
    """Return the options of a short 2DQuant training as nested dicts."""
    return {
        "name": "small", "model_type": "TDQuantModel", "scale": 2, "bit": 4,
        "datasets": {"train": {"name": "A", "dataroot_lq": "a/lq", "dataroot_gt": "a/gt", "gt_size": 64}},
        "network_Q": {"type": "SwinIR", "upscale": 2},
        "train": {"optim_bound": {"type": "Adam", "lr": 0.1}},
        "val": {"val_freq": 10},
    }


@pytest.fixture
def small_options() -> dict[str, Any]:
    """The options of a short 2DQuant training as nested dicts."""
    return small()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Write nested dicts (or text) to ``o.yml`` and load it."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(options: dict[str, Any] | str, *force: str, **keywords: Any) -> Any:
        Path("o.yml").write_text(options if isinstance(options, str) else yaml.safe_dump(options, sort_keys=False))
        return load_options("o.yml", force, **keywords)

    return write_and_load
