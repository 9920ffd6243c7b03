# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Finds the package that this folder lies in, without the folder around the package being on the path."""

import importlib.util
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location(
    __name__, str(_PACKAGE / "__init__.py"), submodule_search_locations=[str(_PACKAGE)]
)
assert _spec is not None and _spec.loader is not None  # as for every path that ends in .py
_module = importlib.util.module_from_spec(_spec)
sys.modules[__name__] = _module
_spec.loader.exec_module(_module)
