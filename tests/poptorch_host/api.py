# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The recorded interface of PopTorch, read for tests."""

import importlib
import json
from pathlib import Path
from typing import Any

import poptorch_host

RECORD = json.loads((Path(poptorch_host.__file__).parent / "data" / "poptorch-api.json").read_text(encoding="utf-8"))
NAMES = RECORD["names"]


def find(name: str) -> Any:
    """What `name`, such as poptorch.Options.clone or popdist.poptorch.Options, stands for in the package."""
    head, *parts = name.split(".")
    found = poptorch_host if head == "poptorch" else importlib.import_module(f"poptorch_host.{head}")
    for part in parts:
        if not hasattr(found, part) and hasattr(found, "__path__"):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found
