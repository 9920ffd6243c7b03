# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Makes this package importable under other names, as the same module objects.

Once a module of this package is in sys.modules under a second name, as by `alias`, its submodules can be imported under
that name too. Otherwise `import poptorch.optim` would load optim a second time, with classes that are not the first
ones.
"""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional

PACKAGE = __package__


def alias(name: str, target: str) -> None:
    """Makes `import name` and `import name.part` return the modules `target` and `target.part`."""
    sys.modules[name] = importlib.import_module(target)


class _Finder(MetaPathFinder):
    """Finds submodules of those modules of this package that are in sys.modules under a second name."""

    def find_spec(self, fullname: str, path: Any, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        parent, _, part = fullname.rpartition(".")
        actual = getattr(sys.modules.get(parent), "__name__", parent)
        if actual == parent or actual.split(".")[0] != PACKAGE:
            return None
        found = importlib.util.find_spec(f"{actual}.{part}")
        return ModuleSpec(fullname, _Loader(f"{actual}.{part}")) if found else None


class _Loader(Loader):
    """Returns a module that is loaded under its own name, unchanged."""

    def __init__(self, actual: str) -> None:
        self._actual = actual

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._actual)
        self._own_spec = module.__spec__
        return module

    def load_module(self, fullname: Optional[str] = None) -> ModuleType:
        """Returns the module. Programs call it on the loader of a spec, without a name."""
        return importlib.import_module(self._actual)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


sys.meta_path.insert(0, _Finder())  # the only side effect of importing the package
