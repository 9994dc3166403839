"""conv2d, conv1d and the transposed ones beside torch's own: arguments, layouts, gradients, dtypes, strides."""

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

import conv_ext
from drawn import given, st
from passes import DTYPES, dtype_name, fill, laid_out

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def integers(*shape, dtype=torch.float32, seed=0):
    """Sums of small integers are exact: the two must agree to the last bit."""
    return fill(shape, dtype, "integers", seed)


def both(name, operands, *arguments, **named):
    """Results of ours and of torch's, and their gradients for the same upstream gradient."""
    outcomes = []
    for module in (conv_ext, F):
        leaves = [t.detach().requires_grad_() if t is not None else None for t in operands]
        y = getattr(module, name)(*leaves, *arguments, **named)
        gy = integers(*y.shape, dtype=y.dtype, seed=9)
        wanted = [t for t in leaves if t is not None]
        outcomes.append([y.detach(), *torch.autograd.grad(y, wanted, gy)])
    return zip(*outcomes)


def assert_alike(name, operands, *arguments, **named):
    for ours, theirs in both(name, operands, *arguments, **named):
        assert ours.dtype is theirs.dtype and ours.device == theirs.device
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    plain = getattr(conv_ext, name)(*operands, *arguments, **named)
    assert torch.equal(plain, getattr(F, name)(*operands, *arguments, **named))


# ---- the meaning


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": (2, 3)},
        {"padding": (2, 1)},
        {"dilation": (1, 2)},
        {"stride": (3, 2), "padding": (1, 2), "dilation": (2, 1), "groups": 2},
        {"groups": 2, "padding": "same"},
        {"padding": "same", "dilation": (3, 2)},
        {"padding": "valid", "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_conv2d(arguments, bias):
    groups = arguments.get("groups", 1)
    x, w, b = integers(2, 4, 9, 10), integers(6, 4 // groups, 3, 4, seed=1), integers(6, seed=2) if bias else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, on 'same' with an even kernel
        assert_alike("conv2d", (x, w, b), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (3,), "padding": [2], "dilation": (2,), "groups": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": "valid"},
    ],
    ids=str,
)
def test_conv1d(arguments):
    groups = arguments.get("groups", 1)
    for kernel in (3, 4):
        x, w, b = integers(2, 4, 13), integers(6, 4 // groups, kernel, seed=1), integers(6, seed=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert_alike("conv1d", (x, w, b), **arguments)
            assert_alike("conv1d", (x[0], w, None), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": (2, 3)},
        {"stride": (2, 3), "padding": (1, 2), "output_padding": (1, 2)},
        {"stride": 2, "dilation": (3, 1), "output_padding": (2, 1)},
        {"padding": (2, 0), "dilation": (1, 2), "groups": 2},
        {"stride": (3, 1), "padding": 1, "output_padding": (2, 0), "groups": 2},
    ],
    ids=str,
)
def test_conv_transpose2d(arguments):
    groups = arguments.get("groups", 1)
    x, w = integers(2, 6, 5, 4), integers(6, 4, 3, 2, seed=1)
    assert_alike("conv_transpose2d", (x, w, None), **arguments)
    assert_alike("conv_transpose2d", (x, w, integers(4 * groups, seed=2)), **arguments)
    assert_alike("conv_transpose2d", (x[1], w, integers(4 * groups, seed=2)), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 3, "padding": (2,), "output_padding": [2]},
        {"stride": 2, "dilation": (3,), "output_padding": 2, "groups": 2},  # an output padding of a stride
        {"padding": 7, "stride": 2},  # nothing is left of most, and none of some
    ],
    ids=str,
)
def test_conv_transpose1d(arguments):
    groups = arguments.get("groups", 1)
    x, w, b = integers(2, 6, 9), integers(6, 4, 3, seed=1), integers(4 * groups, seed=2)
    for operands in ((x, w, None), (x, w, b), (x[1], w, b), (x.mT.contiguous().mT, w.mT.contiguous().mT, b)):
        assert_alike("conv_transpose1d", operands, **arguments)
    assert conv_ext.conv_transpose1d(x, w[:, :, :1], None, 1, 4).shape == (2, 4, 1)
    assert conv_ext.conv_transpose1d(x[..., :2], w[:, :, :1], None, 1, 1).shape == (2, 4, 0)


@st.composite
def calls(draw):
    groups, dilation = draw(st.integers(1, 3)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    c, k, r, s = (
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        *draw(st.tuples(*[st.integers(1, 4)] * 2)),
    )
    padding = draw(
        st.one_of(
            st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(["same", "valid"])
        )
    )
    stride = (
        1 if padding == "same" else draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    )
    h, w = dilation[0] * (r - 1) + draw(st.integers(1, 8)), dilation[1] * (s - 1) + draw(st.integers(1, 8))
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    bias = draw(st.booleans())
    return (*batch, c, h, w), (k, c // groups, r, s), k if bias else None, (stride, padding, dilation, groups)


@given(calls())
def test_drawn_calls(drawn):
    x, w, k, arguments = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert_alike("conv2d", (integers(*x), integers(*w, seed=1), integers(k, seed=2) if k else None), *arguments)


# ---- dtypes


@every_dtype
def test_dtypes(dtype):
    """With complex gradients, whose other operand is conjugated."""
    for groups in (1, 2):
        operands = integers(2, 4, 5, 6, dtype=dtype), integers(6, 4 // groups, 3, 2, dtype=dtype, seed=1)
        assert_alike("conv2d", (*operands, integers(6, dtype=dtype, seed=2)), (2, 1), (1, 2), 1, groups)
    operands = integers(2, 6, 4, 5, dtype=dtype), integers(6, 3, 2, 3, dtype=dtype, seed=1)
    assert_alike("conv_transpose2d", operands, None, 2, 1, 1, 2)
    operands = integers(2, 4, 9, dtype=dtype), integers(6, 4, 3, dtype=dtype, seed=1)
    assert_alike("conv1d", (*operands, integers(6, dtype=dtype, seed=2)), 2, 1)
    operands = integers(2, 4, 9, dtype=dtype), integers(4, 3, 3, dtype=dtype, seed=1)
    assert_alike("conv_transpose1d", (*operands, None), 2, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_short_types_are_rounded_once(dtype):
    """One rounding from the exact sum: rms about 0.21 of eps for sums of random numbers."""
    x, w = fill((2, 32, 14, 15), dtype, "signed", 1), fill((24, 32, 3, 3), dtype, "signed", 2)
    exact = F.conv2d(x.double(), w.double())
    error = (conv_ext.conv2d(x, w).double() - exact) / exact.abs().clamp(min=torch.finfo(dtype).smallest_normal)
    rms = error.square().mean().sqrt().item() / torch.finfo(dtype).eps
    assert 0.15 < rms < 0.25


def test_float16_with_a_stride_a_dilation_and_one_column():
    x, w = integers(2, 8, 13, 5, dtype=torch.float16), integers(5, 8, 3, 3, dtype=torch.float16, seed=1)
    y = conv_ext.conv2d(x, w, None, 2, 0, 2)
    assert y.shape == (2, 5, 5, 1)
    assert torch.equal(y.double(), F.conv2d(x.double(), w.double(), None, 2, 0, 2))


# ---- memory formats


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=dtype_name)
@pytest.mark.parametrize("input_format", FORMATS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_memory_formats_of_results_and_gradients(dtype, input_format, weight_format, groups):
    x = integers(2, 4, 6, 7, dtype=dtype).contiguous(memory_format=FORMATS[input_format])
    w = integers(8, 4 // groups, 3, 2, dtype=dtype, seed=1).contiguous(memory_format=FORMATS[weight_format])
    outcomes = []
    for module in (conv_ext, F):
        leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = module.conv2d(*leaves, groups=groups)
        gy = integers(*y.shape, dtype=dtype, seed=9).contiguous(
            memory_format=FORMATS[
                "channels_last" if y.is_contiguous(memory_format=torch.channels_last) else "contiguous"
            ]
        )
        outcomes.append([y.detach(), *torch.autograd.grad(y, leaves, gy)])
    either = "channels_last" in (input_format, weight_format)
    for name, ours, theirs in zip(("output", "input gradient", "weight gradient"), *outcomes):
        assert torch.equal(ours, theirs)
        if groups != 4:  # with one channel per group a weight has both formats, and torch's answers vary
            assert ours.is_contiguous(memory_format=FORMATS["channels_last" if either else "contiguous"]), name
        if name == "output":
            assert ours.stride() == theirs.stride()


# ---- strides, views, batches


def odd_views():
    base = integers(2, 4, 8, 9)
    yield "expanded", base[:, :1].expand(2, 4, 8, 9)
    yield "expanded_batch", base[:1].expand(2, 4, 8, 9)
    yield "one_number", torch.ones(()).expand(2, 4, 8, 9)
    yield "overlapping", integers(200).as_strided((2, 4, 8, 9), (30, 9, 7, 3))
    yield "sliced", laid_out(base, "sliced")
    yield "transposed", laid_out(base, "transposed")
    yield "offset", integers(2 * 4 * 8 * 9 + 5)[5:].view(2, 4, 8, 9)
    yield "flipped", base.flip(2, 3)
    yield "rotated", integers(2, 4, 9, 8).transpose(2, 3)
    yield "every_second", integers(4, 8, 16, 18)[::2, ::2, ::2, ::2]


@pytest.mark.parametrize("x", [pytest.param(view, id=name) for name, view in odd_views()])
def test_odd_strides(x):
    w = integers(6, 2, 3, 2, seed=1)
    for weight in (w, laid_out(w, "transposed"), laid_out(w, "sliced"), w[:, :1].expand(6, 2, 3, 2)):
        ours, theirs = (module.conv2d(x, weight, None, (1, 2), 1, 1, 2) for module in (conv_ext, F))
        assert torch.equal(ours, theirs)
        for gy in (integers(*ours.shape), torch.ones(()).expand(ours.shape), laid_out(integers(*ours.shape), "sliced")):
            grads = []
            for module in (conv_ext, F):
                leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
                grads.append(torch.autograd.grad(module.conv2d(*leaves, None, (1, 2), 1, 1, 2), leaves, gy))
            assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_conjugate_and_negative_views():
    x, w = (integers(*s, dtype=torch.complex64, seed=i) for i, s in enumerate(((2, 3, 5, 6), (4, 3, 2, 3))))
    for a, b in ((x.conj(), w), (x, w.conj()), (x.conj(), w.conj())):
        assert torch.equal(conv_ext.conv2d(a, b), F.conv2d(a, b))
        assert_alike("conv2d", (a, b))
    imaginary = x.conj().imag, w.conj().imag
    assert imaginary[0].is_neg()
    assert torch.equal(conv_ext.conv2d(*imaginary), F.conv2d(*(t.clone() for t in imaginary)))


def test_zero_tensors():
    x, w = torch._efficientzerotensor(2, 3, 5, 6), integers(4, 3, 2, 3)
    assert torch.equal(conv_ext.conv2d(x, w), torch.zeros(2, 4, 4, 4))


def test_unbatched():
    x, w, b = integers(4, 9, 10), integers(6, 4, 3, 2, seed=1), integers(6, seed=2)
    assert_alike("conv2d", (x, w, b), 2, 1)
    assert_alike("conv2d", (x, w, b), padding="same")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_empty_batches(bias):
    x, w, b = integers(0, 4, 9, 10), integers(6, 4, 3, 2, seed=1), integers(6, seed=2) if bias else None
    assert_alike("conv2d", (x, w, b), 2, 1)
    assert_alike("conv_transpose2d", (integers(0, 6, 3, 4), w, integers(4) if bias else None), 2, 1)
    assert_alike("conv1d", (x[:, :, 0], w[:, :, 0], b), 2, 1)
    assert_alike("conv_transpose1d", (integers(0, 6, 4), w[:, :, 0], integers(4) if bias else None), 2, 1)
    assert_alike("conv2d", (integers(0, 4, 9, 10), integers(6, 2, 3, 2, seed=1), b), 2, 1, 1, 2)


def test_no_channels():
    """An empty sum leaves the bias (torch ignores it)."""
    x, w, b = torch.zeros(2, 0, 5, 6, requires_grad=True), torch.zeros(4, 0, 3, 2, requires_grad=True), integers(4)
    b.requires_grad_()
    y = conv_ext.conv2d(x, w, b)
    assert torch.equal(y, b.view(1, 4, 1, 1).expand(2, 4, 3, 5))
    assert (conv_ext.conv2d(x, w) == 0).all()
    y.sum().backward()
    assert x.grad.shape == x.shape and w.grad.shape == w.shape and (b.grad == 2 * 3 * 5).all()


def test_the_same_tensor_as_both_operands():
    t = integers(3, 3, 4, 4)
    ours, theirs = t.clone().requires_grad_(), t.clone().requires_grad_()
    conv_ext.conv2d(ours, ours, padding=1).square().sum().backward()
    F.conv2d(theirs, theirs, padding=1).square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_only_the_gradients_that_are_needed():
    x, w, b = integers(2, 4, 5, 6), integers(6, 4, 3, 2), integers(6)
    for needed in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        leaves = [t.clone().requires_grad_(flag) for t, flag in zip((x, w, b), needed)]
        conv_ext.conv2d(*leaves).sum().backward()
        assert [t.grad is not None for t in leaves] == list(needed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("c, k, groups, kernel", [
    (1, 16, 1, 3), (4, 8, 1, 1), (1, 1, 1, 1), (8, 8, 8, 3),
    (8, 16, 8, 3), (3, 1, 1, 3), (4, 4, 1, (1, 3)), (4, 6, 2, 3),
])  # fmt: skip
def test_gradients_have_the_parameters_strides_where_torchs_have(c, k, groups, kernel, transposed):
    """To the letter, in extents of 1 too, where DistributedDataParallel would warn and copy."""
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    formats = torch.contiguous_format, torch.channels_last
    equal = 0
    for weight_format, input_format, upstream_format in itertools.product(formats, repeat=3):
        theirs = kind(c, k, kernel, groups=groups).to(memory_format=weight_format)
        ours = conv_ext.convert(copy.deepcopy(theirs))
        x = torch.randn(2, c, 5, 4).to(memory_format=input_format)
        for layer in (theirs, ours):
            y = layer(x)
            y.backward(torch.ones_like(y).contiguous(memory_format=upstream_format))
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        if theirs.weight.grad.stride() == theirs.weight.stride():
            equal += 1
            assert ours.weight.grad.stride() == ours.weight.stride()
    assert equal >= 4
