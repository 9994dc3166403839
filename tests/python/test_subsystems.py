"""The rest of PyTorch around a convolution: autocast, checkpointing, hooks, modes, overrides, needless gradients."""

import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import conv_ext
from calls import Calls
from conv_ext import autograd
from devices import device, randn

pytestmark = pytest.mark.usefixtures("each_device")
OPTIONS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
TRANSPOSED = dict(stride=(2, 3), padding=(1, 0), output_padding=(0, 1), groups=2)
OF_ONE_ROW = dict(stride=3, padding=1, output_padding=1, groups=2)
SHAPES = {
    "conv2d": ((2, 4, 6, 7), (6, 2, 3, 2), (6,)),
    "conv_transpose2d": ((2, 4, 3, 5), (4, 3, 3, 2), (6,)),
    "conv_transpose1d": ((2, 4, 5), (4, 3, 3), (6,)),
}
FUNCTIONS = list(SHAPES)


def call(name, *operands, module=conv_ext):
    options = {"conv2d": OPTIONS, "conv_transpose2d": TRANSPOSED, "conv_transpose1d": OF_ONE_ROW}[name]
    return getattr(module, name)(*operands, **options)


def leaves(name, dtype=torch.float32):
    return [randn(shape, dtype=dtype, requires_grad=True) for shape in SHAPES[name]]


def gradients(y, operands):
    return torch.autograd.grad((y.abs() ** 2).float().mean(), operands)


# autocast


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64], ids=str
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_casts_what_torch_casts(name, dtype, target):
    results = []
    operands = leaves(name, dtype)
    for module in (conv_ext, F):
        with torch.autocast(device(), target):
            y = call(name, *operands, module=module)
        results.append((y, *gradients(y, operands)))
    assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]]
    rough = target in (results[0][0].dtype, dtype) or dtype in (torch.bfloat16, torch.float16)
    # Two roundings of either side: the bias and the gradients are rounded once more.
    tolerance = dict(rtol=4 * torch.finfo(target).eps, atol=4 * torch.finfo(target).eps) if rough else {}
    torch.testing.assert_close(*results, **tolerance)


def test_autocast_of_mixed_operands():
    x, w, b = leaves("conv2d")
    with torch.autocast(device(), torch.bfloat16):
        y = call("conv2d", x, w.bfloat16(), b)
        nested = conv_ext.conv2d(y, randn(4, 6, 1, 1))
        with torch.autocast(device(), enabled=False):
            off = call("conv2d", x, w, b)
        with pytest.raises(RuntimeError, match="should be the same"):
            call("conv2d", x.double(), w, b)
        with pytest.raises(RuntimeError, match="should be the same"):
            call("conv_transpose2d", *(t.double() if i < 2 else t for i, t in enumerate(leaves("conv_transpose2d"))))
    assert (y.dtype, nested.dtype, off.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["forward", "input_grad", "weight_grad"])
def test_autocast_of_operators(name):
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    x, w, g = randn(2, 3, 5, 6), randn(4, 3, 2, 3), randn(2, 4, 4, 4)
    args = {"forward": (x, w, randn(4)), "input_grad": (g, w, (5, 6)), "weight_grad": (g, x, (2, 3))}[name]
    operator = getattr(torch.ops.conv_ext, name)
    rounded = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in args]
    with torch.autocast(device(), torch.bfloat16):
        assert torch.equal(operator(*args, *geometry), operator(*rounded, *geometry))
    args[0].requires_grad_()
    with torch.autocast(device(), torch.bfloat16):
        y = operator(*args, *geometry)
    (grad,) = torch.autograd.grad(y.sum(), args[0])
    assert y.dtype == torch.bfloat16 and grad.dtype == torch.float32 and grad.abs().sum() > 0


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_of_operands_on_several_devices(name, first):
    """One on a device of autocast brings the call there, whichever it is; the error is that of a call without."""
    operands = [t.detach() for t in leaves(name)]
    operands[first] = operands[first].to("meta")
    words = {}
    for enabled in (False, True):
        casting = torch.autocast(device(), torch.bfloat16, enabled=enabled)
        with casting, pytest.raises(RuntimeError, match="same device") as error:
            call(name, *operands)
        words[enabled] = str(error.value)
    assert words[True] == words[False]


class Own(torch.Tensor):
    pass


@pytest.mark.parametrize("mode", ["plain", "autocast", "subclass", "vmap"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_class_of_a_dtypes_error_in_inference_mode(name, mode):
    """Which leaves out the key where the operators' class is chosen."""
    operands = [t.detach().to(torch.int32) for t in leaves(name)]
    if mode == "subclass":
        operands[0] = operands[0].as_subclass(Own)
    refused = pytest.raises(NotImplementedError, match="not implemented for int32; supported: float32")
    casting = torch.autocast(device(), torch.bfloat16, enabled=mode == "autocast")
    with torch.inference_mode(), casting, refused:
        torch.vmap(lambda _: call(name, *operands))(torch.zeros(2)) if mode == "vmap" else call(name, *operands)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_leaves_the_backward_pass_alone(name):
    operands = leaves(name)
    y = call(name, *operands)
    expected = gradients(y, operands)
    y = call(name, *operands)
    with torch.autocast(device(), torch.bfloat16):  # a backward inside the block, of a forward that was outside
        loss = (y.abs() ** 2).mean()
        inside = torch.autograd.grad(loss, operands, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(inside, expected))


# saving, recomputing


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_checkpoint(name, use_reentrant):
    operands = leaves(name)
    y = checkpoint(lambda *args: call(name, *args).tanh(), *operands, use_reentrant=use_reentrant)
    again = call(name, *operands).tanh()
    assert torch.equal(y, again)
    for tensor in operands:
        tensor.grad = None
    y.sin().sum().backward()
    for got, wanted in zip([t.grad for t in operands], torch.autograd.grad(again.sin().sum(), operands)):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_saved_tensor_hooks(name):
    operands, packed = leaves(name), []
    expected = gradients(call(name, *operands), operands)

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.double()

    with saved_tensors_hooks(pack, lambda tensor: tensor.float()):
        y = call(name, *operands)
    assert {operand.numel() for operand in operands[:2]} <= {shape.numel() for shape in packed}
    assert all(torch.equal(a, b) for a, b in zip(gradients(y, operands), expected))
    with save_on_cpu():
        y = call(name, *operands)
    assert all(torch.equal(a, b) for a, b in zip(gradients(y, operands), expected))


def test_the_same_tensor_changed_in_place():
    """On the plain road and on the operator's: what backward needs is checked."""
    for entrance in (
        lambda x, w: conv_ext.conv2d(x, w),
        lambda x, w: torch.ops.conv_ext.forward(x, w, None, (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ):
        x, w = randn(1, 2, 4, 5), randn(3, 2, 2, 3, requires_grad=True)
        y = entrance(x, w)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_retain_graph_and_a_second_backward():
    x, w, b = leaves("conv2d")
    y = call("conv2d", x, w, b)
    first = torch.autograd.grad(y.sum(), (x, w, b), retain_graph=True)
    second = torch.autograd.grad(y.sum(), (x, w, b))
    assert all(torch.equal(a, c) for a, c in zip(first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), (x, w, b))


# modes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inference_mode(name):
    operands = leaves(name)
    expected = call(name, *operands)
    with torch.inference_mode():
        y = call(name, *operands)
        made_inside = call(name, *(t.clone() for t in operands))
    assert torch.equal(y, expected) and y.is_inference() and not y.requires_grad
    assert torch.equal(made_inside, expected)
    with torch.no_grad():  # an inference tensor outside
        assert torch.equal(call(name, *(t.detach() for t in operands)), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_deterministic_algorithms_refuse_nothing(name):
    operands = leaves(name)
    expected = gradients(call(name, *operands), operands)
    torch.use_deterministic_algorithms(True)
    try:
        got = gradients(call(name, *operands), operands)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_anomaly_mode_names_the_call():
    x, w, b = leaves("conv2d")
    with pytest.warns(UserWarning) as warned, torch.autograd.detect_anomaly():
        y = call("conv2d", x, w * float("nan"), b)  # nothing but the input's gradient becomes NaN
        with pytest.raises(RuntimeError, match="'ConvExtForwardBackward' returned nan values"):
            y.sum().backward()
    assert any("Traceback of forward call" in str(w.message) for w in warned)


def test_hooks_on_tensors_and_nodes():
    x, w, b = leaves("conv2d")
    y, seen = call("conv2d", x, w, b), []
    y.register_hook(lambda g: seen.append("tensor"))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append("node"))
    w.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    y.sum().backward()
    assert seen == ["tensor", "node", "accumulated"]


class Recorder(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


class Tagged(torch.Tensor):
    """A subclass of the simplest kind: torch's own operations give it back."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_function(name):
    operands = [t.detach() for t in leaves(name)]
    expected = call(name, *operands)
    with Recorder() as recorder:
        assert torch.equal(call(name, *operands), expected)
    assert getattr(conv_ext, name) in recorder.functions
    for which in range(3):
        tagged = [t.as_subclass(Tagged) if i == which else t for i, t in enumerate(operands)]
        y = call(name, *tagged)
        assert type(y) is Tagged and torch.equal(y.as_subclass(torch.Tensor), expected)


class Unlike:
    """No tensor at all, but with its own idea of every function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func.__name__


def test_overrides_come_before_every_check():
    assert conv_ext.conv2d(Unlike(), "no weight", stride=None) == "conv2d"
    assert conv_ext.conv1d(randn(2), Unlike(), padding=2.5) == "conv1d"
    assert conv_ext.conv_transpose2d(1, 2, Unlike()) == "conv_transpose2d"
    assert conv_ext.conv_transpose1d(1, Unlike(), None, "x") == "conv_transpose1d"


@pytest.mark.parametrize(
    "needed, computed",
    [
        ((True, True, True), ["input_grad", "weight_grad"]),
        ((True, False, False), ["input_grad"]),
        ((False, True, True), ["weight_grad"]),
        ((False, False, True), []),
    ],
    ids=str,
)
@pytest.mark.parametrize("entrance", ["public", "plain", "operator"])
def test_only_the_gradients_that_are_needed_are_computed(entrance, needed, computed, monkeypatch):
    operands = [t.detach().requires_grad_(n) for t, n in zip(leaves("conv2d"), needed)]
    if entrance == "operator":
        y = torch.ops.conv_ext.forward(*operands, (2, 1), (1, 1, 0, 0), (1, 2), 2)
    else:
        y = call("conv2d", *operands)
    counted = []
    if entrance == "plain":  # below the dispatcher: count the kernels themselves

        class Counted:
            road = staticmethod(autograd._C.road)

        for name in ("forward", "input_grad", "weight_grad"):
            kernel = getattr(autograd._C, name)
            count = lambda *args, name=name, kernel=kernel: counted.append(name) or kernel(*args)  # noqa: E731
            setattr(Counted, name, staticmethod(count))
        monkeypatch.setattr(autograd, "_C", Counted)
        y.sum().backward()
    else:
        with Calls() as calls:
            y.sum().backward()
        counted = calls.names
    assert counted == computed
    assert [t.grad is not None for t in operands] == list(needed)


def test_the_transposed_form_computes_only_what_is_needed():
    x, w, b = leaves("conv_transpose2d")
    for needed, computed in (((True, False), ["forward"]), ((False, True), ["weight_grad"])):
        x.requires_grad_(needed[0]), w.requires_grad_(needed[1])
        y = call("conv_transpose2d", x, w, b)
        with Calls() as calls:
            y.sum().backward()
        assert calls.names == computed


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer holds references")
def test_calls_leak_nothing():
    x, w, b = leaves("conv2d")

    def everything():
        y = call("conv2d", x, w, b)
        torch.autograd.grad(sum(g.sum() for g in torch.autograd.grad(y.sin().sum(), (x, w, b), create_graph=True)), x)
        torch.func.hessian(lambda w: call("conv2d", x[:1], w, b).sum())(w)

    counted = [sys.getrefcount(t) for t in (x, w, b)]
    for _ in range(3):
        everything()
    for _ in range(100):  # a device's own thread may still hold the last graph when backward has returned
        if [sys.getrefcount(t) for t in (x, w, b)] == counted:
            break
        time.sleep(0.05)
    assert [sys.getrefcount(t) for t in (x, w, b)] == counted
