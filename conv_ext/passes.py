"""The three passes as operators, side by side: their tensors, what they count as, and their fake kernels.

Beside them stand `pack` and `forward_packed`: forward with its weight packed once, for many calls.

Their rules stand in csrc/torch/ops.cpp, once for calls that run and for those that are traced with symbolic sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from . import _C

library = torch.library.Library("conv_ext", "IMPL")  # a registration lives as long as this object


class Pass(NamedTuple):
    """An operator: its two tensors in the order of its schema, and its result, by what they are in the convolution."""

    name: str
    first: str
    second: str
    result: str

    def flops(self, first: Sequence[int], second: Sequence[int], result: Sequence[int]) -> int:
        """2 for each product, N K P Q (C / groups) R S; first, second, result: sizes.

        Of a grouped weight gradient that is what is computed; torch's own formula counts it as that of a layer
        without groups, `groups` times as many.
        """
        sizes = {self.first: first, self.second: second, self.result: result}
        return 2 * math.prod(sizes["output"]) * math.prod(sizes["weight"][1:])


FORWARD = Pass("forward", "input", "weight", "output")
INPUT_GRAD = Pass("input_grad", "output", "weight", "input")
WEIGHT_GRAD = Pass("weight_grad", "output", "input", "weight")
PASSES = (FORWARD, INPUT_GRAD, WEIGHT_GRAD)

# result_size(pass's name, first, second, bias, size, stride, padding, dilation, groups, precision, activation,
# residual, low, high): checks one call, whose sizes may be symbolic, and gives the size of its result; raises what the
# operator raises.
result_size = _C.result_size


def _result(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """The uninitialised result: channels_last if either operand suggests it, as F.conv2d decides."""
    channels_last = torch.channels_last in (suggest_memory_format(a), suggest_memory_format(b))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=a.dtype, device=a.device, memory_format=memory_format)


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    precision: str = "ieee",
    algorithm: str = "auto",
    activation: str = "none",
    residual: Tensor | None = None,
    low: float = 0.0,
    high: float = 0.0,
) -> Tensor:
    options = stride, padding, dilation, groups, precision, activation, residual, low, high
    return _result(input, weight, result_size("forward", input, weight, bias, (), *options))


def _fake_forward_packed(
    input: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, precision: str = "ieee", algorithm: str = "auto", activation: str = "none",
    residual: Tensor | None = None, low: float = 0.0, high: float = 0.0,
) -> Tensor:  # fmt: skip
    if packed.device != input.device:
        raise RuntimeError(f"Expected input and packed on the same device, but got {input.device} and {packed.device}")
    options = stride, padding, dilation, groups, precision, activation, residual, low, high
    return _result(input, weight, result_size("forward", input, weight, bias, (), *options))


def _fake_pack(
    weight: Tensor,
    input: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Tensor:
    result_size("forward", input, weight, None, (), stride, padding, dilation, groups, precision)
    bytes_ = torch.library.get_ctx().new_dynamic_size()  # the plan's alone to know; on the meta device torch refuses it
    return weight.new_empty(bytes_, dtype=torch.uint8)


def _pack_on_cuda(
    weight: Tensor,
    input: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Tensor:
    """Nothing: what a kernel of CUDA packs, it packs in each call."""
    result_size("forward", input, weight, None, (), stride, padding, dilation, groups, precision)
    return weight.new_empty(0, dtype=torch.uint8)


def _fake_gradient(
    name: str,
    first: Tensor,
    second: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Tensor:
    options = stride, padding, dilation, groups, precision
    return _result(first, second, result_size(name, first, second, None, size, *options))


for _name, _fake in (
    ("forward", _fake_forward),
    ("forward_packed", _fake_forward_packed),
    ("pack", _fake_pack),
    ("input_grad", partial(_fake_gradient, "input_grad")),
    ("weight_grad", partial(_fake_gradient, "weight_grad")),
):
    torch.library.register_fake(f"conv_ext::{_name}", _fake, lib=library)
library.impl("pack", _pack_on_cuda, "CUDA")
