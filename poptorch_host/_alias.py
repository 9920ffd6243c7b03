# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Lets modules be imported under a second name, as the very same objects."""
import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Dict, Optional

_targets: Dict[str, str] = {}


def alias(name: str, target: str) -> None:
    """Makes `import name` and `import name.part` give the modules `target` and `target.part`."""
    if not _targets:
        sys.meta_path.insert(0, _Finder())
    _targets[name] = target
    sys.modules[name] = importlib.import_module(target)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        name, _, part = fullname.partition(".")
        if not part or name not in _targets:
            return None
        actual = f"{_targets[name]}.{part}"
        return ModuleSpec(fullname, _Loader(actual)) if importlib.util.find_spec(actual) else None


class _Loader(Loader):
    """Hands out a module that is loaded under its own name, and leaves it as it is."""

    def __init__(self, actual: str) -> None:
        self._actual = actual

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._actual)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec
