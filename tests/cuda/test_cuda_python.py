"""CUDA where there is no GPU: fake tensors on "cuda", autocast's dtypes there, and a build without CUDA kernels.

A torch without CUDA cannot record gradients of such tensors, nor copy them (it asks for the current device), so the
operators of the backward pass are called by their names here.
"""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import conv_ext
from conv_ext import autograd, settings
from passes import DTYPES, PASSES, dtype_name

X, W, B = (2, 4, 6, 7), (6, 2, 3, 2), (6,)
OPTIONS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
GEOMETRY = ((2, 1), (1, 1, 0, 0), (1, 2), 2)
OPERANDS = {  # operator -> two shapes, the size argument
    "forward": (X, W, ()),
    "input_grad": ((2, 6, 3, 5), W, (X[2:],)),
    "weight_grad": ((2, 6, 3, 5), X, (W[2:],)),
}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: there is no CUDA
        yield


def fakes(*shapes, dtype=torch.float32, device="cuda", memory_format=torch.contiguous_format):
    """Fake tensors, for use under a FakeTensorMode; a memory format is for what has four dimensions."""
    formats = (memory_format if len(shape) == 4 else torch.contiguous_format for shape in shapes)
    return [torch.empty(s, dtype=dtype, device=device, memory_format=f) for s, f in zip(shapes, formats)]


@contextlib.contextmanager
def autocast(dtype):
    """torch.autocast("cuda") turns itself off where CUDA is missing: its state alone."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


# ---- fake tensors


def call(name, a, b):
    rest = (None,) if name == "forward" else OPERANDS[name][2]
    return getattr(torch.ops.conv_ext, name)(a, b, *rest, *GEOMETRY)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_results_are_where_the_operands_are(dtype, memory_format):
    results = []
    for device in ("cuda", "cpu"):
        with FakeTensorMode():
            how = dict(dtype=dtype, device=device, memory_format=memory_format)
            operands = {name: fakes(*OPERANDS[name][:2], **how) for name in PASSES}
            found = [call(name, *operands[name]) for name in PASSES]
            found.append(conv_ext.conv2d(*operands["forward"], *fakes(B, dtype=dtype, device=device), **OPTIONS))
        assert all(t.device.type == device for t in found)
        results.append([(t.shape, t.stride(), t.dtype) for t in found])
    assert results[0] == results[1]


def unfilled(*arguments, **options):
    """A layer on the device whose weights nothing has filled."""
    layer = conv_ext.Conv2d(*arguments, **options, device="meta")
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, torch.nn.Parameter(torch.empty(parameter.shape, device="cuda"), requires_grad=False))
    return layer


def test_the_other_functions_and_layers():
    with FakeTensorMode():
        x, w = fakes(X, (4, 3, 3, 2))
        y = conv_ext.conv_transpose2d(x, w, stride=2, groups=2)
        z = conv_ext.conv1d(*fakes((2, 4, 9), (6, 2, 3)), padding=1, groups=2)
        layer = unfilled(4, 6, 3, padding="same", activation="relu")
        for t in (y, z, layer(x)):
            assert t.device.type == "cuda"


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operands_on_two_devices(which, device):
    names = ("input", "weight", "bias")
    with FakeTensorMode():
        operands = fakes(X, W, B)
        operands[which] = torch.empty(operands[which].shape, device=device)
        other = names[which] if which else "weight"
        places = (device, "cuda:0") if which == 0 else ("cuda:0", device)
        message = f"on the same device, but got input on {places[0]} and {other} on {places[1]}"
        with pytest.raises(RuntimeError, match=message):
            conv_ext.conv2d(*operands, **OPTIONS)
        with pytest.raises(RuntimeError, match=message):
            torch.ops.conv_ext.forward(*operands, *GEOMETRY)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn], ids=dtype_name)
def test_dtypes_without_kernels(dtype):
    with FakeTensorMode():
        x, w = (torch.empty(shape, dtype=dtype, device="cuda") for shape in (X, W))
        with pytest.raises(NotImplementedError, match="is not implemented for .*; supported: float32"):
            conv_ext.conv2d(x, w, groups=2)


@pytest.mark.parametrize("name", PASSES)
def test_tracing(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        graph = make_fx(lambda a, b: call(name, a, b))(*fakes(*OPERANDS[name][:2])).graph
    (node,) = (n for n in graph.nodes if getattr(n.target, "namespace", "") == "conv_ext")
    assert node.target._opname == name and node.meta["val"].device.type == "cuda"


def test_compiling():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with FakeTensorMode():
        leaves = fakes(X, W, B)
        y = torch.compile(lambda *args: conv_ext.conv2d(*args, **OPTIONS), backend=backend, fullgraph=True)(*leaves)
    (node,) = (n for n in graphs[0].graph.nodes if n.target is torch.ops.conv_ext.forward.default)
    assert y.device.type == "cuda" and node.meta["example_value"].device.type == "cuda"
    assert node.args[7:9] == (settings.torch_precision("cuda"), "auto")


@pytest.mark.parametrize("strict", [False, True])
def test_exporting(strict):
    with FakeTensorMode():
        layer, (x,) = unfilled(4, 6, (3, 2), **OPTIONS), fakes(X)
        program = torch.export.export(layer, (x,), strict=strict)
    (node,) = (n for n in program.graph.nodes if n.op == "call_function")
    assert node.target is torch.ops.conv_ext.forward.default and node.meta["val"].device.type == "cuda"


# ---- settings


def test_the_precision_is_that_of_cudnns_convolutions():
    """TF32 is torch's default there; what is set for the CPU does not matter."""
    cudnn = torch.backends.cudnn
    assert cudnn.allow_tf32 and settings.current_precision("cuda") == "tf32"
    cudnn.allow_tf32 = False
    try:
        assert settings.current_precision("cuda") == "ieee"
    finally:
        cudnn.allow_tf32 = True
    with conv_ext.precision("ieee"):
        assert settings.current_precision("cuda") == "ieee"


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("dtype", DTYPES[:5], ids=dtype_name)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_autocast_casts_what_torch_casts(name, dtype, target):
    results = []
    shapes = (X, W, B) if name == "conv2d" else (X, (4, 3, 3, 2))
    for module in (conv_ext, F):
        with FakeTensorMode():
            leaves = fakes(*shapes, dtype=dtype)
            with autocast(target):
                y = getattr(module, name)(*leaves, groups=2)
        results.append((y.dtype, y.shape, y.device))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", PASSES)
def test_autocast_of_operators(name):
    with FakeTensorMode(), autocast(torch.bfloat16):
        y = call(name, *fakes(*OPERANDS[name][:2]))
        assert y.dtype == torch.bfloat16 and y.device.type == "cuda"
        assert call(name, *fakes(*OPERANDS[name][:2], device="cpu")).dtype == torch.float32
        inside = getattr(autograd._Differentiable, name)  # what a backward inside such a block calls
        rest = (None,) if name == "forward" else OPERANDS[name][2]
        assert inside(*fakes(*OPERANDS[name][:2]), *rest, *GEOMETRY).dtype == torch.float32


# ---- a build without kernels


@pytest.mark.skipif(conv_ext.build_info()["cuda"], reason="this build holds CUDA kernels")
@pytest.mark.parametrize("name", PASSES)
def test_a_build_without_cuda_kernels_says_how_to_get_them(name):
    """The kernel of the CUDA key, which takes tensors of any device when it is asked directly.

    From a bare operator it is a RuntimeError, which torch's stable interface makes of any; the fast road has its class.
    """
    first, second, size = OPERANDS[name]
    a, b = torch.randn(first), torch.randn(second)
    operator = getattr(torch.ops.conv_ext, name).default
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    rest = (None,) if name == "forward" else size
    with pytest.raises(RuntimeError, match="built without CUDA kernels.*nvcc.*CONV_EXT_CUDA=1 python -m pip"):
        operator.redispatch(cuda, a, b, *rest, *GEOMETRY)
    with pytest.raises(RuntimeError, match="non-positive stride"):  # what is wrong with the call comes first
        operator.redispatch(cuda, a, b, *rest, (0, 1), *GEOMETRY[1:])
