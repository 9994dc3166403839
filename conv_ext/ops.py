"""The three operators as Python sees them: fake kernels, vmap rules and autocast (their kernels are in conv_ext._C)."""

from __future__ import annotations

from functools import partial

import torch
from torch._prims_common import suggest_memory_format

from . import checks, folding
from . import library as _library  # noqa: F401  (the import defines the operators)

forward = torch.ops.conv_ext.forward.default
input_grad = torch.ops.conv_ext.input_grad.default
weight_grad = torch.ops.conv_ext.weight_grad.default

library = torch.library.Library("conv_ext", "IMPL")  # a registration lives as long as this object


def _result(a: torch.Tensor, b: torch.Tensor, size) -> torch.Tensor:
    """The uninitialised result: channels_last if either operand suggests it, as F.conv2d decides."""
    channels_last = torch.channels_last in (suggest_memory_format(a), suggest_memory_format(b))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=a.dtype, device=a.device, memory_format=memory_format)


@torch.library.register_fake("conv_ext::forward", lib=library)
def _(input, weight, bias, stride, padding, dilation, groups, precision="ieee", algorithm="auto", activation="none"):
    size = checks.check(
        "forward", input, weight, bias, None, stride, padding, dilation, groups, precision, activation
    )
    return _result(input, weight, size)


@torch.library.register_fake("conv_ext::input_grad", lib=library)
def _(grad_output, weight, input_size, stride, padding, dilation, groups, precision="ieee", algorithm="auto"):
    size = checks.check(
        "input_grad", grad_output, weight, None, input_size, stride, padding, dilation, groups, precision
    )
    return _result(grad_output, weight, size)


@torch.library.register_fake("conv_ext::weight_grad", lib=library)
def _(grad_output, input, kernel_size, stride, padding, dilation, groups, precision="ieee", algorithm="auto"):
    size = checks.check(
        "weight_grad", grad_output, input, None, kernel_size, stride, padding, dilation, groups, precision
    )
    return _result(grad_output, input, size)


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
