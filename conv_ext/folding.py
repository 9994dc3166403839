"""vmap by folding: a batch of convolutions is one convolution over more images, more channels or more groups.

Which of them follows from the operands that carry the batch B:

- the one that has the images N alone: into N; images share the rest.
- the weight-sized one alone: into the channels that it does not share with the other operand, inside each group.
- both: into the groups, which share nothing.

`call` is what computes the folded problem: an operator, or an autograd Function's `apply`. What would be refused of
one example is refused first: a folded problem may be a right one where its examples are not.
"""

from __future__ import annotations

from .arguments import Geometry
from .passes import result_size

_OPTIONS = ("ieee", "auto", "none", None, 0.0, 0.0)  # of forward: precision, algorithm, activation, residual, low, high


def _checked(
    operator, info, in_dims, a, b, bias, size, geometry: Geometry, precision="ieee", _="auto", activation="none",
    residual=None, low=0.0, high=0.0,
):  # fmt: skip
    """Checks the call of one example; returns the empty result of none, (0, ...), where the batch has none."""
    operands = a, b, bias, residual

    def example(t, dim):
        return None if t is None else t.new_empty(()).expand([n for i, n in enumerate(t.shape) if i != dim])

    first, second, third, added = map(example, operands, (*in_dims, None, None))
    size = result_size(operator, first, second, third, size, *geometry, precision, activation, added, low, high)
    if info.batch_size > 0:
        return None
    # Of nothing, but of the operands: gradients of them are zeros.
    return sum(t.flatten()[:0].sum() for t in operands if t is not None).expand(0, *size)


def forward(call, info, in_dims, input, weight, bias, stride, padding, dilation, groups, *options):
    """Folded `forward`; returns its output and the output's batch dimension."""
    batch = info.batch_size
    precision, algorithm, activation, residual, low, high = (*options, *_OPTIONS[len(options) :])
    input_dim, weight_dim, bias_dim = in_dims[:3]
    residual_dim = None if residual is None else in_dims[10]
    geometry = (stride, padding, dilation)
    dims = (*in_dims[:3], residual_dim)
    empty = _checked("forward", info, dims, input, weight, bias, (), (*geometry, groups), *options)
    if empty is not None:
        return empty, 0

    def folded(input, weight, bias, groups, residual=residual, activation=activation):
        options = (precision, algorithm, activation, residual, low, high)
        return call(input, weight, bias, *geometry, groups, *options)

    if weight_dim is None and bias_dim is not None:
        if residual is not None or activation not in ("none", "relu"):
            return forward(  # few ask for it: a weight for each
                call, info, (input_dim, 0, *in_dims[2:]), input, weight.expand(batch, *weight.shape), bias,
                *geometry, groups, *options,
            )  # fmt: skip
        # The products are shared: only the addition has a batch.
        dims = (input_dim, None, None)
        y, dim = forward(call, info, dims, input, weight, None, *geometry, groups, precision, algorithm)
        y = y if dim is None else y.movedim(dim, 0)
        y = y + bias.movedim(bias_dim, 0)[:, None, :, None, None]
        return y.relu() if activation == "relu" else y, 0
    if residual is not None:
        alone = residual_dim is None
        residual = residual.expand(batch, *residual.shape) if alone else residual.movedim(residual_dim, 0)
    if weight_dim is None:
        if input_dim is None and residual is None:
            return folded(input, weight, bias, groups), None
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


def input_grad(call, info, in_dims, grad_output, weight, input_size, stride, padding, dilation, groups, *options):
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


def weight_grad(call, info, in_dims, grad_output, input, kernel_size, stride, padding, dilation, groups, *options):
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
