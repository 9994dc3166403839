"""Every bad call is refused with the right class and words, whatever the tensors; and the process goes on.

The operators and the public functions are asked with real, meta and fake tensors, which must agree. The public
functions are compared with torch's own wherever torch refuses the call as well.
"""

import contextlib
import re
import resource
import threading

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import conv_ext
from bad_calls import GOOD, GOOD_PUBLIC, OPERATORS, PUBLIC, T, W, X, value_of
from passes import PASSES, call, operands, same_bits
from problems import SMALL, THREADED


def raised(function, good, entry, kind):
    """What a call of the changed arguments raises."""
    if kind == "fake":
        with FakeTensorMode():
            return raised(function, good, entry, None)
    arguments = {name: value_of(value, kind) for name, value in {**good, **entry.changes}.items()}
    try:
        result = function(**arguments)
    except Exception as error:
        return error
    pytest.fail(f"not refused: {entry}, result {type(result)} {getattr(result, 'shape', '')}")


def has_words(error, words):
    pattern = ".*".join(re.escape(part.strip()) for part in words.split("..."))
    return re.search(pattern, str(error), re.DOTALL) is not None


def check_entry(function, good, entry):
    errors = {kind: raised(function, good, entry, kind) for kind in entry.kinds}
    for kind, error in errors.items():
        assert isinstance(error, entry.error), f"{kind}: {error!r}"
        assert str(error) and has_words(error, entry.words), f"{kind}: {error}"
    assert len({type(error) for error in errors.values()}) == 1, errors
    assert len({str(error) for error in errors.values()}) == 1, errors
    return errors["real"]


@pytest.mark.parametrize("name", PASSES)
def test_the_good_operator_calls_are_good(name):
    shapes = set()
    for kind in ("real", "meta"):
        arguments = {n: value_of(v, kind) for n, v in GOOD[name].items()}
        shapes.add(getattr(torch.ops.conv_ext, name)(**arguments).shape)
    assert len(shapes) == 1


@pytest.mark.parametrize("entry", OPERATORS, ids=str)
def test_operators(entry):
    check_entry(getattr(torch.ops.conv_ext, entry.where), GOOD[entry.where], entry)


@pytest.mark.parametrize("name", GOOD_PUBLIC)
def test_the_good_public_calls_are_good(name):
    arguments = {n: value_of(v, "real") for n, v in GOOD_PUBLIC[name].items()}
    assert getattr(conv_ext, name)(**arguments).shape == getattr(F, name)(**arguments).shape


@pytest.mark.parametrize("entry", PUBLIC, ids=str)
def test_public_functions(entry):
    good = GOOD_PUBLIC[entry.where]
    error = check_entry(getattr(conv_ext, entry.where), good, entry)
    if entry.torch_says is not None:
        theirs = raised(getattr(F, entry.where), good, entry, "real")
        assert type(error) is type(theirs), theirs
        assert has_words(theirs, entry.torch_says), theirs


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_bad_call_that_needs_gradients(requires_grad):
    """The roads with and without autograd refuse alike."""
    x, w = torch.ones(2, 5, 6, 7), torch.ones(6, 4, 3, 2, requires_grad=requires_grad)
    with pytest.raises(RuntimeError, match="Given groups=1.*expected input"):
        conv_ext.conv2d(x, w)


@pytest.mark.parametrize("name", GOOD_PUBLIC)
def test_missing_and_positional_arguments(name):
    function, theirs = getattr(conv_ext, name), getattr(F, name)
    x = torch.ones(2, 4, 6, 7)
    for arguments in ((), (x,), (x, x, None, 1, 0, 1, 1, 1, 1)):
        for called in (function, theirs):
            with pytest.raises(TypeError):
                called(*arguments)


# ---- odd, but accepted


@pytest.mark.parametrize(
    "stride",
    [2, (2,), [2], (2, 2), [2, 2], torch.tensor(2), torch.tensor([2]), torch.Size([2, 2]), torch.tensor(True)],
    ids=str,
)
def test_forms_that_torch_accepts(stride):
    x, w = torch.rand(2, 4, 6, 7), torch.rand(6, 4, 3, 2)
    wanted = F.conv2d(x, w, None, int(stride) if isinstance(stride, torch.Tensor) else stride)
    for arguments in ({"stride": stride}, {"stride": 2, "padding": stride}, {"stride": 2, "dilation": stride}):
        torch.testing.assert_close(conv_ext.conv2d(x, w, **arguments), F.conv2d(x, w, **arguments))
    assert conv_ext.conv2d(x, w, stride=stride).shape == wanted.shape


SEQUENCES = [
    ({"w": (4, 3, 41)}, "Calculated padded input size per channel: (20). Kernel size: (41). Kernel size can't be"),
    ({"w": (4, 2, 3)}, "weight of size [4, 2, 3], expected input[2, 3, 20] to have 2 channels, but got 3"),
    ({"b": (5,)}, "Given weight of size [4, 3, 3], expected bias to be 1-dimensional with 4 elements, but got bias of"),
    ({"w": (4, 3, 0)}, "kernel size must be positive, got (0)"),
    ({"stride": 0}, "stride must be positive, got (0)"),
    ({"padding": -1}, "(left, right) must not be negative, got (-1, -1)"),
    ({"dilation": 2**62}, "effective kernel size exceeds 2^63 - 1: kernel size (3), dilation (4611686018427387904)"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("changed, message", SEQUENCES)
def test_errors_of_conv1d_speak_of_one_dimension(changed, message, device):
    sizes = {"w": (4, 3, 3), "b": (4,)} | {name: changed[name] for name in ("w", "b") if name in changed}
    named = {name: value for name, value in changed.items() if name not in ("w", "b")}
    for grad in (False, True):
        w, b = (torch.empty(sizes[name], device=device, requires_grad=grad) for name in ("w", "b"))
        with pytest.raises(RuntimeError, match=re.escape(message)):
            conv_ext.conv1d(torch.empty(2, 3, 20, device=device), w, b, **named)


TRANSPOSED_SEQUENCES = [
    ({"w": (2, 4, 3)}, "weight of size [2, 4, 3], expected input[2, 3, 20] to have 2 channels, but got 3"),
    ({"b": (5,)}, "Given transposed=1, weight of size [3, 4, 3], expected bias to be 1-dimensional with 4 elements"),
    ({"w": (3, 4, 0)}, "kernel size must be positive, got (0)"),
    ({"stride": 0}, "stride must be positive, got (0)"),
    ({"padding": -1}, "(left, right) must not be negative, got (-1, -1)"),
    ({"stride": 2, "output_padding": 2}, "but got output_padding (2), stride (2), dilation (1)"),
    ({"padding": 12}, "Given input size per channel: (20). Calculated output size per channel: (-2). Output size is"),
    ({"dilation": 2**62}, "output size exceeds 2^63 - 1: input of size [2, 3, 20], stride (1), dilation (461168601842"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("changed, message", TRANSPOSED_SEQUENCES)
def test_errors_of_conv_transpose1d_speak_of_one_dimension(changed, message, device):
    sizes = {"w": (3, 4, 3), "b": (4,)} | {name: changed[name] for name in ("w", "b") if name in changed}
    named = {name: value for name, value in changed.items() if name not in ("w", "b")}
    for grad in (False, True):
        w, b = (torch.empty(sizes[name], device=device, requires_grad=grad) for name in ("w", "b"))
        with pytest.raises(RuntimeError, match=re.escape(message)):
            conv_ext.conv_transpose1d(torch.empty(2, 3, 20, device=device), w, b, **named)


def test_numpy_integers():
    numpy = pytest.importorskip("numpy")
    x, w = torch.rand(2, 4, 6, 7), torch.rand(6, 2, 3, 2)
    two = numpy.int64(2)
    got = conv_ext.conv2d(x, w, None, two, (two, numpy.int32(1)), numpy.array(1)[()], two)
    torch.testing.assert_close(got, F.conv2d(x, w, None, 2, (2, 1), 1, 2))


# ---- in the backward pass


def layer():
    x, w = torch.rand(2, 4, 6, 7, requires_grad=True), torch.rand(6, 4, 3, 2, requires_grad=True)
    return x, w, conv_ext.conv2d(x, w)


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_an_operand_changed_in_place_before_backward(changed):
    x, w, y = layer()
    with torch.no_grad():
        (x if changed == "input" else w).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("left", [0, 64])
@pytest.mark.parametrize("name", ["input", "weight", "bias", "grad_output"])
def test_memory_that_is_freed_underneath(name, left):
    """As sharded training frees it: the tensor keeps its sizes, its storage has none or too few bytes."""
    x, w, b, y = torch.randn(2, 4, 8, 8), torch.randn(40, 4, 3, 3), torch.randn(40), torch.randn(2, 40, 6, 6)
    freed = {"input": x, "weight": w, "bias": b, "grad_output": y}[name]
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    calls = {
        "bias": [lambda: torch.ops.conv_ext.forward(x, w, b, *geometry), lambda: conv_ext.conv2d(x, w, b)],
        "input": [lambda: torch.ops.conv_ext.weight_grad(y, x, (3, 3), *geometry)],
        "weight": [lambda: conv_ext.conv_transpose2d(y, w)],
        "grad_output": [
            lambda: torch.ops.conv_ext.input_grad(y, w, (8, 8), *geometry),
            lambda: torch.ops.conv_ext.weight_grad(y, x, (3, 3), *geometry),
        ],
    }
    if name in ("input", "weight"):
        calls[name] += calls["bias"]
    freed.untyped_storage().resize_(left)
    for compute in calls[name]:
        with pytest.raises(RuntimeError, match=f"bytes of its storage, which has {left}"):
            compute()


def test_memory_that_is_freed_before_backward():
    x, w = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    y = conv_ext.conv2d(x, w).sum()
    w.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="The memory of weight is not allocated"):
        y.backward()


def test_a_second_backward():
    _, _, y = layer()
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_a_gradient_of_the_wrong_shape():
    _, _, y = layer()
    with pytest.raises(RuntimeError, match="[Mm]ismatch in shape"):
        y.backward(torch.ones(2, 6, 4, 5))


# ---- the process goes on


def resident_pages():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1])


@pytest.mark.parametrize("pass_name", PASSES)
def test_out_of_memory(pass_name):
    """2^53 bytes and more: beyond any address space. Then a call that works, and nothing is kept of the others."""
    images, channels = 2**40, 2**6
    huge = {
        "forward": {"input": T((images, 4, 6, 7)), "weight": T((channels, 4, 3, 2)), "bias": None},
        "input_grad": {"grad_output": T((images, 6, 5, 9)), "weight": T((6, channels, 3, 2))},
        "weight_grad": {"grad_output": T((1, 2**28, 5, 9)), "input": T((1, 2**28, 6, 7))},
    }[pass_name]
    arguments = {n: value_of(v, "real") for n, v in {**GOOD[pass_name], **huge}.items()}
    z = SMALL[0]
    a, b = operands(pass_name, z, torch.float32, "signed")
    before, wanted = resident_pages(), call(pass_name, a, b, z)
    for _ in range(100):
        with pytest.raises(RuntimeError, match="[Mm]emory|allocate"):
            getattr(torch.ops.conv_ext, pass_name)(**arguments)
    assert same_bits(call(pass_name, a, b, z), wanted)
    assert resident_pages() - before < 2**23 // resource.getpagesize()


def test_bad_calls_leave_nothing_behind():
    x, w = X.make("real"), W.make("real")
    for _ in range(200):
        with pytest.raises(RuntimeError):
            conv_ext.conv2d(x, w, stride=0)
    before = resident_pages()
    for _ in range(2000):
        with contextlib.suppress(RuntimeError):
            conv_ext.conv2d(x, w, stride=0)
    assert resident_pages() - before < 2**22 // resource.getpagesize()


def test_four_threads_at_once():
    """Each thread makes calls of all passes, its own among those of the others, some of them bad."""
    torch.set_num_threads(2)
    work = [(p, z, *operands(p, z, torch.float32, "signed")) for z in SMALL + THREADED[:3] for p in PASSES]
    wanted = [call(p, a, b, z) for p, z, a, b in work]
    failures, barrier = [], threading.Barrier(4)

    def body(offset):
        barrier.wait()
        for turn in range(3):
            for i in range(len(work)):
                i = (i * (offset + 1) + offset + turn) % len(work)
                pass_name, z, a, b = work[i]
                if not same_bits(call(pass_name, a, b, z), wanted[i]):
                    failures.append((pass_name, z))
                try:
                    conv_ext.conv2d(a, b, stride=0)
                    failures.append("a bad call was accepted")
                except RuntimeError:
                    pass

    threads = [threading.Thread(target=body, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_four_threads_of_layers_with_gradients():
    torch.set_num_threads(2)

    def gradients(seed):
        generator = torch.Generator().manual_seed(seed)
        x, w, b = (torch.rand(s, generator=generator, requires_grad=True) for s in ((3, 4, 17, 19), (6, 2, 3, 2), (6,)))
        y = conv_ext.conv2d(x, w, b, (1, 2), (2, 1), 1, 2)
        return torch.autograd.grad(y.square().sum(), (x, w, b))

    wanted = [gradients(seed) for seed in range(4)]
    got = [[] for _ in range(4)]

    def body(seed):
        for _ in range(10):
            got[seed].append(gradients(seed))

    threads = [threading.Thread(target=body, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert len(got[seed]) == 10
        assert all(same_bits(a, b) for grads in got[seed] for a, b in zip(grads, wanted[seed]))
