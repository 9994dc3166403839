"""vmap by folding: a batch of convolutions is one convolution over more images, more channels or more groups.

Which of them follows from the operands that carry the batch B:

- the one that has the images N alone: into N; images share the rest.
- the weight-sized one alone: into the channels that it does not share with the other operand, inside each group.
- both: into the groups, which share nothing.

`call` is what computes the folded problem: an operator, or an autograd Function's `apply`. What would be refused of
one example is refused first: a folded problem may be a right one where its examples are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .passes import result_size

Folded = tuple[Tensor, int | None]  # the result, and where the batch is in it


def _checked(
    operator: str,
    info: Any,
    in_dims: Any,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int], int],
    precision: str = "ieee",
    _: str = "auto",
    activation: str = "none",
) -> Tensor | None:
    """Checks the call of one example; returns the empty result of none, (0, ...), where the batch has none."""
    operands = [(t, dim) for t, dim in zip((a, b, bias), in_dims) if t is not None]
    shapes = ([n for i, n in enumerate(t.shape) if i != dim] for t, dim in operands)
    examples = [t.new_empty(()).expand(shape) for (t, _), shape in zip(operands, shapes)]
    first, second, *rest = examples
    third = rest[0] if rest else None
    size = result_size(operator, first, second, third, size, *geometry, precision, activation)
    if info.batch_size > 0:
        return None
    # Of nothing, but of the operands: gradients of them are zeros.
    nothing = a.flatten()[:0].sum() + b.flatten()[:0].sum()
    if bias is not None:
        nothing = nothing + bias.flatten()[:0].sum()
    return nothing.expand(0, *size)


def forward(
    call: Callable[..., Tensor],
    info: Any,
    in_dims: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *options: Any,
) -> Folded:
    """Folded `forward`; returns its output and the output's batch dimension."""
    batch = info.batch_size
    input_dim, weight_dim, bias_dim = in_dims[:3]
    geometry = (stride, padding, dilation)
    empty = _checked("forward", info, in_dims[:3], input, weight, bias, (), (*geometry, groups), *options)
    if empty is not None:
        return empty, 0

    if weight_dim is None and bias_dim is not None:  # the products are shared: only the addition has a batch
        dims = (input_dim, None, None)
        relu = options[-1:] == ("relu",)  # behind the addition
        options = (*options[:-1], "none") if relu else options
        y, dim = forward(call, info, dims, input, weight, None, *geometry, groups, *options)
        y = y if dim is None else y.movedim(dim, 0)
        assert bias is not None
        y = y + bias.movedim(bias_dim, 0)[:, None, :, None, None]
        return y.relu() if relu else y, 0
    if weight_dim is None:
        if input_dim is None:
            return call(input, weight, bias, *geometry, groups, *options), None
        y = call(input.movedim(input_dim, 0).flatten(0, 1), weight, bias, *geometry, groups, *options)
        return y.unflatten(0, (batch, -1)), 0

    weight = weight.movedim(weight_dim, 0)  # (B, K, C/g, R, S)
    if bias is not None:  # (B, K)
        bias = bias.expand(batch, -1) if bias_dim is None else bias.movedim(bias_dim, 0)
    if input_dim is None:
        weight = weight.unflatten(1, (groups, -1)).movedim(0, 1).flatten(0, 2)  # (g * B * K/g, C/g, R, S)
        if bias is not None:
            bias = bias.unflatten(1, (groups, -1)).movedim(0, 1).flatten()
        y = call(input, weight, bias, *geometry, groups, *options)
        return y.unflatten(1, (groups, batch, -1)).movedim(2, 0).flatten(2, 3), 0
    input = input.movedim(input_dim, 1).flatten(1, 2)  # (N, B * C, H, W)
    bias = None if bias is None else bias.flatten()
    y = call(input, weight.flatten(0, 1), bias, *geometry, groups * batch, *options)
    return y.unflatten(1, (batch, -1)), 1


def input_grad(
    call: Callable[..., Tensor],
    info: Any,
    in_dims: Any,
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *options: Any,
) -> Folded:
    """Folded `input_grad`; returns its result and the result's batch dimension."""
    batch = info.batch_size
    grad_dim, weight_dim = in_dims[:2]
    geometry = (input_size, stride, padding, dilation)
    empty = _checked(
        "input_grad", info, in_dims[:2], grad_output, weight, None, input_size, (*geometry[1:], groups), *options
    )
    if empty is not None:
        return empty, 0

    if weight_dim is None:
        x = call(grad_output.movedim(grad_dim, 0).flatten(0, 1), weight, *geometry, groups, *options)
        return x.unflatten(0, (batch, -1)), 0
    if grad_dim is None:
        weight = weight.movedim(weight_dim, 1).flatten(1, 2)  # (K, B * C/g, R, S)
        x = call(grad_output, weight, *geometry, groups, *options)
        return x.unflatten(1, (groups, batch, -1)).movedim(2, 0).flatten(2, 3), 0
    grad_output = grad_output.movedim(grad_dim, 1).flatten(1, 2)  # (N, B * K, P, Q)
    weight = weight.movedim(weight_dim, 0).flatten(0, 1)  # (B * K, C/g, R, S)
    x = call(grad_output, weight, *geometry, groups * batch, *options)
    return x.unflatten(1, (batch, -1)), 1


def weight_grad(
    call: Callable[..., Tensor],
    info: Any,
    in_dims: Any,
    grad_output: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *options: Any,
) -> Folded:
    """Folded `weight_grad`; returns its result and the result's batch dimension."""
    batch = info.batch_size
    grad_dim, input_dim = in_dims[:2]
    geometry = (kernel_size, stride, padding, dilation)
    empty = _checked(
        "weight_grad", info, in_dims[:2], grad_output, input, None, kernel_size, (*geometry[1:], groups), *options
    )
    if empty is not None:
        return empty, 0

    if input_dim is None:
        grad_output = grad_output.movedim(grad_dim, 1).unflatten(2, (groups, -1))  # (N, B, g, K/g, P, Q)
        w = call(grad_output.movedim(1, 2).flatten(1, 3), input, *geometry, groups, *options)
        return w.unflatten(0, (groups, batch, -1)).movedim(1, 0).flatten(1, 2), 0
    if grad_dim is None:
        input = input.movedim(input_dim, 1).unflatten(2, (groups, -1))  # (N, B, g, C/g, H, W)
        w = call(grad_output, input.movedim(1, 2).flatten(1, 3), *geometry, groups, *options)
        return w.unflatten(1, (batch, -1)), 1
    grad_output = grad_output.movedim(grad_dim, 1).flatten(1, 2)  # (N, B * K, P, Q)
    input = input.movedim(input_dim, 1).flatten(1, 2)  # (N, B * C, H, W)
    w = call(grad_output, input, *geometry, groups * batch, *options)
    return w.unflatten(0, (batch, -1)), 0
