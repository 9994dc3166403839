"""The operators as Python sees them: vmap rules and autocast (their kernels are in conv_ext._C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import folding
from .passes import library  # the import of _C there defines the operators

forward: OpOverload[..., Tensor] = torch.ops.conv_ext.forward.default
input_grad: OpOverload[..., Tensor] = torch.ops.conv_ext.input_grad.default
weight_grad: OpOverload[..., Tensor] = torch.ops.conv_ext.weight_grad.default
# forward with what `pack` has made of the weight; where that is for another call, it packs the weight itself.
forward_packed: OpOverload[..., Tensor] = torch.ops.conv_ext.forward_packed.default
pack: OpOverload[..., Tensor] = torch.ops.conv_ext.pack.default

AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # device -> dispatch key
_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(torch._C.DispatchKey.AutocastCUDA)


def autocast(*values: Any) -> Sequence[Any]:
    """The arguments of a call as F.conv2d's would be: under autocast real tensors take its dtype, float64 ones not."""
    device = values[0].device.type
    if device not in AUTOCAST or not torch.is_autocast_enabled(device):
        return values
    dtype = torch.get_autocast_dtype(device)
    return [
        value.to(dtype)
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == device
        else value
        for value in values
    ]


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that `autocast` gives a tensor."""
    device = tensor.device.type
    casts = device in AUTOCAST and torch.is_autocast_enabled(device)
    casts = casts and tensor.is_floating_point() and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else tensor.dtype


def outside_autocast(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator for use where the dtypes are settled: autocast has no say."""

    def call(*args: Any) -> Tensor:
        device = args[0].device.type
        if device in AUTOCAST and torch.is_autocast_enabled(device):
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                return operator(*args)
        return operator(*args)

    return call


def _autocast_kernel(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def kernel(*args: Any) -> Tensor:
        values = autocast(*args)  # before the guard, within which autocast counts as off
        # Whatever the first operand's device: another's may have brought the call here, and would do so again.
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return operator(*values)

    return kernel


def _fold_packed(
    info: Any, in_dims: Any, input: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None, *options: Any
) -> folding.Folded:
    """The folded forward: a weight that all examples share is the one that was packed."""

    def call(input: Tensor, folded: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        if folded is weight and in_dims[2] is None:
            return forward_packed(input, weight, packed, bias, *options)
        return forward(input, folded, bias, *options)

    return folding.forward(call, info, (*in_dims[:2], *in_dims[3:]), input, weight, bias, *options)


_FOLDS: tuple[tuple[OpOverload[..., Tensor], Callable[..., folding.Folded] | None], ...] = (
    (forward, partial(folding.forward, forward)),
    (input_grad, partial(folding.input_grad, input_grad)),
    (weight_grad, partial(folding.weight_grad, weight_grad)),
    (forward_packed, _fold_packed),
    (pack, None),
)
for _operator, _fold in _FOLDS:
    _name = _operator._schema.name
    if _fold is not None:
        torch.library.register_vmap(_name, _fold, lib=library)
    for _key in AUTOCAST.values():
        library.impl(_name, _autocast_kernel(_operator), _key)
