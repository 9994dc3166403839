"""What stands in for the fast road (csrc/torch/fastcall.cpp) where there is none for the running torch and Python.

The same functions, by the dispatcher below the Autograd key: the same results and errors, some microseconds slower a
call.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Road(IntEnum):
    """What kind of call it is: see `road`."""

    GENERAL = 0
    PLAIN_GRADIENT = 1
    PLAIN = 2


_KEYS = ("CPU", "AutogradCPU", "CUDA", "AutogradCUDA", "ADInplaceOrView", "BackendSelect")
_PLAIN_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
for _key in _KEYS[1:]:
    _PLAIN_KEYS = _PLAIN_KEYS.add(getattr(torch._C.DispatchKey, _key))
_plain_types = (Tensor, torch.nn.Parameter)
_known: dict[tuple[int, int, int], bool] = {}  # a few sets of keys are all that a process sees: (tensor's, in, out)


def _is_plain(tensor: Tensor, included: Any, excluded: Any) -> bool:
    """Dense storage and ordinary autograd on the CPU or on CUDA, and nothing else in this thread's state."""
    keys = torch._C._dispatch_keys(tensor)
    state = keys.raw_repr(), included.raw_repr(), excluded.raw_repr()
    plain = _known.get(state)
    if plain is None:
        left = ((keys | included) - excluded).raw_repr()
        plain = _known[state] = left & ~_PLAIN_KEYS.raw_repr() == 0
    return plain and (forward_ad._current_level < 0 or torch._VF._unpack_dual(tensor, level=0).tangent is None)


def road(input: object, weight: object, bias: object, residual: object = None, /) -> Road:
    """PLAIN: plain tensors, no gradient needed; PLAIN_GRADIENT: plain ones, one is needed; GENERAL: anything else."""
    if torch._C._is_torch_function_mode_enabled():
        return Road.GENERAL
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    tensors: list[Any] = [input, weight, *(value for value in (bias, residual) if value is not None)]
    for tensor in tensors:
        if type(tensor) not in _plain_types or not _is_plain(tensor, included, excluded):
            return Road.GENERAL
        if tensor.device != tensors[0].device:
            return Road.GENERAL
    recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)
    return Road.PLAIN_GRADIENT if recorded else Road.PLAIN


def _below(name: str, *arguments: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        y: Tensor = getattr(torch.ops.conv_ext, name).default(*arguments)
        return y


def _checked(name: str) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        from .passes import check_dtype  # which is made of this module

        check_dtype(name, *arguments)
        return _below(name, *arguments)

    call.__doc__ = f"conv_ext::{name} for plain tensors."
    return call


forward: Callable[..., Tensor] = _checked("forward")
input_grad: Callable[..., Tensor] = _checked("input_grad")
weight_grad: Callable[..., Tensor] = _checked("weight_grad")


def forward_packed(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    """conv_ext::forward_packed for plain tensors; the packed weight is the last argument."""
    from .passes import check_dtype

    *others, packed = arguments
    if not isinstance(packed, Tensor):  # the dispatcher takes None for a tensor
        raise TypeError(f"packed must be a Tensor, got {type(packed)!r}")
    check_dtype("forward", input, weight, *others)
    return _below("forward_packed", input, weight, packed, *others)
