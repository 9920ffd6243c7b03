# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The origin of the weights in a file: configuration, class names and optimizer state.

Checkpoints store them as entries, files of `models.convert` as metadata (safetensors, folders, ONNX).
"""

import json
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from common.archive import plain

from .pretrained import weights_in
from .swin_transformer import COMPUTED
from .weight_files import Contents
from .weight_names import PARTS


class Origin(NamedTuple):
    """`config` is the text of a configuration, `classes` are names; None and [] if the file does not state them."""

    config: Optional[str] = None
    classes: List[str] = []
    optimizer: Optional[Dict[str, Any]] = None


def metadata(config: str, classes: List[str]) -> Dict[str, str]:
    """The entries of a file's metadata that are read by `origin_of`."""
    return {"config": config, "classes": json.dumps(classes)}


def origin_of(contents: Contents) -> Origin:
    """The origin in the contents of a file; raises BadFile if its optimizer state is damaged."""
    if contents.metadata:
        return Origin(contents.metadata.get("config"), _names(contents.metadata.get("classes")))
    values = contents.values if isinstance(contents.values, Mapping) else {}
    text = values.get("config")
    if not isinstance(text, str):
        return Origin()
    optimizer = values.get("optimizer")
    optimizer = plain(optimizer, lambda stored: contents.tensor("of the optimizer", stored))
    return Origin(text, _all_text(values.get("classes")), optimizer)


def converted(contents: Contents) -> Optional[Dict[str, Any]]:
    """The part of a checkpoint needed without training, from a file of `models.convert`; None for other files.

    Returns:
        Configuration text, class names (numbers if the file has none), and weights by official names.

    Raises:
        BadFile: if the file has no weights.
    """
    origin = origin_of(contents)
    if origin.config is None:
        return None
    entries = weights_in(contents).entries  # for ONNX also computed tables and constants of the graph
    weights = {name: value for name, value in entries.items() if name.startswith(PARTS) and not name.endswith(COMPUTED)}
    classes = origin.classes or [str(label) for label in range(len(weights.get("head.bias", ())))]
    return {"config": origin.config, "classes": classes, "model": weights}


def _names(text: Optional[str]) -> List[str]:
    """Class names in metadata; [] if there are none."""
    try:
        return _all_text(json.loads(text or "[]"))
    except (ValueError, RecursionError):
        return []


def _all_text(names: Any) -> List[str]:
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
