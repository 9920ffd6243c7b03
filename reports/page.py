# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Renders report.html."""

import functools
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import jinja2

from reports.manifest import Manifest
from reports.results import Results

TEMPLATE = "page.html"


class Chart(NamedTuple):
    """A chart of the page."""

    title: str
    columns: Tuple[Tuple[str, str], ...]  # of metrics.csv, with the names of their lines
    unit: str = ""
    from_zero: bool = True  # whether the axis starts at zero
    ticks: str = ""  # D3 format of the axis


CHARTS = (
    Chart("Loss", (("loss", "training"),), from_zero=False),
    Chart(
        "Accuracy",
        (("top1", "top-1"), ("top5", "top-5"), ("ema_top1", "EMA top-1"), ("ema_top5", "EMA top-5")),
        "%",
        from_zero=False,
    ),
    Chart("Learning rate", (("lr", "learning rate"),)),
    Chart("Throughput", (("throughput", "samples per second"),), "samples/s"),
    Chart("Gradient norm", (("grad_norm", "before clipping"),)),
    Chart("Waiting for data", (("loader_wait", "share of time"),), "share of time", ticks=".0%"),
)


class Head(NamedTuple):
    """The top of the page."""

    title: str
    progress: str  # such as "epoch 3 of 30"
    tiles: List[Tuple[str, str]]  # names and values of the most important numbers


def render(head: Head, rows: Sequence[Dict[str, Any]], results: Optional[Results], manifest: Manifest) -> str:
    """The whole page.

    Args:
        rows: of metrics.csv, one per epoch.
        results: of the last validation; None if there was none.
    """
    charts = _charts(rows)
    text = _template().render(
        head=head,
        columns=list(dict.fromkeys(name for row in reversed(rows) for name in row)),
        rows=rows,
        charts=charts,
        data=_as_json({"charts": charts, "manifest": manifest.plain()}),
        plotly=plotly_script() if charts else "",
        results=results,
        manifest=manifest,
    )
    return text.encode("utf-8", "backslashreplace").decode()  # file names may not be valid text


@functools.lru_cache(maxsize=None)
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(str(Path(__file__).parent))
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(TEMPLATE)


def plotly_script() -> str:
    """The script of the installed plotly, ready to be embedded; empty if plotly is not installed."""
    try:
        path = importlib.metadata.distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
        return Path(str(path)).read_text(encoding="utf-8").replace("</script", "<\\/script")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return ""


def _charts(rows: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The charts that have data; epochs are counted from 1."""
    epochs = [row["epoch"] + 1 for row in rows]
    charts = []
    for chart in CHARTS:
        lines = [(name, [_finite(row.get(column)) for row in rows]) for column, name in chart.columns]
        shown = [{"name": name, "y": numbers} for name, numbers in lines if any(y is not None for y in numbers)]
        if shown:
            axis = {"unit": chart.unit, "from_zero": chart.from_zero, "ticks": chart.ticks}
            charts.append({"title": chart.title, "x": epochs, "lines": shown, **axis})
    return charts


def _finite(value: Any) -> Optional[float]:
    """JSON has no NaN."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _as_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
