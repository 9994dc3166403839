"""torch.compile, torch.export, tracing, fake and meta tensors, and torch.library.opcheck."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import conv_ext
from devices import device, randn, tensor

pytestmark = pytest.mark.usefixtures("each_device")
X, W, B = (2, 4, 6, 7), (6, 2, 3, 2), (6,)
OTHER_X = (3, 4, 9, 8)
OPTIONS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
GEOMETRY = ((2, 1), (1, 1, 0, 0), (1, 2), 2)

FUNCTIONS = {
    "conv2d": (lambda m: lambda x, w, b: m.conv2d(x, w, b, **OPTIONS), (X, W, B)),
    "same": (lambda m: lambda x, w, b: m.conv2d(x, w, b, 1, "same", (1, 2), 2), (X, W, B)),
    "unbatched": (lambda m: lambda x, w, b: m.conv2d(x[0], w, b, 2, 1, 1, 2), (X, W, B)),
    "conv_transpose2d": (
        lambda m: lambda x, w, b: m.conv_transpose2d(x, w, b, (2, 1), (1, 0), (1, 0), 2, (1, 2)),
        (X, (4, 3, 3, 2), B),
    ),
    "conv1d": (lambda m: lambda x, w, b: m.conv1d(x.flatten(2), w.flatten(2), b, 2, 1, 2, 2), (X, W, B)),
    "conv_transpose1d": (
        lambda m: lambda x, w, b: m.conv_transpose1d(x.flatten(2), w.flatten(2), b, 2, 1, 1, 2, 3),
        (X, (4, 3, 3, 2), B),
    ),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compilers' own
        yield


def leaves(shapes, dtype=torch.float32):
    return [randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def same_as_torch(name, **compile_options):
    """A compiled function forward and backward, at several sizes and layouts, one graph each."""
    make, (x_shape, *rest) = FUNCTIONS[name]
    compiled = torch.compile(make(conv_ext), fullgraph=True, **compile_options)
    w, b = leaves(rest)
    for shape, memory_format in (
        (x_shape, torch.contiguous_format),
        (OTHER_X, torch.contiguous_format),
        (OTHER_X, torch.channels_last),
    ):
        x = randn(shape).contiguous(memory_format=memory_format).requires_grad_()
        results = []
        for function in (compiled, make(F)):
            y = function(x, w, b)
            results.append((y, torch.autograd.grad(y.sin().sum(), (x, w, b))))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        assert results[0][0].stride() == (results[1][0] if device() == "cpu" else make(conv_ext)(x, w, b)).stride()


@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_forward_and_backward(name, dynamic):
    same_as_torch(name, backend="aot_eager", dynamic=dynamic)


@pytest.mark.parametrize("name", ["same", "unbatched", "conv1d", "conv_transpose1d"])
def test_the_other_forms(name):
    same_as_torch(name, backend="aot_eager", dynamic=True)


def test_inductor():
    same_as_torch("conv2d", backend="inductor", dynamic=True)


def test_no_gradient():
    compiled = torch.compile(FUNCTIONS["conv2d"][0](conv_ext), backend="aot_eager", fullgraph=True)
    x, w, b = leaves((X, W, B))
    with torch.no_grad():
        y = compiled(x, w, b)
    assert not y.requires_grad
    torch.testing.assert_close(y, F.conv2d(x, w, b, **OPTIONS))


def test_dynamic_shapes_are_not_specialised():
    counter = CompileCounter()
    compiled = torch.compile(FUNCTIONS["conv2d"][0](conv_ext), backend=counter, fullgraph=True, dynamic=True)
    # The first sizes occur nowhere else, or Dynamo takes equal ones for one symbol.
    for n, h, w in ((13, 17, 19), (5, 9, 8), (3, 6, 6), (11, 5, 31)):
        compiled(randn(n, 4, h, w), randn(W), randn(B))
    assert counter.frame_count == 1


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_same_tensor_twice_and_frozen_operands(frozen):
    t = randn(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    other = randn(3, 3, 4, 5, dtype=torch.float64)
    twice = torch.compile(lambda t: conv_ext.conv2d(t, t, None, padding=(1, 2)), backend="aot_eager", fullgraph=True)
    once = torch.compile(lambda a, b: conv_ext.conv2d(a, b, None, padding=(1, 2)), backend="aot_eager", fullgraph=True)
    both = torch.autograd.grad(twice(t).sin().sum(), t)
    torch.testing.assert_close(both, torch.autograd.grad(F.conv2d(t, t, padding=(1, 2)).sin().sum(), t))
    args = (other, t) if frozen == 0 else (t, other)
    one = torch.autograd.grad(once(*args).sin().sum(), t)
    torch.testing.assert_close(one, torch.autograd.grad(F.conv2d(*args, padding=(1, 2)).sin().sum(), t))


def scalar(f):
    return lambda *args: f(*args).sin().sum()


TRANSFORMS = {
    "grad": lambda f: grad(scalar(f), (0, 1, 2)),
    "jvp": lambda f: lambda *args: jvp(f, args, tuple(t + 1 for t in args)),
    "hessian": lambda f: hessian(scalar(f), 1),
    "gradients per sample": lambda f: (
        lambda x, w, b: vmap(grad(scalar(f), (0, 1, 2)), (0, None, None))(x[:, None], w, b)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_inside(name):
    make = FUNCTIONS["conv2d"][0]
    args = [randn(shape, dtype=torch.float64) for shape in (X, W, B)]
    compiled = torch.compile(TRANSFORMS[name](make(conv_ext)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), TRANSFORMS[name](make(F))(*args))


def test_double_backward_says_that_it_is_not_supported():
    compiled = torch.compile(FUNCTIONS["conv2d"][0](conv_ext), backend="aot_eager", fullgraph=True)
    x, w, b = leaves((X, W, B))
    (gx,) = torch.autograd.grad(compiled(x, w, b).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(gx.sum(), w)


def test_autocast():
    compiled = torch.compile(FUNCTIONS["conv2d"][0](conv_ext), backend="aot_eager", fullgraph=True)
    x, w, b = leaves((X, W, B))
    with torch.autocast(device(), torch.bfloat16):
        y = compiled(x, w, b)
        eager = FUNCTIONS["conv2d"][0](conv_ext)(x, w, b)
    assert y.dtype == torch.bfloat16 and torch.equal(y, eager)
    grads = torch.autograd.grad(y.float().sin().sum(), (x, w, b))
    assert all(g.dtype == torch.float32 for g in grads)


FORCED = {"cpu": "reference", "cuda": "multiply_add"}  # an algorithm that computes everything


def test_settings_are_guarded():
    graphs, forced = [], FORCED[device()]

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(FUNCTIONS["conv2d"][0](conv_ext), backend=backend, fullgraph=True)
    args = [randn(shape) for shape in (X, W, B)]
    compiled(*args)
    with conv_ext.precision("tf32"), conv_ext.algorithm(forced):
        compiled(*args)
    compiled(*args)
    wanted = [("ieee", "auto"), ("tf32", forced)]
    calls = [next(n for n in g.graph.nodes if n.target is torch.ops.conv_ext.forward.default) for g in graphs]
    assert [call.args[7:9] for call in calls] == wanted


def test_a_setting_inside():
    forced = FORCED[device()]

    def f(x, w):
        with conv_ext.algorithm(forced):
            inside = conv_ext.conv2d(x, w)
        return inside, conv_ext.conv2d(x, w)

    graphs = []
    compiled = torch.compile(f, backend=lambda g, _: graphs.append(g) or g, fullgraph=True)
    compiled(randn(X), randn(6, 4, 3, 2))
    calls = [n for n in graphs[0].graph.nodes if n.target is torch.ops.conv_ext.forward.default]
    assert [call.args[8] for call in calls] == [forced, "auto"]


def test_compiled_autograd():
    x, w, b = leaves((X, W, B))
    f = FUNCTIONS["conv2d"][0](conv_ext)
    expected = torch.autograd.grad(f(x, w, b).sin().sum(), (x, w, b))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        f(x, w, b).sin().sum().backward()
    torch.testing.assert_close((x.grad, w.grad, b.grad), expected)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = conv_ext.Conv2d(4, 6, (3, 2), **OPTIONS)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    layer, dim = Layer().to(device()), torch.export.Dim
    shapes = ({0: dim("N"), 2: dim("H", min=8, max=100), 3: dim("W", min=8, max=100)},)
    program = torch.export.export(layer, (randn(2, 4, 10, 11),), dynamic_shapes=shapes, strict=strict)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [torch.ops.conv_ext.forward.default]
    for size in ((5, 4, 13, 9), (1, 4, 8, 99)):
        x = randn(size)
        assert torch.equal(program.module()(x), layer(x))
        assert torch.equal(program.run_decompositions().module()(x), layer(x))


@pytest.mark.parametrize("stride, kernel, dilation", [(2, 3, 1), ((2, 3), (3, 2), 1), (2, 4, 2), (3, 1, 1)])
def test_export_of_padding_that_follows_from_the_size(stride, kernel, dilation):
    """One program for every remainder of the size by the stride."""
    layer = conv_ext.Conv2d(4, 6, kernel, stride, "same_strided", dilation).to(device())
    dim = torch.export.Dim
    shapes = ({0: dim("N"), 2: dim("H", min=8, max=100), 3: dim("W", min=8, max=100)},)
    program = torch.export.export(layer, (randn(2, 4, 13, 14),), dynamic_shapes=shapes)
    for i in range(6):
        x = randn(1 + i % 3, 4, 8 + i, 16 - i)
        assert torch.equal(program.module()(x), layer(x))


def test_jit_trace():
    layer = Layer().to(device())
    traced = torch.jit.trace(layer, randn(X))
    x = randn(OTHER_X, requires_grad=True)
    y = traced(x)
    assert torch.equal(y, layer(x))
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), x), torch.autograd.grad(layer(x).sin().sum(), x))


RULES = [("same", 1), ("full", 2), ("same_strided", 2), ("same_strided", 3)]
TRACED = {
    **{f"2d {rule} {stride}": lambda rule=rule, stride=stride: conv_ext.Conv2d(4, 6, (3, 2), stride, rule)
       for rule, stride in RULES},
    **{f"1d {rule} {stride}": lambda rule=rule, stride=stride: conv_ext.Conv1d(4, 6, 4, stride, rule)
       for rule, stride in RULES},
    "reflect": lambda: conv_ext.Conv2d(4, 6, 3, 2, "same_strided", padding_mode="reflect", activation="relu"),
    "mapped": lambda: conv_ext.MappedConv2d([[0, 1], [2, 3]], 3, padding="same", dense=False),
    "mapped, dense": lambda: conv_ext.MappedConv2d([[0, 1], [1, 2, 3]], 3, dense=True),
    "transposed": lambda: conv_ext.ConvTranspose2d(4, 6, (3, 2), (2, 3), 1, (1, 2), groups=2),
    "transposed, dilated": lambda: conv_ext.ConvTranspose2d(4, 6, 3, dilation=3, output_padding=2, bias=False),
    "1d transposed": lambda: conv_ext.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2),
    "activation": lambda: conv_ext.Conv2d(4, 6, 3, padding="full", activation="relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_jit_trace_holds_for_every_size(name, tmp_path):
    """Where padding or output follow from the input's size, it is found when the recorded model runs."""
    layer, x = TRACED[name]().to(device()), randn((2, 4, 9) if name.startswith("1d") else (2, 4, 9, 10))
    with conv_ext.algorithm(FORCED[device()]), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # nothing of the traced size becomes a constant
        torch.jit.trace(layer, x).save(tmp_path / "traced.pt")
        wanted = layer(x)
    traced = torch.jit.load(tmp_path / "traced.pt")
    assert torch.equal(traced(x), wanted)  # with the settings of the traced call
    for size in (11, 6):
        other = randn((3, 4, *[size + i for i in range(x.dim() - 2)]), requires_grad=True)
        y, expected = traced(other), layer(other)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.sin().sum(), other), torch.autograd.grad(expected.sin().sum(), other)
        )


def test_jit_trace_under_autocast():
    layer, x = torch.nn.Sequential(TRACED["transposed"](), conv_ext.Conv2d(6, 2, 3, padding="same")), randn(X)
    with torch.autocast(device(), torch.bfloat16), torch.no_grad():
        traced = torch.jit.trace(layer.to(device()), x)
        wanted = layer(x)
    assert traced(x).dtype == torch.bfloat16 and torch.equal(traced(x), wanted)


def test_jit_script_says_that_it_cannot():
    for layer in (TRACED["1d same 1"](), TRACED["transposed"](), TRACED["mapped"](), TRACED["activation"]()):
        for model in (layer, torch.nn.Sequential(layer)):
            with pytest.raises(RuntimeError, match=rf"cannot compile conv_ext.{type(layer).__name__}: trace the model"):
                torch.jit.script(model)
    reverted = conv_ext.revert(torch.nn.Sequential(TRACED["2d same 1"]()))
    assert torch.jit.script(reverted)(torch.randn(X)).shape == (2, 6, 6, 7)


@pytest.mark.parametrize("name", ["conv2d", "conv1d", "conv_transpose2d", "conv_transpose1d"])
def test_symbolic_trace_of_functions(name):
    function = getattr(conv_ext, name)
    traced = torch.fx.symbolic_trace(lambda x, w: function(x, w, None, 2, padding=1))
    (node,) = (n for n in traced.graph.nodes if n.op == "call_function")
    assert node.target is function
    x, w = (randn(shape[: 3 if name.endswith("1d") else 4]) for shape in (X, (4, 4, 3, 2)))
    assert torch.equal(traced(x, w), function(x, w, None, 2, padding=1))


def test_symbolic_trace_of_a_module():
    layer = Layer().to(device())
    traced = torch.fx.symbolic_trace(layer)
    assert conv_ext.conv2d in [n.target for n in traced.graph.nodes]
    x = randn(OTHER_X)
    assert torch.equal(traced(x), layer(x))


def test_make_fx_of_a_gradient():
    def gradients(x, w, b):
        return torch.autograd.grad(conv_ext.conv2d(x, w, b, **OPTIONS).sin().sum(), (x, w, b))

    traced = make_fx(gradients, tracing_mode="symbolic")(*leaves((X, W, B)))
    names = [n.target._opname for n in traced.graph.nodes if getattr(n.target, "namespace", "") == "conv_ext"]
    assert sorted(names) == ["forward", "input_grad", "weight_grad"]
    args = leaves((OTHER_X, W, B))
    torch.testing.assert_close(traced(*args), gradients(*args))


SHAPES = {"forward": (X, W), "input_grad": ((2, 6, 3, 5), W), "weight_grad": ((2, 6, 3, 5), X)}
SIZES = {"forward": (), "input_grad": (X[2:],), "weight_grad": (W[2:],)}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_opcheck(name, dtype, layout):
    def operand(shape):
        t = randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
        if layout == "transposed":
            t = t.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "channels_last":
            t = t.contiguous(memory_format=torch.channels_last)
        return t.requires_grad_()

    a, b = map(operand, SHAPES[name])
    bias = (randn(6).to(dtype).requires_grad_(),) if name == "forward" else ()
    operator = getattr(torch.ops.conv_ext, name).default
    pytest.importorskip("expecttest")  # which opcheck imports
    torch.library.opcheck(operator, (a, b, *bias, *SIZES[name], *GEOMETRY))


def odd_tensor(shape, source):
    """A tensor of that shape with one of the layouts that callers have: permuted, sliced, expanded, with ones."""
    kind = source.choice(["contiguous", "channels_last", "permuted", "sliced", "expanded"])
    if kind == "expanded":
        return randn([1 if source.random() < 0.4 else extent for extent in shape]).expand(shape)
    if kind == "permuted":
        order = source.sample(range(4), 4)
        t = randn([shape[i] for i in order])
        return t.permute([order.index(i) for i in range(4)])
    if kind == "sliced":
        return randn([2 * extent + 1 for extent in shape])[tuple(slice(0, 2 * extent, 2) for extent in shape)]
    memory_format = torch.contiguous_format if kind == "contiguous" else torch.channels_last
    return randn(shape).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("seed", range(4))
def test_fake_results_have_the_real_strides(seed):
    """Sizes of one, empty batches and ambiguous strides included: Inductor relies on the strides to the letter."""
    source = random.Random(seed)
    pick = source.choice
    for _ in range(150):
        n, c, h, w = pick([0, 1, 2]), pick([1, 2, 3]), pick([1, 4, 5]), pick([1, 3, 6])
        k, r, s = pick([1, 2, 4]), pick([1, 2]), pick([1, 3])
        padding = (1, 0, 1, 2)
        p, q = h + 1 - r + 1, w + 3 - s + 1
        shapes = {"forward": ((n, c, h, w), (k, c, r, s)), "input_grad": ((n, k, p, q), (k, c, r, s)),
                  "weight_grad": ((n, k, p, q), (n, c, h, w))}  # fmt: skip
        for name, size in (("forward", (None,)), ("input_grad", ((h, w),)), ("weight_grad", ((r, s),))):
            operands = [odd_tensor(shape, source) for shape in shapes[name]]
            operator = getattr(torch.ops.conv_ext, name)
            rest = (*size, (1, 1), padding, (1, 1), 1)
            real = operator(*operands, *rest)
            with FakeTensorMode() as mode:
                fake = operator(*(mode.from_tensor(t) for t in operands), *rest)
            meta = operator(*(t.to("meta").as_strided(t.shape, t.stride()) for t in operands), *rest)
            layouts = [(t.shape, t.stride(), t.dtype) for t in (real, fake, meta)]
            assert layouts[0] == layouts[1] == layouts[2], (name, [(t.shape, t.stride()) for t in operands])
            if name == "forward":
                theirs = F.conv2d(F.pad(operands[0], (1, 2, 1, 0)), operands[1])
                assert theirs.shape == real.shape


def test_meta_tensors_with_gradients():
    x, w, b = (torch.empty(shape, device="meta", requires_grad=True) for shape in (X, W, B))
    y = conv_ext.conv2d(x, w, b, **OPTIONS)
    assert y.shape == F.conv2d(x, w, b, **OPTIONS).shape and y.device.type == "meta"
    assert [g.shape for g in torch.autograd.grad(y.sum(), (x, w, b))] == [x.shape, w.shape, b.shape]


def test_unbacked_sizes():
    """A size that only the run can tell: no data-dependent error, the rules become assertions of the graph."""

    def f(x, w, keep):
        return conv_ext.conv2d(x[keep], w, None, padding=(1, 0))

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        x, w = randn(5, 4, 6, 7), randn(6, 4, 3, 2)
        for mask in ([1, 0, 1, 1, 0], [0, 1, 0, 0, 0]):
            keep = tensor(mask, dtype=torch.bool)
            torch.testing.assert_close(compiled(x, w, keep), f(x, w, keep))
