"""activation="relu": everywhere the bits of a ReLU behind the unfused convolution, and its derivatives."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

import conv_ext
from devices import device, randn, tensor
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
from test_func import ENTRANCES, GEOMETRY, TRANSFORMS, B, W, X, tensors

each_device = pytest.mark.usefixtures("each_device")
REAL = [dtype for dtype in DTYPES if not dtype.is_complex]
every_dtype = pytest.mark.parametrize("dtype", REAL, ids=dtype_name)
OPTIONS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)


def run(activation, x, w, b, z, algorithm="auto"):
    geometry = (z.stride, z.padding, z.dilation, z.groups)
    return torch.ops.conv_ext.forward(x, w, b, *geometry, "ieee", algorithm, activation)


def same(a, b):
    """The same bits but those of a NaN: torch.relu itself changes its sign in bfloat16."""
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and same_bits(a[~nan], b[~nan])


def assert_fused(x, w, b, z, isas):
    for isa in isas:
        with instruction_set(isa):
            for algorithm in applicable("forward", z, x.dtype):
                if is_slow(algorithm, z) or repeats(isa) and algorithm != THEIR_OWN:
                    continue
                got, plain = (run(activation, x, w, b, z, algorithm) for activation in ("relu", "none"))
                assert same(got, plain.relu()) and got.stride() == plain.stride(), f"{algorithm} with {isa} of {z!r}"


# ---- the forward pass


@every_dtype
@pytest.mark.parametrize("z", SMALL + CORNERS + EMPTY + NETWORK, ids=str)
def test_every_algorithm(z, dtype):
    x, w = operands("forward", z, dtype, "signed")
    bias = fill((z.k,), dtype, "signed", 3)
    for layouts in LAYOUTS if z in SMALL else LAYOUTS[:2]:
        a, c = (laid_out(t, layout) for t, layout in zip((x, w), layouts))
        assert_fused(a, c, None if layouts == LAYOUTS[1] else bias, z, conv_ext.library.available_isas())


def test_memory_of_others_is_not_touched():
    conv_ext._C.set_scratch_guard(True)
    try:
        for z in SMALL + tuple(z for z in CORNERS if z.groups > 1):
            for layout in ("contiguous", "channels_last", "sliced"):
                x, w = (laid_out(t, layout) for t in operands("forward", z, torch.float32, "signed"))
                assert_fused(x, w, None, z, conv_ext.library.available_isas())
    finally:
        conv_ext._C.set_scratch_guard(False)


def test_not_everything_was_positive():
    z = SMALL[1]
    y = run("relu", *operands("forward", z, torch.float32, "signed"), None, z)
    assert 0.2 < (y == 0).float().mean() < 0.8 and y.min() == 0


# Few channels are for the direct algorithm, many for the depthwise one; the long row fills vectors.
IDENTITY = Problem("identity", 1, 1, 2, 37, 1, 1, 1), Problem("depthwise", 1, 17, 2, 33, 17, 1, 1, groups=17)


@every_dtype
@pytest.mark.parametrize("z", IDENTITY, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_special_values(z, dtype, layout, each_isa):
    """NaN and both zeros pass, negative numbers and infinities become +0."""
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, -1.5, 2.0], dtype=dtype)
    count = math.prod(z.input_shape)
    x = laid_out(special.repeat(count // 7 + 1)[:count].view(z.input_shape), layout)
    one, minus_zero = torch.ones(z.weight_shape, dtype=dtype), torch.full((z.k,), -0.0, dtype=dtype)
    wanted = torch.where(x < 0, 0, x)
    for algorithm in applicable("forward", z, dtype):
        y = run("relu", x, one, minus_zero, z, algorithm)
        assert same(y, wanted) and torch.signbit(y[x == 0]).any()


@every_dtype
def test_operands_that_are_not_finite(dtype):
    """An algorithm that computes such outputs again must not take the ReLU of -Inf for a finite one."""
    z = next(z for z in NETWORK if z.name == "vgg_conv4")
    for value in (math.inf, -math.inf, math.nan):
        x, w = (t.clone() for t in operands("forward", z, dtype, "signed"))
        x[0, 3, 5, 5], x[1, 2, 0, 0], w[3, 1, 1, 1] = value, -value, value
        assert_fused(x, w, fill((z.k,), dtype, "signed", 3), z, conv_ext.library.available_isas())


@pytest.mark.parametrize("z", IDENTITY, ids=str)
@every_dtype
def test_what_rounds_to_zero(z, dtype):
    """A ReLU behind the rounding sees -0 and keeps it; ours is before the rounding and must, too."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest number above zero
    x = torch.linspace(-3, 3, math.prod(z.input_shape)).to(dtype).view(z.input_shape)
    x[..., :4] = torch.tensor([-0.5, -0.25, -0.75, -1.5], dtype=dtype)
    w, minus_zero = torch.full(z.weight_shape, tiny, dtype=dtype), torch.full((z.k,), -0.0, dtype=dtype)
    assert torch.signbit(run("relu", x, w, minus_zero, z)).any()
    for layout in ("contiguous", "channels_last"):
        assert_fused(laid_out(x, layout), w, minus_zero, z, conv_ext.library.available_isas())


@each_device
def test_no_channels_leave_the_bias():
    x, w, b = randn(2, 0, 5, 6), randn(3, 0, 2, 2), tensor([1.0, -1.0, math.nan])
    y = conv_ext.conv2d(x, w, b, activation="relu")
    assert same(y, b.relu()[:, None, None].expand(2, 3, 4, 5).contiguous())
    assert (conv_ext.conv2d(x, w, activation="relu") == 0).all()


def test_the_same_bits_for_threads_and_batches():
    for z in THREADED[:3]:
        x, w = operands("forward", z, torch.float32, "signed")
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run("relu", x, w, None, z))
        assert all(same_bits(results[0], other) for other in results[1:])
        assert same_bits(run("relu", x[2:3], w, None, z), results[0][2:3])


# ---- derivatives

FUNCTIONS = {
    "conv2d": ((X, W, B), OPTIONS),
    "conv2d of one image": ((X[1:], W, B), OPTIONS),
    "conv1d": (((2, 4, 9), (6, 2, 3), (6,)), dict(stride=2, padding=1, dilation=2, groups=2)),
}


def pair(name):
    """The fused and the unfused form of one call."""
    function, options = getattr(conv_ext, name.split()[0]), FUNCTIONS[name][1]
    return (
        lambda x, w, b: function(x, w, b, **options, activation="relu"),
        lambda x, w, b: function(x, w, b, **options).relu(),
    )


def leaves(name, dtype=torch.float32):
    return [randn(shape).to(dtype).requires_grad_() for shape in FUNCTIONS[name][0]]


@each_device
@every_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_the_unfused_form(name, dtype):
    args = leaves(name, dtype)
    with torch.no_grad():
        args[0].flatten()[::7] = 0
        args[1][1], args[2][1] = 0, 0  # a channel that is exactly zero: no gradient passes there
        args[2][2] = math.nan  # and one in which all of it does
    results = []
    for f in pair(name):
        y = f(*args)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device(), dtype)
        g.flatten()[::5] = math.inf  # never multiplied by the mask: Inf * 0 would be NaN
        ways = ({"retain_graph": True}, {"create_graph": True})
        results += [(y, *torch.autograd.grad(y, args, g, **options)) for options in ways]
    assert all(same(a, b) for other in results[1:] for a, b in zip(results[0], other))


@each_device
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (1, 2)], ids=str)
def test_frozen_operands(needed):
    args = [t.detach().requires_grad_(i in needed) for i, t in enumerate(leaves("conv2d"))]
    results = [torch.autograd.grad(f(*args).sin().sum(), [args[i] for i in needed]) for f in pair("conv2d")]
    assert all(same(a, b) for a, b in zip(*results))


@each_device
@pytest.mark.parametrize("name", FUNCTIONS)
def test_finite_differences(name):
    args = leaves(name, torch.float64)
    with torch.no_grad():
        assert pair(name)[0](*[t.detach() for t in args]).count_nonzero() > 5
        theirs = getattr(F, name.split()[0])
        while theirs(*args, **FUNCTIONS[name][1]).abs().min() < 1e-3:  # no output near the kink
            args[2] += 0.01 * torch.randn_like(args[2])
    f = pair(name)[0]
    gradcheck(f, args, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    gradgradcheck(f, args, check_fwd_over_rev=True, fast_mode=True)


FUSED = {
    "public": lambda x, w, b: conv_ext.conv2d(x, w, b, **OPTIONS, activation="relu"),
    "operator": lambda x, w, b: torch.ops.conv_ext.forward(x, w, b, *GEOMETRY, activation="relu"),
    "Function": lambda x, w, b: conv_ext.autograd.Forward.apply(x, w, b, *GEOMETRY, "ieee", "auto", "relu"),
}


@each_device
@pytest.mark.parametrize("entrance", FUSED)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, entrance):
    results = []
    for f in (FUSED[entrance], lambda *args: ENTRANCES[entrance](*args).relu()):
        torch.manual_seed(2)
        results.append(TRANSFORMS[name](f))
    torch.testing.assert_close(*results, equal_nan=True)


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(
    "dims", [(0, None, None), (2, None, 0), (None, None, 1), (None, 3, 0), (1, 2, 1), (0, 0, None)], ids=str
)
def test_vmap(dims, dtype):
    shapes = (s if d is None else (*s[:d], 3, *s[d:]) for s, d in zip((X, W, B), dims))
    args = [randn(shape).to(dtype) for shape in shapes]
    fused, unfused = (torch.func.vmap(f, dims)(*args) for f in pair("conv2d"))
    assert same(fused, unfused)


@each_device
def test_forward_mode():
    args = [t.detach() for t in leaves("conv2d")]
    results = []
    for f in pair("conv2d"):
        with forward_ad.dual_level():
            results.append(forward_ad.unpack_dual(f(*(forward_ad.make_dual(t, t.cos()) for t in args))))
    assert same(results[0].primal, results[1].primal)
    torch.testing.assert_close(results[0].tangent, results[1].tangent)


@each_device
def test_nothing_is_left_behind():
    """A saved output makes no cycle, is freed by the backward, and must not be changed before."""
    for f in (FUSED["public"], FUSED["operator"]):
        args = leaves("conv2d")
        y = f(*args)
        gone = weakref.ref(y)
        del y
        gc.disable()
        assert gone() is None
        gc.enable()
        y = f(*args)
        y += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


# ---- PyTorch's other subsystems


@each_device
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled(name):
    torch._dynamo.reset()
    fused = pair(name)[0]
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    args, results = leaves(name), []
    for f in (fused, compiled):
        y = f(*args)
        results.append((y, *torch.autograd.grad(y.sin().sum(), args)))
    assert all(same(a, b) for a, b in zip(*results))


@each_device
def test_exported():
    layer, x = conv_ext.Conv2d(4, 6, (3, 2), activation="relu").to(device()), randn(X)
    program = torch.export.export(layer, (x,))
    assert same(program.module()(x), layer(x))


@each_device
@every_dtype
def test_opcheck(dtype):
    args = [t.to(dtype).requires_grad_() for t in tensors(X, W, B)]
    pytest.importorskip("expecttest")  # which opcheck imports
    torch.library.opcheck(torch.ops.conv_ext.forward.default, (*args, *GEOMETRY), {"activation": "relu"})


@each_device
def test_autocast():
    args, results = leaves("conv2d"), []
    for f in pair("conv2d"):
        with torch.autocast(device(), torch.bfloat16):
            y = f(*args)
        results.append((y, *torch.autograd.grad(y.sin().sum(), args)))
    assert results[0][0].dtype == torch.bfloat16
    assert all(same(a, b) for a, b in zip(*results))


def test_overrides_see_the_activation():
    class Seen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append((kwargs or {}).get("activation"))
            return func(*args, **(kwargs or {}))

    for name in FUNCTIONS:
        args, seen = leaves(name), []
        with Seen():
            y = pair(name)[0](*args)
        assert "relu" in seen and same(y, pair(name)[1](*args))


# ---- layers

LAYERS = [(conv_ext.Conv2d, (2, 4, 7, 8)), (conv_ext.Conv1d, (2, 4, 9))]


@pytest.mark.parametrize("cls, shape", LAYERS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_layer(cls, shape, mode):
    layer = cls(4, 6, 3, padding=1, padding_mode=mode, activation="relu")
    plain, x = cls(4, 6, 3, padding=1, padding_mode=mode), torch.randn(shape)
    plain.load_state_dict(layer.state_dict())
    assert same(layer(x), plain(x).relu())
    assert "activation=relu" in repr(layer) and "activation" not in repr(plain)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.activation == "relu" and same(other(x), layer(x))
    plain.activation = "relu"
    assert same(plain(x), layer(x))
    with pytest.raises(ValueError, match="must be one of none, relu, relu6, silu, hardswish, or .* got gelu"):
        cls(4, 6, 3, activation="gelu")


@pytest.mark.parametrize("cls, shape", LAYERS)
def test_convert_and_revert(cls, shape):
    parametrized = parametrizations.weight_norm(cls(6, 6, 3, activation="relu"))
    model, x = nn.Sequential(cls(4, 6, 3), nn.Sequential(parametrized)), torch.randn(shape)
    before, y = [type(m) for m in model.modules()], model(x)
    assert conv_ext.convert(model) is model and same(model(x), y)
    with pytest.raises(ValueError, match=r"no activation, but 1\.0 has 'relu'"):
        conv_ext.revert(model)
    assert [type(m) for m in model.modules()] == before  # nothing was changed
    parametrized.activation = "none"
    model.append(nn.ReLU())
    conv_ext.revert(model)
    assert not any(isinstance(m, cls) or "activation" in vars(m) for m in model.modules())
    torch.testing.assert_close(model(x), y)
    conv_ext.convert(model)[0].activation = "relu"
    assert "activation=relu" in repr(model[0])


def test_convert_leaves_an_activation_of_other_making_alone():
    layer, module, transposed = nn.Conv2d(3, 4, 3), nn.Conv1d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3)
    layer.activation, module.activation, transposed.activation = "leaky", nn.ReLU(), "relu"
    conv_ext.convert(nn.ModuleList([layer, module, transposed]))
    assert [type(m) for m in (layer, module)] == [nn.Conv2d, nn.Conv1d]
    assert type(transposed) is conv_ext.ConvTranspose2d and transposed.activation == "relu"


def test_explain_shows_it():
    x, w, b = tensors(X, W, B)
    shown = conv_ext.explain(x, w, b, **OPTIONS, activation="relu")
    assert shown.problem == conv_ext.explain(x, w, b, **OPTIONS).problem + ", relu"
    with pytest.raises(RuntimeError, match="activation must be one of"):
        conv_ext.explain(x, w, b, **OPTIONS, activation="tanh")
