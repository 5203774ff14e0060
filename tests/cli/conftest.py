"""The workshop, for this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_pipeline import place
from workshop import workshop, workshop_data

__all__ = ["place", "workshop", "workshop_data"]
