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
# Of forward: precision, algorithm, activation, residual, low, high.
_OPTIONS = ("ieee", "auto", "none", None, 0.0, 0.0)


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
    residual: Tensor | None = None,
    low: float = 0.0,
    high: float = 0.0,
) -> Tensor | None:
    """Checks the call of one example; returns the empty result of none, (0, ...), where the batch has none.

    in_dims: of the two operands, the bias and the residual.
    """

    def example(t: Tensor, dim: int | None) -> Tensor:
        return t.new_empty(()).expand([n for i, n in enumerate(t.shape) if i != dim])

    third = None if bias is None else example(bias, in_dims[2])
    added = None if residual is None else example(residual, in_dims[3])
    first, second = example(a, in_dims[0]), example(b, in_dims[1])
    size = result_size(operator, first, second, third, size, *geometry, precision, activation, added, low, high)
    if info.batch_size > 0:
        return None
    # Of nothing, but of the operands: gradients of them are zeros.
    nothing = a.flatten()[:0].sum() + b.flatten()[:0].sum()
    for other in (bias, residual):
        if other is not None:
            nothing = nothing + other.flatten()[:0].sum()
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
    given: tuple[Any, ...] = (*options, *_OPTIONS[len(options) :])
    precision, algorithm, activation, residual, low, high = given
    residual_dim = None if residual is None else in_dims[10]
    geometry = (stride, padding, dilation)
    dims = (*in_dims[:3], residual_dim)
    empty = _checked("forward", info, dims, input, weight, bias, (), (*geometry, groups), *options)
    if empty is not None:
        return empty, 0

    def folded(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, added: Tensor | None) -> Tensor:
        return call(input, weight, bias, *geometry, groups, precision, algorithm, activation, added, low, high)

    if weight_dim is None and bias_dim is not None:
        if residual is not None or activation not in ("none", "relu"):  # few ask for it: a weight for each
            dims, weights = (input_dim, 0, *in_dims[2:]), weight.expand(batch, *weight.shape)
            return forward(call, info, dims, input, weights, bias, *geometry, groups, *options)
        # The products are shared: only the addition has a batch.
        dims = (input_dim, None, None)
        y, dim = forward(call, info, dims, input, weight, None, *geometry, groups, precision, algorithm)
        y = y if dim is None else y.movedim(dim, 0)
        assert bias is not None
        y = y + bias.movedim(bias_dim, 0)[:, None, :, None, None]
        return y.relu() if activation == "relu" else y, 0
    if residual is not None:
        alone = residual_dim is None
        residual = residual.expand(batch, *residual.shape) if alone else residual.movedim(residual_dim, 0)
    if weight_dim is None:
        if input_dim is None and residual is None:
            return folded(input, weight, bias, groups, None), None
        input = input.expand(batch, *input.shape) if input_dim is None else input.movedim(input_dim, 0)
        added = None if residual is None else residual.flatten(0, 1)
        return folded(input.flatten(0, 1), weight, bias, groups, added).unflatten(0, (batch, -1)), 0

    weight = weight.movedim(weight_dim, 0)  # (B, K, C/g, R, S)
    if bias is not None:  # (B, K)
        bias = bias.expand(batch, -1) if bias_dim is None else bias.movedim(bias_dim, 0)
    if input_dim is None:
        weight = weight.unflatten(1, (groups, -1)).movedim(0, 1).flatten(0, 2)  # (g * B * K/g, C/g, R, S)
        if bias is not None:
            bias = bias.unflatten(1, (groups, -1)).movedim(0, 1).flatten()
        if residual is not None:  # (N, g * B * K/g, P, Q)
            residual = residual.unflatten(2, (groups, -1)).movedim(0, 2).flatten(1, 3)
        y = folded(input, weight, bias, groups, residual)
        return y.unflatten(1, (groups, batch, -1)).movedim(2, 0).flatten(2, 3), 0
    input = input.movedim(input_dim, 1).flatten(1, 2)  # (N, B * C, H, W)
    bias = None if bias is None else bias.flatten()
    residual = None if residual is None else residual.movedim(0, 1).flatten(1, 2)
    y = folded(input, weight.flatten(0, 1), bias, groups * batch, residual)
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
