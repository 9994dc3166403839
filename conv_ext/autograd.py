"""The derivatives: one autograd Function per operator, each written with the other two operators.

Start with `Forward.backward`. Every operator is bilinear in its two tensors, without conjugation; the gradient of a
complex result is that of the conjugated other operand, as everywhere in PyTorch. So

    operator              upstream   gradients
    forward(x, w, b, r)   gy         input_grad(gy, w*), weight_grad(gy, x*), sum of gy over N, P, Q, gy
    input_grad(g, w)      u          forward(u, w*), weight_grad(g*, u)
    weight_grad(g, x)     v          forward(x*, v), input_grad(g*, v)

and a derivative of any order, in either mode, is made of the same three. Behind an activation the upstream gradient of
forward and its tangent are multiplied by its slope first. That of relu and clamp is a mask by the saved output: what
flows stops where the output lies at a bound, and passes at NaN. That of silu and hardswish is a function of the sum
before it, which is computed again: saving it would take a second result's memory.

There are two roads through a Function. The general one ends in the operator below the Autograd key and is right under
every transform. The plain one (`_C.road` has seen nothing but plain tensors) calls the kernel at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _C, folding, ops
from .passes import library

_PLAIN = _C.Road.PLAIN
_below_autograd = torch._C._AutoDispatchBelowAutograd

_threshold_backward = torch.ops.aten.threshold_backward.default
_SPLIT_SUM = 32768  # at::internal::GRAIN_SIZE


class _Differentiable:
    """The operators for use inside a derivative, where autocast has no say: the dtypes are settled."""

    forward = staticmethod(ops.outside_autocast(ops.forward))
    input_grad = staticmethod(ops.outside_autocast(ops.input_grad))
    weight_grad = staticmethod(ops.outside_autocast(ops.weight_grad))


def _kernels(grad: Tensor, first: Tensor | None, second: Tensor | None) -> Any:
    """What computes a backward pass: the kernels themselves where nothing will be recorded, else the operators.

    first, second: the saved tensors, None where nothing was saved.
    """
    if torch.compiler.is_compiling() or grad.is_complex():  # a complex operand is conjugated lazily: not plain
        return _Differentiable
    return _C if _C.road(grad, grad if first is None else first, second) is _PLAIN else _Differentiable


def _weight_grad(kernels: Any, grad: Tensor, input: Tensor, ctx: Any) -> Tensor:
    """The gradient of the weight, with the weight's strides where its memory is laid out alike.

    Where an extent is 1 (a single channel, a 1x1 kernel) its stride means nothing, and memory formats differ in it
    alone. Autograd keeps such a gradient as it is; DistributedDataParallel compares strides to the letter.
    """
    found: Tensor = kernels.weight_grad(grad, input, ctx.kernel_size, *ctx.arguments)
    if kernels is not _C or found.stride() == ctx.weight_stride:
        return found
    if all(n == 1 or a == b for n, a, b in zip(found.shape, found.stride(), ctx.weight_stride)):
        return found.as_strided(found.shape, ctx.weight_stride)
    return found


@contextmanager
def _tangent_of(ctx: Any) -> Iterator[list[Any]]:
    """The saved operands as constants of this level of forward-mode AD, for the computation of its tangent.

    PyTorch turns forward mode off while a Function's jvp runs, which loses the tangents of the outer levels
    (`torch.func.jvp` of `jvp`): it is turned on again, and the operands give up their own tangent instead.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        saved = ctx.saved_tensors
        yield [None if tensor is None else torch._VF._unpack_dual(tensor, level=0).primal for tensor in saved]


def _conj(tensor: Tensor) -> Tensor:
    return tensor.conj() if tensor.is_complex() else tensor


def _mask(values: Tensor, *output: Tensor) -> Tensor:
    """`values` as they pass the ReLU that gave `output`, both ways: at NaN and where it is above zero.

    A pass over memory of its own, once for all three gradients, as a ReLU behind the layer makes it. Of a backward
    without it, on one thread, it is 0.7 % for VGG's conv3_2 and AlexNet's conv2, 4 % for LeNet's c3, 19 % for a
    depthwise layer, and for a first layer, which has no input gradient, 28 % (LeNet's) and 44 % (VGG's).
    """
    return _threshold_backward(values, *output, 0) if output else values


def _silu_slope(u: Tensor) -> Tensor:
    s = u.sigmoid()
    return s * (1 + u * (1 - s))


def _hardswish_slope(u: Tensor) -> Tensor:
    return torch.where(u < -3, 0, torch.where(u <= 3, u / 3 + 0.5, 1))


_SLOPES = {"silu": _silu_slope, "hardswish": _hardswish_slope}  # of the activations that no result tells


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor, for_jvp: bool) -> None:
    """What `_behind` will need, beside the operands whose partners need a gradient.

    A frozen operand's partner is not needed, and is not kept alive.
    """
    input, weight, bias, *arguments, activation, residual, low, high = inputs
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    again = activation in _SLOPES
    more = () if activation == "none" else (bias, residual) if again else (output,)
    ctx.save_for_backward(input if needs_weight or again else None, weight if needs_input or again else None, *more)
    if for_jvp:
        ctx.save_for_forward(input, weight, *more)
    ctx.input_size, ctx.kernel_size, ctx.weight_stride = input.shape[2:], weight.shape[2:], weight.stride()
    ctx.arguments, ctx.activation = arguments, (activation, low, high)


def _behind(ctx: Any, values: Tensor, input: Tensor, weight: Tensor, *more: Any) -> Tensor:
    """`values`, an upstream gradient or a tangent, on the other side of the activation. The rest is what was saved."""
    activation, low, high = ctx.activation
    if activation in ("none", "relu"):
        return _mask(values, *more)
    if activation == "clamp":
        (output,) = more
        low, high = (torch.full((), bound, dtype=output.dtype, device=output.device) for bound in (low, high))
        return values.masked_fill((output <= low) | (output >= high), 0)
    bias, residual = more
    u = _Differentiable.forward(input, weight, bias, *ctx.arguments, "none", residual, 0.0, 0.0)
    wide = u.float() if u.dtype in (torch.bfloat16, torch.float16) else u
    return (values * _SLOPES[activation](wide)).to(u.dtype)


def bias_grad(grad: Tensor) -> Tensor:
    """The sum of `grad` over N, P, Q: the same bits for any number of threads, rounded once.

    grad: (N, K, P, Q) -> (K,)
    """
    channels = grad.shape[1]
    # From some size on torch splits a sum that has a single result by the number of threads; two results it does not.
    alone = channels == 1 and (torch.compiler.is_compiling() or grad.numel() >= _SPLIT_SUM)
    if alone:
        grad = grad.expand(-1, 2, -1, -1)
    if grad.dtype in (torch.bfloat16, torch.float16):  # torch would round the partial sums of each image
        total = grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
    else:
        total = grad.sum((0, 2, 3))
    return total[:1] if alone else total


class Forward(torch.autograd.Function):
    """y = act(conv(x, w) + b + r), `torch.ops.conv_ext.forward` with derivatives of any order."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        precision: str,
        algorithm: str,
        activation: str = "none",
        residual: Tensor | None = None,
        low: float = 0.0,
        high: float = 0.0,
    ) -> Tensor:
        options = precision, algorithm, activation, residual, low, high
        with _below_autograd():
            return ops.forward(input, weight, bias, stride, padding, dilation, groups, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output, for_jvp=True)
        ctx.output_size = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, *more = ctx.saved_tensors
        grad = _behind(ctx, grad, input, weight, *more)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        kernels = _kernels(grad, weight, input)
        return (
            kernels.input_grad(grad, _conj(weight), ctx.input_size, *ctx.arguments) if needs_input else None,
            _weight_grad(kernels, grad, _conj(input), ctx) if needs_weight else None,
            bias_grad(grad) if needs_bias else None,
            *(None,) * 7,
            grad if ctx.needs_input_grad[10] else None,
            None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, *rest: Any
    ) -> Tensor | None:
        tangent, d_residual = None, rest[7]
        with _tangent_of(ctx) as (input, weight, *more):
            if d_input is not None:
                tangent, d_bias = _Differentiable.forward(d_input, weight, d_bias, *ctx.arguments), None
            if d_weight is not None:
                tangent = _add(tangent, _Differentiable.forward(input, d_weight, d_bias, *ctx.arguments))
            elif d_bias is not None:
                tangent = _add(tangent, d_bias[None, :, None, None].expand(ctx.output_size))
            if d_residual is not None:
                tangent = _add(tangent, d_residual)
            assert tangent is not None  # or nobody would have asked for one
            return _behind(ctx, tangent, input, weight, *more)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int | None]:
        return folding.forward(Forward.apply, info, in_dims, *args)


class InputGrad(torch.autograd.Function):
    """x = the full convolution of the padded g with the rotated w, `torch.ops.conv_ext.input_grad`."""

    @staticmethod
    def forward(
        grad_output: Tensor,
        weight: Tensor,
        input_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        precision: str,
        algorithm: str,
    ) -> Tensor:
        with _below_autograd():
            return ops.input_grad(
                grad_output, weight, input_size, stride, padding, dilation, groups, precision, algorithm
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight = inputs[:2]
        needs_grad_output, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(grad_output if needs_weight else None, weight if needs_grad_output else None)
        ctx.save_for_forward(grad_output, weight)
        ctx.input_size, ctx.kernel_size, ctx.weight_stride = inputs[2], weight.shape[2:], weight.stride()
        ctx.arguments = inputs[3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        needs_grad_output, needs_weight = ctx.needs_input_grad[:2]
        kernels = _kernels(grad, weight, grad_output)
        return (
            kernels.forward(grad, _conj(weight), None, *ctx.arguments, "none") if needs_grad_output else None,
            _weight_grad(kernels, _conj(grad_output), grad, ctx) if needs_weight else None,
            *(None,) * 7,
        )

    @staticmethod
    def jvp(ctx: Any, d_grad_output: Tensor | None, d_weight: Tensor | None, *_: Any) -> Tensor | None:
        tangent = None
        with _tangent_of(ctx) as (grad_output, weight):
            if d_grad_output is not None:
                tangent = _Differentiable.input_grad(d_grad_output, weight, ctx.input_size, *ctx.arguments)
            if d_weight is not None:
                tangent = _add(
                    tangent, _Differentiable.input_grad(grad_output, d_weight, ctx.input_size, *ctx.arguments)
                )
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int | None]:
        return folding.input_grad(InputGrad.apply, info, in_dims, *args)


class WeightGrad(torch.autograd.Function):
    """w = the convolution of x with g, `torch.ops.conv_ext.weight_grad`."""

    @staticmethod
    def forward(
        grad_output: Tensor,
        input: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        precision: str,
        algorithm: str,
    ) -> Tensor:
        with _below_autograd():
            return ops.weight_grad(
                grad_output, input, kernel_size, stride, padding, dilation, groups, precision, algorithm
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, input = inputs[:2]
        needs_grad_output, needs_input = ctx.needs_input_grad[:2]
        ctx.save_for_backward(grad_output if needs_input else None, input if needs_grad_output else None)
        ctx.save_for_forward(grad_output, input)
        ctx.input_size, ctx.kernel_size = input.shape[2:], inputs[2]
        ctx.arguments = inputs[3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, input = ctx.saved_tensors
        needs_grad_output, needs_input = ctx.needs_input_grad[:2]
        kernels = _kernels(grad, input, grad_output)
        return (
            kernels.forward(_conj(input), grad, None, *ctx.arguments, "none") if needs_grad_output else None,
            kernels.input_grad(_conj(grad_output), grad, ctx.input_size, *ctx.arguments) if needs_input else None,
            *(None,) * 7,
        )

    @staticmethod
    def jvp(ctx: Any, d_grad_output: Tensor | None, d_input: Tensor | None, *_: Any) -> Tensor | None:
        tangent = None
        with _tangent_of(ctx) as (grad_output, input):
            if d_grad_output is not None:
                tangent = _Differentiable.weight_grad(d_grad_output, input, ctx.kernel_size, *ctx.arguments)
            if d_input is not None:
                tangent = _add(
                    tangent, _Differentiable.weight_grad(grad_output, d_input, ctx.kernel_size, *ctx.arguments)
                )
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int | None]:
        return folding.weight_grad(WeightGrad.apply, info, in_dims, *args)


class AddBias(torch.autograd.Function):
    """y + b for every channel; the plain road's, for the sake of `bias_grad`. y: (N, K, P, Q), b: (K,)"""

    @staticmethod
    def forward(y: Tensor, bias: Tensor) -> Tensor:
        return y + bias[:, None, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_y, needs_bias = ctx.needs_input_grad
        return grad if needs_y else None, bias_grad(grad) if needs_bias else None


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _single_level(function: Any, **methods: Any) -> Callable[..., Tensor]:
    """`apply` of the same Function for the one level of autograd that the call is at; `methods` replace its own.

    Function.apply costs four times as much: it binds a signature (a function in C has none) and sees to all levels of
    functorch. It is torch.autograd.Function that asks for both; this is the base of what functorch makes for a level.
    A backward node shows as ConvExtForwardBackward and the like.
    """
    names = ("forward", "setup_context", "backward", "jvp", "_compiled_autograd_key")
    found = {name: staticmethod(methods.get(name, getattr(function, name))) for name in names}
    made: Any = type(f"ConvExt{function.__name__}", (_SingleLevelFunction,), found)
    apply: Callable[..., Tensor] = made.apply
    return apply


def _plain_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Forward.setup_context, without what only its jvp reads: no operand of a plain call has a tangent."""
    _save(ctx, inputs, output, for_jvp=False)


# The plain road: the forward is the kernel itself.
plain_forward = _single_level(Forward, forward=_C.forward, setup_context=_plain_setup_context)
plain_input_grad = _single_level(InputGrad, forward=_C.input_grad)
add_bias = _single_level(AddBias)


def _at_level(function: Any, grad: bool, forward_grad: bool) -> Callable[..., Tensor]:
    """The Function's `apply` for one functorch level of several.

    Autograd turns both its modes off while a Function's forward runs. Below one functorch level that would silence
    the others, whose turn it is in there: give them the modes that the call was made with.
    """

    def forward(*args: Any) -> Tensor:
        with torch.set_grad_enabled(grad), forward_ad._set_fwd_grad_enabled(forward_grad):
            y: Tensor = function.forward(*args)
            return y

    return _single_level(function, forward=forward)


def _autograd_kernel(function: Any, operator: OpOverload[..., Tensor]) -> Callable[..., Tensor]:
    """The operator's Autograd key: the Function, for the one level of autograd that the dispatcher is at."""
    plain_apply = _single_level(function)
    level_apply = {modes: _at_level(function, *modes) for modes in product((True, False), repeat=2)}
    arguments = operator._schema.arguments
    options = tuple(argument.default_value for argument in arguments if argument.has_default_value())

    def kernel(*args: Any) -> Tensor:
        _C.check_dtype(operator._schema.name.partition("::")[2], *args)
        if torch._C._are_functorch_transforms_active():
            apply = level_apply[torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()]
            permission: AbstractContextManager[Any] = enable_single_level_autograd_function()
        elif forward_ad._current_level >= 0 or torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            apply, permission = plain_apply, nullcontext()
        else:  # nothing to record
            with _below_autograd():
                y: Tensor = operator(*args)
                return y
        dropped = len(arguments) - len(args)  # the dispatcher drops what equals its default, from the end
        with permission:
            return apply(*args, *options[len(options) - dropped :])

    return kernel


for _function, _operator in ((Forward, ops.forward), (InputGrad, ops.input_grad), (WeightGrad, ops.weight_grad)):
    library.impl(_operator._schema.name, _autograd_kernel(_function, _operator), "Autograd")


def _packed_forward(input: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """forward_packed's Autograd key: what is packed serves inference; where a derivative may follow, it is forward."""
    recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight, bias, *options)
    if recorded or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return ops.forward(input, weight, bias, *options)
    with _below_autograd():
        return ops.forward_packed(input, weight, packed, bias, *options)


library.impl("forward_packed", _packed_forward, "Autograd")
library.impl("pack", torch.library.fallthrough_kernel, "Autograd")  # bytes have no derivative
