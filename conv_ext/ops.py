"""The three operators as Python sees them: vmap rules and autocast (their kernels are in conv_ext._C)."""

from __future__ import annotations

from functools import partial

import torch

from . import folding
from .passes import library  # the import of _C there defines the operators

forward = torch.ops.conv_ext.forward.default
input_grad = torch.ops.conv_ext.input_grad.default
weight_grad = torch.ops.conv_ext.weight_grad.default

AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # device -> dispatch key
_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(torch._C.DispatchKey.AutocastCUDA)


def autocast(*values):
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


def outside_autocast(operator):
    """The operator for use where the dtypes are settled: autocast has no say."""

    def call(*args):
        device = args[0].device.type
        if device in AUTOCAST and torch.is_autocast_enabled(device):
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                return operator(*args)
        return operator(*args)

    return call


def _autocast_kernel(operator):
    below = outside_autocast(operator)
    return lambda *args: below(*autocast(*args))


for _operator, _fold in (
    (forward, folding.forward),
    (input_grad, folding.input_grad),
    (weight_grad, folding.weight_grad),
):
    _name = _operator._schema.name
    torch.library.register_vmap(_name, partial(_fold, _operator), lib=library)
    for _key in AUTOCAST.values():
        library.impl(_name, _autocast_kernel(_operator), _key)
