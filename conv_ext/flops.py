"""What torch.utils.flop_counter.FlopCounterMode counts for our operators: 2 for each product of a convolution.

Of a grouped weight gradient that is what is computed, N P Q K (C / groups) R S; torch's own formula counts it as that
of a layer without groups, `groups` times as many.

The formulas are registered when that module is loaded: it brings Triton along where there is one, which an import of
conv_ext is not to pay for.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys

import torch

_COUNTER = "torch.utils.flop_counter"


def _forward(_input, weight, _bias, *_, out_shape, **__) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _input_grad(grad_output, weight, *_, **__) -> int:
    return 2 * math.prod(grad_output) * math.prod(weight[1:])


def _weight_grad(grad_output, _input, *_, out_shape, **__) -> int:
    return 2 * math.prod(grad_output) * math.prod(out_shape[1:])


def _register() -> None:
    counter = sys.modules[_COUNTER]
    for name, formula in (("forward", _forward), ("input_grad", _input_grad), ("weight_grad", _weight_grad)):
        operator = getattr(torch.ops.conv_ext, name)
        if operator not in counter.flop_registry:  # a reloaded module starts with an empty one
            counter.register_flop_formula(operator)(formula)


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Lets the others find the module, and registers the formulas once its code has run."""

    def find_spec(self, name, path, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)  # its work is done; and the others are to be asked
        spec = importlib.util.find_spec(name)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_register(module) -> None:
                load(module)
                _register()

            spec.loader.exec_module = load_and_register
        return spec


if _COUNTER in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenLoaded())
