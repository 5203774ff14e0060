"""Figures by matplotlib, which is an extra."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_bytes


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of this size in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("plots need the package 'matplotlib', which is not installed; run: pip install "
                        "-c constraints.txt matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def write_png(figure: Any, path: Path) -> None:
    """Write a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_bytes(path, content.getvalue())
