"""Numbers recorded from BI-DiffSR's released code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def recorded(fixtures: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    """Tensors of one fixture file of BI-DiffSR."""
    return lambda name: load_file(fixtures / "bi_diffsr" / f"{name}.safetensors")
