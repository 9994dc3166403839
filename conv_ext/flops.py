"""Tells torch.utils.flop_counter.FlopCounterMode what our operators count as (Pass.flops in passes.py).

It is told when that module is loaded, which brings Triton along where there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from .passes import FORWARD, PASSES, Pass
from .when_loaded import when_loaded

_COUNTER = "torch.utils.flop_counter"


def _formula(of: Pass) -> Callable[..., int]:
    return lambda first, second, *_, out_shape, **__: of.flops(first, second, out_shape)


def _register() -> None:
    counter = sys.modules[_COUNTER]
    for name, each in [*((each.name, each) for each in PASSES), ("forward_packed", FORWARD)]:
        operator = getattr(torch.ops.conv_ext, name)
        if operator not in counter.flop_registry:  # a reloaded module starts with an empty one
            counter.register_flop_formula(operator)(_formula(each))


when_loaded(_COUNTER, _register)
