# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The text of a printed tensor, formatted like that of the device's print operation."""

import sys
from typing import Any, List, NamedTuple

import torch

from ..errors import check

_FORMATS = {"auto": "g", "fixed": "f", "scientific": "e", "none": ""}


class Style(NamedTuple):
    """The format arguments of `ops.ipu_print_tensor`."""

    summarise_threshold: int
    edge_items: int
    max_line_width: int
    digits: int
    float_format: str
    separator: str
    open_bracket: str
    close_bracket: str


def write(title: str, tensor: torch.Tensor, style: Style) -> None:
    """Writes a tensor of any shape to standard error."""
    sys.stderr.write(f"{title}: {text(tensor, style)}\n")


def text(tensor: torch.Tensor, style: Style) -> str:
    """Returns a tensor of any shape as text."""
    check(style.float_format in _FORMATS, f"float_format must be {', '.join(_FORMATS)}, not {style.float_format!r}")
    summarise = tensor.numel() > style.summarise_threshold
    return _rows(tensor.detach().cpu().tolist(), style, summarise)


def _rows(values: Any, style: Style, summarise: bool) -> str:
    if not isinstance(values, list):
        return _number(values, style)
    if summarise and len(values) > 2 * style.edge_items:
        head, tail = values[: style.edge_items], values[len(values) - style.edge_items :]
        parts = [_rows(item, style, summarise) for item in head] + ["..."]
        parts += [_rows(item, style, summarise) for item in tail]
    else:
        parts = [_rows(item, style, summarise) for item in values]
    nested = any(isinstance(item, list) for item in values)
    joined = (style.separator.rstrip() + "\n " if nested else style.separator).join(parts)
    if not nested:
        joined = "\n ".join(_broken(parts, style))
    return f"{style.open_bracket}{joined}{style.close_bracket}"


def _broken(parts: List[str], style: Style) -> List[str]:
    """Breaks the elements of a row into lines of at most `max_line_width` characters if possible."""
    lines = [""]
    for index, part in enumerate(parts):
        piece = part + (style.separator if index + 1 < len(parts) else "")
        if lines[-1] and 0 < style.max_line_width < len(lines[-1]) + len(piece):
            lines.append("")
        lines[-1] += piece
    return lines


def _number(value: Any, style: Style) -> str:
    if not isinstance(value, float):
        return str(value)
    form = _FORMATS[style.float_format]
    return f"{value:.{style.digits}{form}}" if form else repr(value)
