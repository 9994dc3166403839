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

from ._C import check_dtype  # which is there by the time that _C takes what is here


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

# Looked up once: a call on tiny tensors is made of such things.
_GENERAL, _PLAIN_GRADIENT, _PLAIN = Road
_below_autograd = torch._C._AutoDispatchBelowAutograd
_is_mode_enabled = torch._C._is_torch_function_mode_enabled
_included, _excluded = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
_keys_of, _any_requires_grad = torch._C._dispatch_keys, torch._C._any_requires_grad


def _is_known_plain(tensor: Tensor, included: Any, excluded: Any) -> bool:
    """Dense storage and ordinary autograd on the CPU or on CUDA, and nothing else in this thread's state."""
    keys = _keys_of(tensor)
    left = ((keys | included) - excluded).raw_repr()
    plain: bool = left & ~_PLAIN_KEYS.raw_repr() == 0
    _known[keys.raw_repr(), included.raw_repr(), excluded.raw_repr()] = plain
    return plain


def road(input: object, weight: object, bias: object, residual: object = None, /) -> Road:
    """PLAIN: plain tensors, no gradient needed; PLAIN_GRADIENT: plain ones, one is needed; GENERAL: anything else."""
    if _is_mode_enabled():
        return _GENERAL
    included, excluded = _included(), _excluded()
    thread = included.raw_repr(), excluded.raw_repr()
    tensors: Any = input, weight
    if bias is not None or residual is not None:
        tensors += tuple(value for value in (bias, residual) if value is not None)
    device = None
    for tensor in tensors:
        if type(tensor) not in _plain_types:
            return _GENERAL
        plain = _known.get((_keys_of(tensor).raw_repr(), *thread))
        if plain is None:
            plain = _is_known_plain(tensor, included, excluded)
        if not plain:
            return _GENERAL
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            return _GENERAL
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if torch._VF._unpack_dual(tensor, level=0).tangent is not None:
                return _GENERAL
    return _PLAIN_GRADIENT if torch.is_grad_enabled() and _any_requires_grad(*tensors) else _PLAIN


def _checked(name: str) -> Callable[..., Tensor]:
    operator: Callable[..., Tensor] = getattr(torch.ops.conv_ext, name).default

    def call(*arguments: Any) -> Tensor:
        check_dtype(name, *arguments)
        with _below_autograd():
            return operator(*arguments)

    call.__doc__ = f"conv_ext::{name} for plain tensors."
    return call


forward: Callable[..., Tensor] = _checked("forward")
input_grad: Callable[..., Tensor] = _checked("input_grad")
weight_grad: Callable[..., Tensor] = _checked("weight_grad")
_forward_packed: Callable[..., Tensor] = torch.ops.conv_ext.forward_packed.default


def forward_packed(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    """conv_ext::forward_packed for plain tensors; the packed weight is the last argument."""
    *others, packed = arguments
    if not isinstance(packed, Tensor):  # the dispatcher takes None for a tensor
        raise TypeError(f"packed must be a Tensor, got {type(packed)!r}")
    check_dtype("forward", input, weight, *others)
    with _below_autograd():
        return _forward_packed(input, weight, packed, *others)
