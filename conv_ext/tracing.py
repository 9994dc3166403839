"""What torch.jit.trace records of a call whose geometry follows from the input's size: one operator that finds it anew.

While a model is traced, sizes are tensors, and the numbers that are made of them cannot be handed to an operator's
lists of ints: as constants they would hold for the traced size alone. So a call with a padding string, and every
transposed convolution, is recorded as an operator of its own, which calls the public function when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing  # torch.jit.is_tracing, which its types do not have

from . import ops
from .arguments import Precision
from .settings import algorithm, current_algorithm, current_precision, precision

__all__ = ["is_tracing", "recorded", "unrecorded"]

_library = torch.library.Library("conv_ext", "FRAGMENT")  # a registration lives as long as this object
_SETTINGS = "str precision, str algorithm"


@contextmanager
def unrecorded() -> Iterator[None]:
    """Of what is done here a trace sees nothing: sizes are numbers."""
    state = torch._C._get_tracing_state()
    set_state = torch._C._set_tracing_state  # type: ignore[attr-defined]  # torch's stub lacks it
    set_state(None)
    try:
        yield
    finally:
        set_state(state)


@contextmanager
def _as_when_recorded(names: tuple[Precision, str]) -> Iterator[None]:
    """The settings of the recorded call; and no tracing, which would record what this operator does once more."""
    with unrecorded(), precision(names[0]), algorithm(names[1]):
        yield


def recorded(name: str, function: Callable[..., Tensor], schema: str) -> Callable[..., Tensor]:
    """`function(input, weight, bias, ...)` as an operator that traces record; schema: the arguments after the bias."""
    _library.define(f"{name}(Tensor input, Tensor weight, Tensor? bias, {schema}, {_SETTINGS}) -> Tensor")

    def kernel(*arguments: Any) -> Tensor:
        with _as_when_recorded(arguments[-2:]):
            return function(*arguments[:-2])

    _library.impl(name, kernel, "CompositeImplicitAutograd")
    operator: Callable[..., Tensor] = getattr(torch.ops.conv_ext, name).default

    def record(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        operands = ops.autocast(input, weight, bias, *rest)  # recorded, as those of other calls are
        return operator(*operands, current_precision(input.device.type), current_algorithm())

    return record
