"""The public functions: arguments in every form that torch takes are turned into one call of an operator.

A call takes one of three roads (start at `conv2d`): straight to the kernel where the tensors are plain and no gradient
is needed (PLAIN); the autograd Function at C level where one is (PLAIN_GRADIENT); else the operator, which is right
under every transform (GENERAL).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import _C, autograd, ops
from .arguments import (
    Activation,
    Geometry,
    Padding,
    check_operands,
    ints,
    named_activation,
    normalize,
    of_one_row,
    operators_activation,
)
from .settings import current_algorithm, current_precision
from .tracing import is_tracing, recorded
from .transposed import known, transposed_size

__all__ = ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"]

GENERAL, PLAIN_GRADIENT, PLAIN = _C.Road
OVERRIDDEN = None  # in place of a road: an operand's __torch_function__, or a mode's, answers the call

_road = _C.road
_is_compiling = torch.compiler.is_compiling
_answered: Callable[..., Tensor] = handle_torch_function

IntOrPair = int | Sequence[int]


def _enter(
    function: str, rank: int, input: Any, weight: Any, bias: Any, residual: Any = None
) -> tuple[_C.Road | None, bool]:
    """What each public function begins with: the road of its call, and whether there is a batch.

    Raises what no operand may be that a road could take (check_operands).
    """
    if _is_compiling():
        return GENERAL, check_operands(function, rank, input, weight, bias, residual)
    road = _road(input, weight, bias, residual)
    if road is GENERAL:
        if has_torch_function((input, weight, bias, residual)):
            return OVERRIDDEN, False
    elif input.dim() == rank == weight.dim():  # plain operands are known to be tensors: only a rank may be wrong
        return road, True
    return road, check_operands(function, rank, input, weight, bias, residual)


def _forward(
    road: _C.Road,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: Any,
    residual: Tensor | None,
) -> Tensor:
    """The convolution of 4-D operands by the road that `_C.road` has named."""
    name, low, high = operators_activation(activation)
    if name == "clamp" and stays_behind(low, high):
        return _forward(road, input, weight, bias, geometry, "none", residual).clamp(low, high)
    precision = current_precision(input.device.type) if input.dtype == torch.float32 else "ieee"
    arguments = (input, weight, bias, *geometry, precision, current_algorithm(), name, residual, low, high)
    if road is PLAIN:
        return _C.forward(*arguments)
    if road is PLAIN_GRADIENT:
        return autograd.plain_forward(*arguments)
    return _general("forward", *arguments)


def stays_behind(low: float, high: float) -> bool:
    """Whether a clamp is written behind the operator: one that is exported, and has but one bound.

    An AOTInductor package writes an operator's arguments as JSON, where torch reads no infinite number back.
    """
    if not _is_compiling() or not torch.compiler.is_exporting():
        return False
    return low <= high and (low == -math.inf or high == math.inf)  # without isinf, which Dynamo lacks


def _general(name: str, *arguments: Any) -> Tensor:
    """An operator through the dispatcher; in inference mode without the Autograd key, which checks the dtype."""
    if not _is_compiling() and torch.is_inference_mode_enabled():
        arguments = tuple(ops.autocast(*arguments))
        _C.check_dtype(name, *arguments)
    y: Tensor = getattr(ops, name)(*arguments)
    return y


def _epilogue(activation: Any, residual: Any) -> dict[str, Any]:
    """What an override is told of the epilogue; of a residual where there is one."""
    return {"activation": activation} if residual is None else {"activation": activation, "residual": residual}


def _transposed(
    road: _C.Road,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    """conv_transpose2d of 4-D operands, padding on four sides: `input_grad`, then the bias."""
    size = transposed_size(input, weight, bias, stride, padding, output_padding, groups, dilation)
    if known(size[0] == 0) or known(size[1] == 0):  # no convolution has such an input: cut it out of one that has more
        whole = _transposed(road, input, weight, bias, stride, (0,) * 4, output_padding, groups, dilation)
        return whole[:, :, : size[0], : size[1]]
    # An output padding of a stride or more (allowed where it is below the dilation) reaches past the kernel's last
    # position: the convolution whose gradient this is has more positions there, for which the input gets zeros.
    extra = output_padding[0] // stride[0], output_padding[1] // stride[1]
    if extra != (0, 0):
        input = F.pad(input, (0, extra[1], 0, extra[0]))

    precision = current_precision(input.device.type) if input.dtype == torch.float32 else "ieee"
    arguments = (input, weight, size, stride, padding, dilation, groups, precision, current_algorithm())
    if road is PLAIN:
        y = _C.input_grad(*arguments)
        return y if bias is None else y.add_(bias[:, None, None])
    if road is PLAIN_GRADIENT:
        y = autograd.plain_input_grad(*arguments)
        return y if bias is None else autograd.add_bias(y, bias)
    y = _general("input_grad", *arguments)
    return y if bias is None else y + bias[:, None, None]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: Padding | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    r"""2-D convolution, a drop-in for ``torch.nn.functional.conv2d`` with derivatives of any order.

    ::

        y[n, k, p, q] = b[k] + sum over c, r, s of  w[k, c, r, s] * x[n, c', h, w]
        h = p * stride_h + r * dilation_h - padding_h,   w = q * stride_w + s * dilation_w - padding_w

    with x zero outside its extent, and c' the c-th channel of k's group: what signal processing calls the
    cross-correlation (no kernel is rotated). P = floor((H + 2 padding_h - dilation_h (R - 1) - 1) / stride_h) + 1,
    and Q alike.

    Args:
        input: (N, C, H, W), or (C, H, W) for one image; N may be 0.
        weight: (K, C / groups, R, S).
        bias: (K,) or None.
        stride, dilation: an int, or a list or tuple of one or two, for height and width; at least 1.
        padding: the same, at least 0; or a string. As in torch: ``'valid'`` (none) and ``'same'`` (P = H, Q = W: an
            even effective kernel gets the odd zero at the bottom and at the right; the stride must be 1). Beyond
            torch: ``'full'`` (dilation (R - 1) on each side: every position at which the kernel touches the input,
            P = H + dilation_h (R - 1) with stride 1) and ``'same_strided'`` (TensorFlow's rule for "SAME":
            P = ceil(H / stride_h), by as few zeros as that takes, the odd one at the bottom and at the right; how
            many there are, and on which side, depends on H).
        groups: divides C and K; each group of K / groups outputs sees C / groups inputs.
        activation: ``'relu'``, ``'relu6'``, ``('clamp', low, high)``, ``'hardswish'`` or ``'silu'``: what
            ``torch.relu`` and its like (``F.hardtanh`` for clamp) give behind the convolution, without their pass
            over memory. The bits are theirs, but for a bound of -0, which counts as +0; those of silu, whose
            exponential is our own, within 4 units in the last place of float32. For real dtypes.
        residual: a tensor of the result's size and dtype, with any strides, that is added to the result before the
            activation, as an addition behind the convolution does it (in float16 and bfloat16 it rounds what is
            rounded already); it is only read.

    Returns:
        (N, K, P, Q), or (K, P, Q) for an unbatched input; channels_last in memory if the input or the weight is,
        else contiguous. A float16 or bfloat16 result is accumulated in float32 and rounded once. With C = 0 it is
        the bias everywhere.

    All operands have one device and one dtype: float32, float64, bfloat16, float16, complex64 or complex128. Padding
    counts as zeros that are read, so a NaN in the weight reaches every output. Under autocast all operands take its
    dtype, the residual as well.

    The derivative of relu, relu6 and clamp follows from the result, which is saved; where it lies at a bound, nothing
    passes. For silu and hardswish all operands are saved, and the convolution is computed once more on the way back.

    Raises:
        TypeError: an operand is no tensor, or an argument is no int (a bool and a float are none) or no str.
        ValueError: an int argument is above 2^63 - 1.
        NotImplementedError: the dtype is none of the six.
        RuntimeError: everything else that is wrong; the message states the rule, then the values.
    """
    road, batched = _enter("conv2d", 4, input, weight, bias, residual)
    if road is OVERRIDDEN:
        tensors, options = (input, weight, bias), (stride, padding, dilation, groups)
        return _answered(conv2d, (*tensors, residual), *tensors, *options, **_epilogue(activation, residual))
    if road is GENERAL and isinstance(padding, str) and is_tracing():
        pairs = ints(stride, 2, "conv2d", "stride"), padding, ints(dilation, 2, "conv2d", "dilation")
        return _recorded_conv2d(input, weight, bias, *pairs, groups, *operators_activation(activation), residual)
    geometry = normalize("conv2d", input, weight, stride, padding, dilation, groups)
    if batched:
        return _forward(road, input, weight, bias, geometry, activation, residual)
    residual = None if residual is None else residual.unsqueeze(0)
    return _forward(road, input.unsqueeze(0), weight, bias, geometry, activation, residual).squeeze(0)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: Padding | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    r"""1-D convolution, a drop-in for ``torch.nn.functional.conv1d``: `conv2d` of one row.

    ::

        y[n, k, q] = b[k] + sum over c, s of  w[k, c, s] * x[n, c', q * stride + s * dilation - padding]

    Args:
        input: (N, C, W), or (C, W) without a batch.
        weight: (K, C / groups, S).
        bias: (K,) or None.
        stride, dilation, padding: an int, or a list or tuple of one; padding also one of `conv2d`'s strings.
        groups: divides C and K.
        activation, residual: as in `conv2d`.

    Returns:
        (N, K, Q), or (K, Q) for an unbatched input.

    Dtypes and errors are those of `conv2d`; in compiled code sizes in an error have the height 1 beside them.
    """
    road, batched = _enter("conv1d", 3, input, weight, bias, residual)
    if road is OVERRIDDEN:
        tensors, options = (input, weight, bias), (stride, padding, dilation, groups)
        return _answered(conv1d, (*tensors, residual), *tensors, *options, **_epilogue(activation, residual))
    if road is GENERAL and isinstance(padding, str) and is_tracing():
        numbers = ints(stride, 1, "conv1d", "stride"), padding, ints(dilation, 1, "conv1d", "dilation")
        return _recorded_conv1d(input, weight, bias, *numbers, groups, *operators_activation(activation), residual)
    (s,), (left, right), (d,), groups = normalize("conv1d", input, weight, stride, padding, dilation, groups, 1)
    geometry = (1, s), (0, 0, left, right), (1, d), groups
    input = input.contiguous()  # a permuted sequence is no image in channels_last: torch does the same
    rows = input.unsqueeze(2) if batched else input[None, :, None], weight.unsqueeze(2), bias
    if residual is not None:
        residual = residual.unsqueeze(2) if batched else residual[None, :, None]
    y = _of_one_row(_forward, road, *rows, geometry, activation, residual)
    return y.squeeze(2) if batched else y[0, :, 0]


def _of_one_row(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A call for one row, whose errors speak of one dimension; in compiled code they have the height beside it."""
    if _is_compiling():
        return function(*arguments)
    try:
        return function(*arguments)
    except RuntimeError as error:
        raise of_one_row(error) from None


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Tensor:
    r"""2-D transposed convolution, a drop-in for ``torch.nn.functional.conv_transpose2d``.

    It is the input gradient of a convolution, used as a forward: `input` takes the place of the upstream gradient, so
    the letters of the dimensions are those of that convolution, and its derivatives are the same three operators. ::

        y[n, c, h, w] = b[c] + sum over k, p, q of  w[k, c', r, s] * x[n, k, p, q]
        where  h = p * stride_h + r * dilation_h - padding_h,   w = q * stride_w + s * dilation_w - padding_w

    H = (P - 1) stride_h - 2 padding_h + dilation_h (R - 1) + output_padding_h + 1, and W alike.

    Args:
        input: (N, K, P, Q), or (K, P, Q) for one image.
        weight: (K, C / groups, R, S).
        bias: (C,) or None. It is added to the rounded result, which in float16 and bfloat16 rounds a second time.
        stride, padding, dilation: an int, or a list or tuple of one or two.
        output_padding: the same: rows and columns that are added at the bottom and at the right; smaller than the
            stride or the dilation.
        groups: divides C and K.

    Returns:
        (N, C, H, W), or (C, H, W) for an unbatched input; channels_last in memory if the input or the weight is.

    Dtypes and errors are those of `conv2d`.
    """
    road, batched = _enter("conv_transpose2d", 4, input, weight, bias)
    if road is OVERRIDDEN:
        tensors = (input, weight, bias)
        return _answered(conv_transpose2d, tensors, *tensors, stride, padding, output_padding, groups, dilation)
    if isinstance(padding, str):
        raise TypeError("conv_transpose2d(): argument 'padding' must be tuple of ints, not str")
    steps, sides, gaps, groups = normalize("conv_transpose2d", input, weight, stride, padding, dilation, groups)
    extra = ints(output_padding, 2, "conv_transpose2d", "output_padding")
    if road is GENERAL and is_tracing():
        return _recorded_conv_transpose2d(input, weight, bias, steps, sides[::2], extra, groups, gaps)
    if road is GENERAL:
        input, weight, bias = ops.autocast(input, weight, bias)
    x = input if batched else input.unsqueeze(0)
    y = _transposed(road, x, weight, bias, steps, sides, extra, groups, gaps)
    return y if batched else y.squeeze(0)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Tensor:
    r"""1-D transposed convolution, a drop-in for ``torch.nn.functional.conv_transpose1d``: `conv_transpose2d`, a row.

    ::

        y[n, c, w] = b[c] + sum over k, q of  w[k, c', s] * x[n, k, q]   where  w = q * stride + s * dilation - padding

    W = (Q - 1) stride - 2 padding + dilation (S - 1) + output_padding + 1.

    Args:
        input: (N, K, Q), or (K, Q) without a batch.
        weight: (K, C / groups, S).
        bias: (C,) or None; it is added as in `conv_transpose2d`.
        stride, padding, dilation: an int, or a list or tuple of one.
        output_padding: the same: positions that are added at the end; fewer than the stride or the dilation.
        groups: divides C and K.

    Returns:
        (N, C, W), or (C, W) for an unbatched input.

    Dtypes and errors are those of `conv2d`; in compiled code sizes in an error have the height 1 beside them.
    """
    road, batched = _enter("conv_transpose1d", 3, input, weight, bias)
    if road is OVERRIDDEN:
        tensors = (input, weight, bias)
        return _answered(conv_transpose1d, tensors, *tensors, stride, padding, output_padding, groups, dilation)
    if isinstance(padding, str):
        raise TypeError("conv_transpose1d(): argument 'padding' must be tuple of ints, not str")
    (s,), (p, _), (d,), groups = normalize("conv_transpose1d", input, weight, stride, padding, dilation, groups, 1)
    (extra,) = ints(output_padding, 1, "conv_transpose1d", "output_padding")
    if road is GENERAL and is_tracing():
        return _recorded_conv_transpose1d(input, weight, bias, (s,), (p,), (extra,), groups, (d,))
    if road is GENERAL:
        input, weight, bias = ops.autocast(input, weight, bias)
    input = input.contiguous()  # as in conv1d
    rows = input.unsqueeze(2) if batched else input[None, :, None], weight.unsqueeze(2), bias
    y = _of_one_row(_transposed, road, *rows, (1, s), (0, 0, p, p), (0, extra), groups, (1, d))
    return y.squeeze(2) if batched else y[0, :, 0]


def _with_epilogue(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        *others, name, low, high, residual = arguments
        return function(*others, activation=named_activation(name, low, high), residual=residual)

    return call


_recorded_conv2d = recorded(
    "recorded_conv2d", _with_epilogue(conv2d),
    "int[2] stride, str padding, int[2] dilation, int groups, str activation, float low, float high, Tensor? residual",
)  # fmt: skip
_recorded_conv1d = recorded(
    "recorded_conv1d", _with_epilogue(conv1d),
    "int[1] stride, str padding, int[1] dilation, int groups, str activation, float low, float high, Tensor? residual",
)  # fmt: skip
_recorded_conv_transpose2d = recorded(
    "recorded_conv_transpose2d", conv_transpose2d,
    "int[2] stride, int[2] padding, int[2] output_padding, int groups, int[2] dilation",
)  # fmt: skip
_recorded_conv_transpose1d = recorded(
    "recorded_conv_transpose1d", conv_transpose1d,
    "int[1] stride, int[1] padding, int[1] output_padding, int groups, int[1] dilation",
)  # fmt: skip
