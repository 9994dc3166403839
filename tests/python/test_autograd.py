"""The derivatives by finite differences and against torch's own: every order and mode, through every entrance."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import conv_ext
from conv_ext import autograd
from devices import randn

pytestmark = pytest.mark.usefixtures("each_device")

# Every call asymmetric: H and W, both strides, both paddings, both dilations differ.
CONV2D = {
    "strided": ((2, 4, 5, 4), (4, 2, 3, 2), dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)),
    "same": ((1, 2, 3, 4), (3, 2, 2, 3), dict(padding="same", dilation=(1, 2))),
    "depthwise": ((2, 3, 4, 5), (6, 1, 2, 3), dict(stride=(1, 2), padding=(0, 1), groups=3)),
    "unbatched": ((3, 4, 5), (2, 3, 3, 2), dict(stride=(1, 3), padding=(2, 1))),
}
TRANSPOSED = {
    "strided": ((2, 4, 3, 2), (4, 2, 3, 2), dict(stride=(2, 3), padding=(1, 0), output_padding=(0, 1), groups=2)),
    "dilated": ((1, 2, 2, 3), (2, 3, 2, 3), dict(padding=(0, 1), dilation=(3, 1), output_padding=(2, 0))),
}
CALLS = (
    [pytest.param("conv2d", *call, id=f"conv2d-{name}") for name, call in CONV2D.items()]
    + [pytest.param("conv_transpose2d", *call, id=f"conv_transpose2d-{name}") for name, call in TRANSPOSED.items()]
    + [pytest.param("conv1d", (2, 4, 7), (6, 2, 3), dict(stride=2, padding=1, dilation=2, groups=2), id="conv1d")]
    + [
        pytest.param(
            "conv_transpose1d",
            (2, 4, 3),
            (4, 2, 3),
            dict(stride=2, padding=1, output_padding=1, groups=2),
            id="conv_transpose1d",
        )
    ]
)
DTYPES = [torch.float64, torch.complex128]


def operands(function, x_shape, w_shape, options, dtype=torch.float64):
    groups = options.get("groups", 1)
    k = w_shape[1] * groups if function.startswith("conv_transpose") else w_shape[0]
    return [randn(shape, dtype=dtype, requires_grad=True) for shape in (x_shape, w_shape, (k,))]


def bound(function, options, module=conv_ext):
    return lambda x, w, b=None: getattr(module, function)(x, w, b, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function, x_shape, w_shape, options", CALLS)
def test_first_derivatives(function, x_shape, w_shape, options, dtype):
    leaves = operands(function, x_shape, w_shape, options, dtype)
    gradcheck(bound(function, options), leaves, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function, x_shape, w_shape, options", CALLS)
def test_second_derivatives(function, x_shape, w_shape, options, dtype):
    leaves = operands(function, x_shape, w_shape, options, dtype)
    gradgradcheck(bound(function, options), leaves, check_fwd_over_rev=True, fast_mode=True)


OPERATORS = {
    "forward": ((2, 4, 5, 4), (6, 2, 3, 2), ()),
    "input_grad": ((2, 6, 2, 4), (6, 2, 3, 2), ((5, 4),)),
    "weight_grad": ((2, 6, 2, 4), (2, 4, 5, 4), ((3, 2),)),
}
GEOMETRY = ((2, 1), (1, 0, 0, 2), (1, 2), 2)  # stride, padding on four different sides, dilation, groups


def operator_call(name):
    shapes_and_size = OPERATORS[name]
    operator, size = getattr(torch.ops.conv_ext, name), shapes_and_size[2]
    return lambda a, b, *bias: operator(a, b, *(bias if name == "forward" else ()), *size, *GEOMETRY)


def operator_leaves(name, dtype):
    shapes = [*OPERATORS[name][:2], (6,)][: 3 if name == "forward" else 2]
    return [randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_called_directly(name, dtype):
    leaves, call = operator_leaves(name, dtype), operator_call(name)
    gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    gradgradcheck(call, leaves, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded"])
def test_derivatives_of_odd_layouts(layout):
    def laid_out(t):
        if layout == "channels_last":
            return t.contiguous(memory_format=torch.channels_last)
        if layout == "transposed":
            return t.transpose(2, 3).contiguous().transpose(2, 3)
        return t[:1, :, :1].expand_as(t)

    x, w, b = operands("conv2d", *CONV2D["strided"])
    call = bound("conv2d", CONV2D["strided"][2])
    function = lambda x, w, b: call(laid_out(x), laid_out(w), b)  # noqa: E731
    gradcheck(function, (x, w, b), check_forward_ad=True)
    gradgradcheck(function, (x, w, b), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function, x_shape, w_shape, options", CALLS)
def test_third_derivatives_are_torchs(function, x_shape, w_shape, options, dtype):
    leaves = operands(function, x_shape, w_shape, options, dtype)
    # torch has no third derivative of a transposed convolution with an output padding.
    options = {name: value for name, value in options.items() if name != "output_padding"}
    results = []
    for module in (conv_ext, F):
        y = bound(function, options, module)(*leaves)
        for _ in range(3):
            grads = torch.autograd.grad((y.abs() ** 2).mean(), leaves, create_graph=True)
            y = torch.cat([grad.flatten() for grad in grads])
        results.append(y)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_forward_mode_with_a_tangent_for_some_operands(needed):
    primals = [t.detach() for t in operands("conv2d", *CONV2D["strided"])]
    tangents = [torch.randn_like(t) for t in primals]
    results = []
    for module in (conv_ext, F):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(p, t) if i in needed else p for i, (p, t) in enumerate(zip(primals, tangents))
            ]
            y = bound("conv2d", CONV2D["strided"][2], module)(*duals)
            results.append(forward_ad.unpack_dual(y))
    torch.testing.assert_close(results[0].primal, results[1].primal)
    torch.testing.assert_close(results[0].tangent, results[1].tangent)


def test_reverse_over_forward_with_ordinary_autograd():
    primals = operands("conv2d", *CONV2D["strided"])
    tangents = [torch.randn_like(t) for t in primals]
    results = []
    for module in (conv_ext, F):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents)]
            y = bound("conv2d", CONV2D["strided"][2], module)(*duals)
            tangent = forward_ad.unpack_dual(y).tangent
            results.append(torch.autograd.grad(tangent.sin().sum(), primals[:2]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("entrance", ["plain", "operator"])
def test_what_a_frozen_operand_makes_needless_is_not_saved(entrance):
    def saved(x_needed, w_needed):
        x = randn(1, 2, 4, 5, requires_grad=x_needed)
        w = randn(3, 2, 2, 3, requires_grad=w_needed)
        b = randn(3, requires_grad=True)
        if entrance == "plain":
            y = conv_ext.conv2d(x, w, b)
        else:
            y = torch.ops.conv_ext.forward(x, w, b, (1, 1), (0, 0, 0, 0), (1, 1), 1)
        return [t is not None and t.shape for t in y.grad_fn.saved_tensors]

    assert saved(True, True) == [(1, 2, 4, 5), (3, 2, 2, 3)]
    assert saved(True, False) == [False, (3, 2, 2, 3)]
    assert saved(False, True) == [(1, 2, 4, 5), False]
    assert saved(False, False) == [False, False]


@pytest.mark.parametrize("entrance", ["plain", "operator"])
def test_forward_mode_leaves_nothing_behind(entrance):
    """`save_for_forward` must not outlive the call, for its tensors are neither checked nor freed by a backward."""
    weight = randn(3, 2, 2, 2)
    x = randn(1, 2, 4, 5)
    bias = randn(3, requires_grad=True)
    if entrance == "plain":
        y = conv_ext.conv2d(x, weight, bias)
    else:
        y = torch.ops.conv_ext.forward(x, weight, bias, (1, 1), (0, 0, 0, 0), (1, 1), 1)
    gone = weakref.ref(x), weakref.ref(weight)
    del x, weight
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 12.0))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(64, 1, 29, 41), (3, 1, 5, 7), (5, 6, 61, 47)], ids=str)
def test_bias_grad_for_any_number_of_threads(shape, memory_format, dtype):
    grad = randn(shape, dtype=torch.float64).to(dtype).contiguous(memory_format=memory_format)
    sums = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        sums.append(autograd.bias_grad(grad))
    assert all(torch.equal(sums[0], other) for other in sums[1:])
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = grad.to(wide).sum((0, 2, 3))
    # Half a unit of the result for the one rounding, and the float32 sum's own error.
    magnitude = grad.to(wide).abs().sum((0, 2, 3))
    assert ((sums[0].to(wide) - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 2**-22 * magnitude).all()


def test_the_bias_of_a_transposed_convolution_has_the_same_gradient_for_any_number_of_threads():
    x, w, b = randn(16, 2, 41, 53), randn(2, 1, 3, 2), randn(1, requires_grad=True)
    grads = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        y = conv_ext.conv_transpose2d(x, w, b)
        grads.append(torch.autograd.grad(y.sin().sum(), b)[0])
    assert all(torch.equal(grads[0], other) for other in grads[1:])


@pytest.mark.parametrize("function, x_shape, w_shape, options", CALLS)
def test_every_road_gives_the_same_bits(function, x_shape, w_shape, options):
    leaves = [t.detach().float().requires_grad_() for t in operands(function, x_shape, w_shape, options)]
    call = bound(function, options)
    with torch.no_grad():
        straight = call(*leaves)
    plain = call(*leaves)
    with torch.autograd.forward_ad.dual_level():
        # A tangent sends the call down the general road; that of a zero changes nothing else.
        dual = forward_ad.make_dual(leaves[0], torch.zeros_like(leaves[0]))
        general = forward_ad.unpack_dual(call(dual, *leaves[1:])).primal
    assert torch.equal(straight, plain) and torch.equal(straight, general)
    upstream = torch.randn_like(plain)
    first = torch.autograd.grad(plain, leaves, upstream, retain_graph=True)
    recorded = torch.autograd.grad(plain, leaves, upstream, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, recorded))
    assert all(g.grad_fn is None for g in first) and recorded[0].grad_fn is not None


def test_the_same_tensor_as_both_operands():
    t = randn(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    square = lambda t: conv_ext.conv2d(t, t, None, padding=(1, 2))  # noqa: E731
    gradcheck(square, t, check_forward_ad=True)
    gradgradcheck(square, t, check_fwd_over_rev=True, fast_mode=True)


def test_nodes_have_names():
    x, w = randn(1, 2, 3, 4, requires_grad=True), randn(3, 2, 2, 2)
    assert conv_ext.conv2d(x, w).grad_fn.name() == "ConvExtForwardBackward"
    assert conv_ext.conv_transpose2d(x, w.mT.transpose(0, 1)).grad_fn.name() == "ConvExtInputGradBackward"
