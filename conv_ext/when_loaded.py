"""Calls for other modules' sake, made when these are loaded: an import of conv_ext is not to pay for them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["when_loaded"]


class _WhenLoaded(MetaPathFinder):
    """Lets the others find the module, and makes the call once the module's code has run."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)  # its work is done; and the others are to be asked
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_call(module: ModuleType) -> None:
                load(module)
                self.call()

            spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


def when_loaded(name: str, call: Callable[[], None]) -> None:
    """Call once the module of that name has been loaded, now if it has been."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _WhenLoaded(name, call))
