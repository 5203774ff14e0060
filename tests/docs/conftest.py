"""The workshop and the reader of documents, for this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from workshop import workshop, workshop_data  # noqa: E402

__all__ = ["workshop", "workshop_data"]
