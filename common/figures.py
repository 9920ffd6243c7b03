# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Figures, written to PNG files; needs matplotlib, an optional package."""

from pathlib import Path
from typing import Any, Tuple

from common.errors import Refusal
from utils import reason


def new_figure(flag: str, path: Path, size: Tuple[float, float], otherwise: str) -> Any:
    """A matplotlib figure for `save_figure`; needs no display.

    Args:
        flag: the flag that names the file, for messages.
        size: width and height in inches.
        otherwise: what to do without matplotlib, for messages.

    Raises:
        Refusal: if the file's name does not end in .png, or matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise Refusal(f"{flag} {path}: the name must end in .png")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Refusal(
            f"{flag} draws with matplotlib, which is not installed: pip install matplotlib, or {otherwise}"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, flag: str, path: Path) -> None:
    """Writes a figure as PNG; raises `Refusal` if the file cannot be written."""
    try:
        figure.savefig(str(path), format="png", dpi=120)
    except OSError as error:
        raise Refusal(f"{flag} {path} cannot be written: {reason(error)}") from error
