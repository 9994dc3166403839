"""residual and the activations beyond ReLU: the bits of what they stand for behind the convolution, and derivatives."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import conv_ext
from devices import device, randn
from passes import (
    DTYPES,
    LAYOUTS,
    THEIR_OWN,
    applicable,
    dtype_name,
    fill,
    instruction_set,
    is_slow,
    laid_out,
    operands,
    repeats,
    same_bits,
)
from problems import CORNERS, EMPTY, NETWORK, SMALL, THREADED, Problem
from test_func import GEOMETRY, TRANSFORMS, B, W, X

each_device = pytest.mark.usefixtures("each_device")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
REAL = [dtype for dtype in DTYPES if not dtype.is_complex]
OPTIONS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
CLAMP = ("clamp", -0.3, 1.7)
BEHIND = {
    "none": lambda y: y,
    "relu": torch.relu,
    "relu6": F.relu6,
    CLAMP: lambda y: F.hardtanh(y, *CLAMP[1:]),
    "hardswish": F.hardswish,
    "silu": F.silu,
}
each_activation = pytest.mark.parametrize("activation", BEHIND, ids=str)
NAMED = {"relu6": ("clamp", 0.0, 6.0), CLAMP: CLAMP}
# Units in the last place by which silu's exponentials may differ; of a 16-bit type one.
ULPS = 4


def run(x, w, b, z, activation="none", residual=None, algorithm="auto"):
    name, *bounds = NAMED.get(activation, (activation, 0.0, 0.0))
    geometry = (z.stride, z.padding, z.dilation, z.groups)
    return torch.ops.conv_ext.forward(x, w, b, *geometry, "ieee", algorithm, name, residual, *bounds)


def same(a, b):
    """The same bits but those of a NaN."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and same_bits(a[~nan], b[~nan])


def assert_behind(got, plain, activation, residual=None, algorithm="auto"):
    """`got` is the plain result with the residual and the activation behind it, which the reference rounds once."""
    wanted = plain if residual is None else plain + residual
    wanted = BEHIND[activation](wanted)
    assert got.shape == plain.shape and got.stride() == plain.stride() and got.dtype == plain.dtype
    if activation != "silu" and (activation, algorithm) != ("hardswish", "reference"):
        assert same(got, wanted)
        return
    unit = torch.finfo(got.dtype).eps * (ULPS if got.itemsize > 2 else 1)
    tiny = torch.finfo(got.dtype).smallest_normal  # below exp(-88) torch has 0
    torch.testing.assert_close(got, wanted, rtol=unit, atol=64 * tiny, equal_nan=True)


def drawn(z, dtype):
    """What is tried of a problem: (activation, whether there is a residual); not all of it where there are many."""
    if dtype.is_complex:
        return [("none", True)]
    every = [(activation, added) for activation in BEHIND for added in (True, False)]
    every.remove(("none", False))
    return every if z in SMALL else [("silu", True), (CLAMP, False), ("relu", True), ("hardswish", False)]


def assert_fused(x, w, b, z, residual, isas):
    kept = residual.clone()
    for isa in isas:
        with instruction_set(isa):
            for algorithm in applicable("forward", z, x.dtype):
                if is_slow(algorithm, z) or repeats(isa) and algorithm != THEIR_OWN:
                    continue
                plain = run(x, w, b, z, algorithm=algorithm)
                for activation, added in drawn(z, x.dtype):
                    other = residual if added else None
                    got = run(x, w, b, z, activation, other, algorithm)
                    assert_behind(got, plain, activation, other, algorithm)
    assert same(residual, kept)


# ---- the forward pass


@every_dtype
@pytest.mark.parametrize("z", SMALL + CORNERS + EMPTY + NETWORK, ids=str)
def test_every_algorithm(z, dtype):
    x, w = operands("forward", z, dtype, "signed")
    bias, residual = fill((z.k,), dtype, "signed", 3), 4 * fill(z.output_shape, dtype, "signed", 5)
    for layouts in LAYOUTS if z in SMALL else LAYOUTS[:2]:
        a, c = (laid_out(t, layout) for t, layout in zip((x, w), layouts))
        other = laid_out(residual, layouts[-1])
        assert_fused(a, c, bias, z, other, conv_ext.library.available_isas())


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=dtype_name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_any_strides_of_the_residual(layout, dtype):
    z = SMALL[1]
    x, w = (laid_out(t, layout) for t in operands("forward", z, dtype, "signed"))
    residual, plain = fill(z.output_shape, dtype, "signed", 5), run(x, w, None, z)
    expanded = residual[:1, :, :1].expand(z.output_shape)
    for other in (*(laid_out(residual, how) for how in ("transposed", "sliced")), expanded, residual.flip(3)):
        assert_behind(run(x, w, None, z, "none", other), plain, "none", other)
    same_tensor = run(x, w, None, z, "none", plain)  # what the caller has of an earlier call
    assert_behind(same_tensor, plain, "none", plain)


@pytest.mark.parametrize("width", [1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128], ids=dtype_name)
def test_a_residual_with_something_between_its_rows(width, dtype):
    """Where the rows of an image are taken for one row, those of the residual are not."""
    z = Problem("one row", 2, 9, 4, width, 33, 1, 1)
    x, w = operands("forward", z, dtype, "signed")
    residual = torch.nn.functional.pad(fill(z.output_shape, dtype, "signed", 5), (0, 3), value=math.nan)[..., :width]
    for isa in conv_ext.library.available_isas():
        with instruction_set(isa):
            for algorithm in applicable("forward", z, dtype):
                plain = run(x, w, None, z, algorithm=algorithm)
                got = run(x, w, None, z, "none", residual, algorithm)
                assert_behind(got, plain, "none", residual)


def test_the_input_itself_as_the_residual():
    z = Problem("itself", 2, 5, 6, 7, 5, 3, 3, padding=(1, 1, 1, 1))
    x, w = operands("forward", z, torch.float32, "signed")
    assert_behind(run(x, w, None, z, "silu", x), run(x, w, None, z), "silu", x)


def test_memory_of_others_is_not_touched():
    conv_ext._C.set_scratch_guard(True)
    try:
        for z in SMALL + tuple(z for z in CORNERS if z.groups > 1):
            for layout in ("contiguous", "channels_last", "sliced"):
                x, w = (laid_out(t, layout) for t in operands("forward", z, torch.float32, "signed"))
                residual = laid_out(fill(z.output_shape, torch.float32, "signed", 5), layout)
                assert_fused(x, w, None, z, residual, conv_ext.library.available_isas())
    finally:
        conv_ext._C.set_scratch_guard(False)


# Few channels are for the direct algorithm, many for the depthwise one; the long row fills vectors.
IDENTITY = Problem("identity", 1, 1, 2, 37, 1, 1, 1), Problem("depthwise", 1, 17, 2, 33, 17, 1, 1, groups=17)
SPECIAL = (
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    0.0,
    -1.5,
    2.0,
    -0.3,
    1.7,
    6.0,
    7.0,
    -3.0,
    3.0,
    3.5,
    88.0,
    -88.0,
    -104.0,
)


@pytest.mark.parametrize("dtype", REAL, ids=dtype_name)
@pytest.mark.parametrize("z", IDENTITY, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@each_activation
def test_special_values(activation, layout, z, dtype, each_isa):
    special = torch.tensor(SPECIAL, dtype=dtype)
    count = math.prod(z.input_shape)
    x = laid_out(special.repeat(count // len(SPECIAL) + 1)[:count].view(z.input_shape), layout)
    one, minus_zero = torch.ones(z.weight_shape, dtype=dtype), torch.full((z.k,), -0.0, dtype=dtype)
    for algorithm in applicable("forward", z, dtype):
        plain = run(x, one, minus_zero, z, algorithm=algorithm)
        assert same(plain, x)
        got = run(x, one, minus_zero, z, activation, None, algorithm)
        assert_behind(got, plain, activation, None, algorithm)
        swapped = x.flip(3)
        got = run(x, one, minus_zero, z, activation, swapped, algorithm)
        assert_behind(got, plain, activation, swapped, algorithm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
def test_the_exponential(dtype, each_isa):
    """silu of numbers of every size against numpy's long double: within four units in the last place."""
    furthest = 100 if dtype == torch.float32 else 740
    x = torch.cat([torch.linspace(-furthest, furthest, 60_001, dtype=torch.float64)] + [
        sign * torch.logspace(-44, 1.5, 2_001, dtype=torch.float64) for sign in (-1, 1)
    ]).to(dtype)  # fmt: skip
    wide = x.numpy().astype(np.longdouble)
    wanted = wide / (1 + np.exp(-wide))
    z = Problem("identity", 1, 1, 1, len(x), 1, 1, 1)
    got = run(x.view(1, 1, 1, -1), torch.ones(1, 1, 1, 1, dtype=dtype), None, z, "silu").flatten().numpy()
    held = np.abs(wanted.astype(got.dtype))
    units = np.abs(got.astype(np.longdouble) - wanted) / np.spacing(np.maximum(held, np.finfo(got.dtype).tiny))
    assert 0.2 < units.max() < 4


def test_the_same_bits_for_threads_and_batches():
    for z in THREADED[:3]:
        x, w = operands("forward", z, torch.float32, "signed")
        residual, results = fill(z.output_shape, torch.float32, "signed", 5), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(x, w, None, z, "silu", residual))
        assert all(same_bits(results[0], other) for other in results[1:])
        assert same_bits(run(x[2:3], w, None, z, "silu", residual[2:3]), results[0][2:3])


@each_device
@each_activation
def test_no_channels_leave_the_bias_and_the_residual(activation):
    x, w, b, r = randn(2, 0, 5, 6), randn(3, 0, 2, 2), randn(3), randn(2, 3, 4, 5)
    for bias in (b, None):
        plain = conv_ext.conv2d(x, w, bias)
        assert_behind(conv_ext.conv2d(x, w, bias, activation=activation, residual=r), plain, activation, r)


# ---- derivatives


def pair(activation, function="conv2d"):
    """The fused and the unfused form of one call with a residual."""
    call = getattr(conv_ext, function)
    options = OPTIONS if function == "conv2d" else dict(stride=2, padding=1, dilation=2, groups=2)

    def unfused(x, w, b, r=None):
        y = call(x, w, b, **options)
        return BEHIND[activation](y if r is None else y + r)

    return lambda x, w, b, r=None: call(x, w, b, **options, activation=activation, residual=r), unfused


SHAPES = {
    "conv2d": (X, W, B, (2, 6, 2, 3)),
    "conv2d of one image": (X[1:], W, B, (6, 2, 3)),
    "conv1d": ((2, 4, 9), (6, 2, 3), B, (2, 6, 4)),
}


def leaves(name="conv2d", dtype=torch.float32, count=4):
    return [(2 * randn(shape)).to(dtype).requires_grad_() for shape in SHAPES[name][:count]]


@each_device
@pytest.mark.parametrize("dtype", REAL, ids=dtype_name)
@pytest.mark.parametrize("name", SHAPES)
@each_activation
def test_gradients_are_those_of_the_unfused_form(activation, name, dtype):
    args, results = leaves(name, dtype), []
    for f in pair(activation, name.split()[0]):
        y = f(*args)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device(), dtype)
        ways = ({"retain_graph": True}, {"create_graph": True})
        results += [(y, *torch.autograd.grad(y, args, g, **options)) for options in ways]
    for other in results[1:]:
        for a, b in zip(results[0], other):
            if activation in ("silu", "hardswish"):
                slack = 4 * torch.finfo(dtype).eps * float(b.detach().abs().max())
                torch.testing.assert_close(a, b, rtol=1e-5, atol=slack)
            else:
                assert same(a, b)


@each_device
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (1, 3)], ids=str)
@each_activation
def test_frozen_operands(activation, needed):
    args = [t.detach().requires_grad_(i in needed) for i, t in enumerate(leaves())]
    results = [torch.autograd.grad(f(*args).sin().sum(), [args[i] for i in needed]) for f in pair(activation)]
    torch.testing.assert_close(*results)


@each_device
@each_activation
@pytest.mark.parametrize("added", [True, False], ids=["residual", "alone"])
def test_finite_differences(activation, added):
    args = leaves(dtype=torch.float64, count=4 if added else 3)
    fused, unfused = pair(activation)
    edges = {"relu": (0,), "relu6": (0, 6), CLAMP: CLAMP[1:], "hardswish": (-3, 3)}.get(activation, ())
    with torch.no_grad():  # no sum near a kink
        while any((pair("none")[1](*args) - edge).abs().min() < 1e-3 for edge in edges):
            args[2] += 0.01 * torch.randn_like(args[2])
    gradcheck(fused, args, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    gradgradcheck(fused, args, check_fwd_over_rev=True, fast_mode=True)


def test_finite_differences_of_complex_numbers():
    args = [t.detach().to(torch.complex128) * (1 - 0.5j) for t in leaves(dtype=torch.float64)]
    args = [t.requires_grad_() for t in args]
    gradcheck(pair("none")[0], args, check_forward_ad=True)
    gradgradcheck(pair("none")[0], args, fast_mode=True)


def with_residual(call, activation):
    """A function of x, w and b alone whose residual follows from b, for any number of images."""

    def f(x, w, b):
        r = b.cos()[:, None, None] + torch.linspace(-1, 1, 6, dtype=b.dtype, device=b.device).view(2, 3)
        return call(x, w, b, r.expand(x.shape[0], 6, 2, 3), activation)

    return f


def operator(x, w, b, r, activation):
    name, *bounds = NAMED.get(activation, (activation, 0.0, 0.0))
    return torch.ops.conv_ext.forward(x, w, b, *GEOMETRY, "ieee", "auto", name, r, *bounds)


def function(x, w, b, r, activation):
    name, *bounds = NAMED.get(activation, (activation, 0.0, 0.0))
    return conv_ext.autograd.Forward.apply(x, w, b, *GEOMETRY, "ieee", "auto", name, r, *bounds)


ENTRANCES = {
    "public": lambda x, w, b, r, activation: conv_ext.conv2d(x, w, b, **OPTIONS, activation=activation, residual=r),
    "operator": operator,
    "Function": function,
}
TRANSFORMED = [("silu", name) for name in TRANSFORMS] + [
    (activation, name) for activation in (CLAMP, "hardswish") for name in ("hessian", "vmap of vmap", "jvp of grad")
]


@each_device
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("activation, name", TRANSFORMED, ids=str)
def test_transforms(activation, name, entrance):
    def unfused(x, w, b, r, activation):
        return BEHIND[activation](conv_ext.conv2d(x, w, b, **OPTIONS) + r)

    results = []
    for call in (ENTRANCES[entrance], unfused):
        torch.manual_seed(2)
        results.append(TRANSFORMS[name](with_residual(call, activation)))
    torch.testing.assert_close(*results, equal_nan=True)


@each_device
@pytest.mark.parametrize("activation", ["none", "relu", CLAMP, "hardswish"], ids=str)
@pytest.mark.parametrize(
    "dims",
    [
        (0, None, None, None), (None, None, None, 1), (2, None, 0, 0), (None, None, 1, None), (None, 3, 0, 4),
        (None, 0, None, None), (1, 2, 1, 2), (0, 0, None, None), (3, None, None, 0),
    ],
    ids=str,
)  # fmt: skip
def test_vmap(dims, activation):
    shapes = (s if d is None else (*s[:d], 3, *s[d:]) for s, d in zip(SHAPES["conv2d"], dims))
    args = [randn(shape) for shape in shapes]
    fused, unfused = (torch.func.vmap(f, dims)(*args) for f in pair(activation))
    torch.testing.assert_close(fused, unfused)


@each_device
def test_vmap_over_nothing():
    args = [randn(0, *shape) for shape in SHAPES["conv2d"]]
    assert torch.func.vmap(pair("silu")[0])(*args).shape == (0, *SHAPES["conv2d"][3])
    with pytest.raises(RuntimeError, match="residual of the result's size"):
        torch.func.vmap(pair("silu")[0])(*args[:3], args[3][..., :2])


# ---- PyTorch's other subsystems


@each_device
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("activation", ["silu", CLAMP], ids=str)
def test_compiled(name, activation):
    torch._dynamo.reset()
    fused = pair(activation, name.split()[0])[0]
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    args, results = leaves(name), []
    for f in (fused, compiled):
        y = f(*args)
        results.append((y, *torch.autograd.grad(y.sin().sum(), args)))
    torch.testing.assert_close(*results)


class Block(nn.Module):
    def __init__(self, activation, padding=1):
        super().__init__()
        self.layer = conv_ext.Conv2d(4, 4, 3, padding=padding, activation=activation)

    def forward(self, x):
        return self.layer(x, x)


@each_device
def test_exported_and_traced():
    for activation in ("silu", CLAMP):
        block, x = Block(activation, "same").to(device()), randn(2, 4, 5, 6)
        assert same(torch.export.export(block, (x,)).module()(x), block(x))
        traced = torch.jit.trace(block, (x,))
        other = randn(1, 4, 7, 8)
        assert same(traced(other), block(other))


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_opcheck(dtype):
    pytest.importorskip("expecttest")  # which opcheck imports
    x, w, b, r = leaves(dtype=dtype)
    options = {"activation": "hardswish", "residual": r}
    torch.library.opcheck(torch.ops.conv_ext.forward.default, (x, w, b, *GEOMETRY), options)


@each_device
def test_autocast():
    """All operands take autocast's dtype, the residual too."""
    args, results = leaves(), []
    for f in (pair("silu")[0], lambda x, w, b, r: pair("silu")[1](x, w, b, r.bfloat16())):
        with torch.autocast(device(), torch.bfloat16):
            y = f(*args)
        assert y.dtype == torch.bfloat16
        results.append((y, *torch.autograd.grad(y.sin().sum(), args)))
    torch.testing.assert_close(*results)


# ---- layers

LAYERS = [(conv_ext.Conv2d, (2, 4, 7, 8)), (conv_ext.Conv1d, (2, 4, 9))]


@pytest.mark.parametrize("cls, shape", LAYERS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@each_activation
def test_layer(cls, shape, mode, activation):
    layer, x = cls(4, 4, 3, padding=1, padding_mode=mode, activation=activation), torch.randn(shape)
    plain = cls(4, 4, 3, padding=1, padding_mode=mode)
    plain.load_state_dict(layer.state_dict())
    assert_behind(layer(x), plain(x), activation)
    assert_behind(layer(x, x), plain(x), activation, x)
    assert_behind(layer(x[0], x[0]), plain(x[0]), activation, x[0])
    again = pickle.loads(pickle.dumps(layer))
    assert again.activation == activation and same(again(x, x), layer(x, x))
    assert ("activation" in repr(layer)) == (activation != "none")


def test_names():
    assert "activation=clamp(-0.3, 1.7)" in repr(conv_ext.Conv2d(1, 1, 1, activation=CLAMP))
    x, w = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 1, 1)
    assert conv_ext.explain(x, w, activation="relu6").problem.endswith(", relu6")
    assert conv_ext.explain(x, w, activation=CLAMP).problem.endswith(", clamp(-0.3, 1.7)")
    for wrong in ("tanh", ("clamp", 1), ("clamp", "a", "b"), ("relu", 0, 1)):
        with pytest.raises(ValueError, match=r"none, relu, relu6, silu, hardswish, or \('clamp', low, high\)"):
            conv_ext.Conv2d(1, 1, 1, activation=wrong)
    with pytest.raises(ValueError, match="low <= high, got low=2.0 and high=1.0"):
        conv_ext.Conv2d(1, 1, 1, activation=("clamp", 2, 1))
    with pytest.raises(RuntimeError, match="3D residual, of the result's size, but got residual of size"):
        conv_ext.conv2d(x[0], w, residual=x)


@each_activation
def test_packed(activation):
    layer, x = conv_ext.Conv2d(32, 32, 3, padding=1, activation=activation), torch.randn(1, 32, 6, 6)
    packed = conv_ext.PackedConv2d.of(layer, x)
    with torch.no_grad():
        packed(x)
        assert packed.is_packed_for(x)
        assert same(packed(x, x), layer(x, x)) and same(packed(x[0], x[0]), layer(x[0], x[0]))
    r = x.clone().requires_grad_()
    results = [torch.autograd.grad(each(x, r).sin().sum(), r)[0] for each in (packed, layer)]
    assert same(*results)
