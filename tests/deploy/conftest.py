"""Modules beside the tests of packed files can be imported by them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from workshop import workshop, workshop_data

__all__ = ["workshop", "workshop_data"]
