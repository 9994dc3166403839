"""The rules that conv_transpose2d has beyond its operator's, over sizes that may be symbolic.

They stand in Python because Dynamo traces them: the size that they give is an argument of the operator `input_grad`,
whose validator (csrc/torch/ops.cpp) has all other rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import INT64_MAX

__all__ = ["known", "transposed_size"]


def _require(condition: Any, message: Callable[[], str]) -> None:
    """RuntimeError unless `condition`; a symbolic condition becomes a guard, or an assertion of the graph."""
    if torch.compiler.is_dynamo_compiling():  # it traces no message that is made of sizes
        if not condition:
            raise RuntimeError(message())
    elif condition is not True:  # torch._check costs 0.4 us when all is well
        torch._check(condition, message)


def known(condition: Any) -> bool:
    """Whether a condition that may be symbolic is true; False where only the run can tell."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # sympy: not at import

    return guard_or_false(condition)


def _fits(*values: Any) -> bool:
    """Whether no value is above 2^63 - 1; symbolic values are bounded already."""
    return all(not isinstance(v, int) or v <= INT64_MAX for v in values)


def _text(values: Sequence[int]) -> str:
    return "(" + ", ".join(str(v) for v in values) + ")"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_alike(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """One device and one dtype."""
    others = [("weight", weight)] + ([("bias", bias)] if bias is not None else [])
    for name, tensor in others:
        _require(
            input.device == tensor.device,
            lambda: (
                "Expected all tensors to be on the same device, but got "
                f"input on {input.device} and {name} on {tensor.device}"
            ),
        )
    for name, tensor in others:
        _require(
            input.dtype == tensor.dtype,
            lambda: f"Input type ({_dtype(input.dtype)}) and {name} type ({_dtype(tensor.dtype)}) should be the same",
        )


def _check_arguments(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> None:
    """The least values of the ints that say which convolution it is."""
    _require(groups >= 1, lambda: f"non-positive groups is not supported: groups must be at least 1, got {groups}")
    for s in stride:
        _require(s >= 1, lambda: f"non-positive stride is not supported: stride must be positive, got {_text(stride)}")
    for p in padding:
        _require(
            p >= 0,
            lambda: (
                "negative padding is not supported: (top, bottom, left, right) must not be negative, "
                f"got {_text(padding)}"
            ),
        )
    for d in dilation:
        _require(
            d >= 1,
            lambda: (
                f"non-positive dilation is not supported: dilation should be greater than zero, got {_text(dilation)}"
            ),
        )


def transposed_size(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> list[Any]:
    """Check what is conv_transpose2d's own; returns its (H, W). All other rules are the operator's.

    input: (N, K, P, Q). weight: (K, C / groups, R, S). bias: (C,) or None. padding: (top, bottom, left, right).

    Raises:
        RuntimeError: a rule is broken.
    """
    for tensor in (weight, bias):
        if tensor is not None and (tensor.dtype != input.dtype or tensor.device != input.device):
            _check_alike(input, weight, bias)  # raises
    _check_arguments(stride, padding, dilation, groups)
    for o in output_padding:
        _require(
            o >= 0, lambda: f"negative output_padding is not supported: it must not be negative, got {output_padding}"
        )
    for o, s, d in zip(output_padding, stride, dilation):
        _require(
            o < s or o < d,
            lambda: (
                "output padding must be smaller than either stride or dilation, but got output_padding "
                f"{output_padding}, stride {stride}, dilation {dilation}"
            ),
        )
    size, weight_size = list(input.shape), list(weight.shape)
    _require(
        size[1] == weight_size[0],
        lambda: (
            f"Given transposed=1, weight of size {weight_size}, expected input{size} to have {weight_size[0]} "
            f"channels, but got {size[1]} channels instead"
        ),
    )
    if bias is not None:
        channels = weight_size[1] * groups
        bias_size = list(bias.shape)
        _require(
            len(bias_size) == 1 and bias_size[0] == channels,
            lambda: (
                f"Given transposed=1, weight of size {weight_size}, expected bias to be 1-dimensional with "
                f"{channels} elements, but got bias of size {bias_size} instead"
            ),
        )
    if known(size[2] == 0) or known(size[3] == 0):
        _require(
            known(size[0] == 0),
            lambda: f"Only zero batch or zero channel inputs are supported, but got input shape: {size}",
        )
    kernel, positions = weight_size[2:], size[2:]
    for extent in kernel:
        _require(extent >= 1, lambda: f"kernel size must be positive, got {_text(kernel)}")
    out = [
        (p - 1) * s - before - after + d * (r - 1) + o + 1
        for p, s, before, after, d, r, o in zip(
            positions, stride, padding[::2], padding[1::2], dilation, kernel, output_padding
        )
    ]
    _require(
        _fits(*out),
        lambda: (
            f"output size exceeds 2^63 - 1: input of size {size}, stride {_text(stride)}, "
            f"dilation {_text(dilation)}, output_padding {_text(output_padding)}"
        ),
    )
    for extent in out:
        _require(
            extent >= 0,
            lambda: (
                f"Given input size per channel: ({positions[0]} x {positions[1]}). Calculated output size per "
                f"channel: ({out[0]} x {out[1]}). Output size is too small"
            ),
        )
    return out
