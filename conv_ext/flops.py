"""Tells torch.utils.flop_counter.FlopCounterMode what our operators count as (Pass.flops in passes.py).

It is told when that module is loaded: it brings Triton along where there is one, which an import of conv_ext is not to
pay for.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from .passes import FORWARD, PASSES, Pass

_COUNTER = "torch.utils.flop_counter"


def _formula(of: Pass) -> Callable[..., int]:
    return lambda first, second, *_, out_shape, **__: of.flops(first, second, out_shape)


def _register() -> None:
    counter = sys.modules[_COUNTER]
    for name, each in [*((each.name, each) for each in PASSES), ("forward_packed", FORWARD)]:
        operator = getattr(torch.ops.conv_ext, name)
        if operator not in counter.flop_registry:  # a reloaded module starts with an empty one
            counter.register_flop_formula(operator)(_formula(each))


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Lets the others find the module, and registers the formulas once its code has run."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)  # its work is done; and the others are to be asked
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenLoaded())
