"""A model on the meta device for the time of a block: sizes without numbers, nothing computed, nothing copied.

`torch.func.functional_call` would do it but for models that register a module twice: their tensors are lost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["on_meta"]


@contextmanager
def on_meta(model: nn.Module) -> Iterator[None]:
    """Within the block every tensor that a module of `model` holds is a meta tensor of the same size and dtype.

    That is what is in its parameters, its buffers, its attributes, and in lists, tuples and dicts among these (an LSTM
    keeps its weights in such a list, too); what is one tensor stays one. Afterwards every attribute of every module,
    and what is in such a list or dict, is what it was before, whatever the model has done meanwhile.
    """
    made: dict[int, Tensor] = {}  # by the id of the tensor that it stands for

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in made:
                twin = value.detach().to("meta")
                made[id(value)] = nn.Parameter(twin, False) if isinstance(value, nn.Parameter) else twin
            return made[id(value)]
        return value

    def held(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(moved, value))
        if isinstance(value, (dict, list)):  # a copy, for the model may put something into it
            value = copy.copy(value)
            for key, each in value.items() if isinstance(value, dict) else enumerate(value):
                value[key] = moved(each)
        return moved(value)

    modules = list(model.modules())  # each once, whatever its names
    before = [dict(vars(module)) for module in modules]
    try:
        for module, attributes in zip(modules, before):
            vars(module).update({name: held(value) for name, value in attributes.items()})
        yield
    finally:
        for module, attributes in zip(modules, before):
            vars(module).clear()
            vars(module).update(attributes)
