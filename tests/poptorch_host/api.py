# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The recorded interface of PopTorch, read for tests."""

import importlib
import json
from pathlib import Path
from typing import Any

from tests.backend import module

RECORD = json.loads(
    (Path(__file__).parents[2] / "poptorch_host" / "data" / "poptorch-api.json").read_text(encoding="utf-8")
)
NAMES = RECORD["names"]


def find(name: str) -> Any:
    """What `name`, such as poptorch.Options.clone or popdist.poptorch.Options, stands for in the package."""
    head, *parts = name.split(".")
    found = module(head)
    for part in parts:
        if not hasattr(found, part) and hasattr(found, "__path__"):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found
