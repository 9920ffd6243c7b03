# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The PopTorch that the tests run on: poptorch_host, or by `pytest --backend sdk` the `poptorch` of this environment.

A test takes `poptorch`, `popart` and `popdist` from here, and so do the modules that it shares with other processes.
What only one back end can show is marked with the reason: `host_only`, `needs_core`.
"""

import importlib
import os
from types import ModuleType
from typing import Any, Optional

import pytest

from tests import BACKEND_VARIABLE

NAME = os.environ.get(BACKEND_VARIABLE, "host")
DEVICE = {"host": "cpu", "sdk": "ipu"}[NAME]  # what accelerator.select is to be asked for


def module(name: str) -> ModuleType:
    """A module of the back end by its name in the SDK, such as poptorch.enums or popdist.poptorch."""
    if NAME == "host":
        head, _, rest = name.partition(".")
        parts = ["poptorch_host", "" if head == "poptorch" else head, rest]
        name = ".".join(part for part in parts if part)
    return importlib.import_module(name)


poptorch = module("poptorch")
popart = module("popart")
popdist = module("popdist")
optim = module("poptorch.optim")

# PopTorch's Python over a stub of its native core shows what the Python does, and not what the core computes.
_core = getattr(poptorch, "poptorch_core", None)
STUB_CORE = NAME == "sdk" and getattr(_core, "__harness_stub__", False)


def host_only(reason: str) -> pytest.MarkDecorator:
    """Marks a test, or as `pytestmark` a module, of what is poptorch_host's own."""
    return pytest.mark.skipif(NAME != "host", reason=f"poptorch_host only: {reason}")


def raises(kind: Any, match: Optional[str] = None) -> Any:
    """pytest.raises for an error that back ends raise each in its own words: those of poptorch_host are checked."""
    return pytest.raises(kind, match=match if NAME == "host" else None)


def needs_core(reason: str) -> pytest.MarkDecorator:
    """Marks a test of what PopTorch's native core does, which its Python over a stub of the core does not show."""
    return pytest.mark.skipif(bool(STUB_CORE), reason=f"needs PopTorch's native core: {reason}")
