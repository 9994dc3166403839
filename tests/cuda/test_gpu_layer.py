"""On a GPU, around the kernels: roads, the functions beside the CPU's, errors, streams, graphs, memory, several GPUs.

Autograd, torch.func, compilation, modules and the rest run there from their own files, by the fixture `each_device`.
"""

import threading

import pytest
import torch
from torch import nn

import conv_ext
from bad_calls import GOOD, GOOD_PUBLIC, OPERATORS, PUBLIC
from conv_ext import _C
from conv_ext.__main__ import main
from conv_ext.models import lenet5
from passes import DTYPES, PASSES, call, dtype_name, fill, laid_out, operands, same_bits
from problems import SMALL, Problem
from test_epilogue import BEHIND, assert_behind
from test_epilogue import run as run_forward
from test_errors import raised
from tolerance import assert_exact, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not conv_ext.build_info()["cuda"], reason="this build holds no CUDA kernels"),
]
several_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
LAYER = Problem("layer", 3, 48, 29, 31, 80, 3, 3, (1, 2), (1, 1, 1, 1))


# ---- the functions


CALLS = {
    "conv2d": ("conv2d", (2, 4, 9, 10), (6, 2, 3, 4), 6, dict(stride=(2, 1), padding=(1, 2), groups=2)),
    "same": ("conv2d", (2, 4, 9, 10), (6, 4, 3, 4), 6, dict(padding="same", dilation=(1, 2))),
    "depthwise": ("conv2d", (2, 24, 9, 10), (24, 1, 3, 3), 24, dict(padding=1, groups=24)),
    "one image": ("conv2d", (4, 9, 10), (6, 4, 3, 2), 6, dict(stride=2)),
    "no images": ("conv2d", (0, 4, 9, 10), (6, 4, 3, 2), 6, {}),
    "conv1d": ("conv1d", (2, 4, 13), (6, 2, 3), 6, dict(stride=2, padding=1, dilation=2, groups=2)),
    "conv_transpose1d": ("conv_transpose1d", (2, 6, 5), (6, 2, 3), 4, dict(stride=2, groups=2, output_padding=1)),
    "conv_transpose2d": (
        "conv_transpose2d",
        (2, 6, 5, 4),
        (6, 2, 3, 2),
        4,
        dict(stride=(2, 3), groups=2, output_padding=1),
    ),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("name", CALLS)
def test_values_gradients_and_strides_are_the_cpus(name, dtype, memory_format):
    """Small integers: every sum is exact on both devices."""
    function, *shapes, k, options = CALLS[name]
    results = []
    for device in ("cpu", "cuda"):
        made = [fill(shape, dtype, "integers", i).to(device) for i, shape in enumerate((*shapes, (k,)))]
        made = [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in made]
        leaves = [t.requires_grad_() for t in made]
        y = getattr(conv_ext, function)(*leaves, **options)
        g = fill(tuple(y.shape), dtype, "integers", 9).to(device)
        found = [y.detach(), *torch.autograd.grad(y, leaves, g.contiguous(memory_format=torch.preserve_format))]
        with torch.no_grad():
            found.append(getattr(conv_ext, function)(*leaves, **options))
        assert all(t.device.type == device for t in found)
        results.append(found)
    for ours, theirs in zip(*results):
        assert ours.stride() == theirs.stride() and ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs.cpu())


def test_plain_tensors_take_the_fast_road():
    x, w = torch.randn(1, 2, 5, 6, device="cuda"), torch.randn(3, 2, 3, 3, device="cuda")
    b = torch.randn(3, device="cuda", requires_grad=True)
    general, plain_gradient, plain = _C.Road
    assert _C.road(x, w, None) is plain and _C.road(x, w, b) is plain_gradient
    with torch.no_grad():
        assert _C.road(x, w, b) is plain
    assert _C.road(x, w.cpu(), None) is general and _C.road(x, w, b.cpu()) is general
    with torch.autocast("cuda", torch.bfloat16):
        assert _C.road(x, w, None) is general
    with torch.autocast("cpu", torch.bfloat16):
        assert _C.road(x, w, None) is plain
    assert conv_ext.conv2d(x, w, b).grad_fn.name() == "ConvExtForwardBackward"
    precision = conv_ext.settings.current_precision("cuda")
    general = torch.ops.conv_ext.forward(x, w, b, (1, 1), (0,) * 4, (1, 1), 1, precision)
    assert torch.equal(conv_ext.conv2d(x, w, b), general)


def test_explain_and_info(capsys):
    x, w = torch.randn(1, 2, 5, 6, device="cuda"), torch.randn(3, 2, 3, 3, device="cuda")
    major, minor = torch.cuda.get_device_capability()
    assert conv_ext.explain(x, w).forward.isa == f"sm_{major}{minor}" and conv_ext.build_info()["cuda"]
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert torch.cuda.get_device_name() in printed and "run here" in printed and "bfloat16" in printed


# ---- errors


ENTRIES = [e for e in OPERATORS + PUBLIC if "meta" in e.kinds]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_bad_call_is_refused_as_on_the_cpu(entry):
    is_operator = entry.where in GOOD
    function = getattr(torch.ops.conv_ext if is_operator else conv_ext, entry.where)
    good = (GOOD if is_operator else GOOD_PUBLIC)[entry.where]
    there, here = raised(function, good, entry, "cuda"), raised(function, good, entry, "real")
    assert type(there) is type(here) and str(there) == str(here)


@pytest.mark.parametrize("which", range(3))
def test_operands_on_two_devices(which):
    made = [torch.randn(shape, device="cuda") for shape in ((2, 4, 6, 7), (6, 4, 3, 2), (6,))]
    made[which] = made[which].cpu()
    for function in (conv_ext.conv2d, lambda x, w, b: conv_ext.conv_transpose2d(x.mT, w.transpose(0, 1), b)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            function(*made)


def test_out_of_memory_and_after():
    x, w = torch.zeros((), device="cuda").expand(2**33, 4, 6, 7), torch.zeros(64, 4, 3, 2, device="cuda")
    for _ in range(3):
        with pytest.raises(RuntimeError):  # torch.OutOfMemoryError, or a size that the plan refuses
            conv_ext.conv2d(x, w)
    assert conv_ext.conv2d(x[:2], w).shape == (2, 64, 4, 6)


# ---- streams and threads


def gradients(model, x):
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_two_streams_at_once():
    """Different problems side by side, again and again: nothing of one call is another's."""
    problems = (LAYER, Problem("other", 5, 64, 14, 13, 96, 3, 3, padding=(1, 1, 1, 1)))
    made = {z: {p: [t.cuda() for t in operands(p, z, torch.float32, "signed")] for p in PASSES} for z in problems}
    wanted = {z: {p: call(p, *made[z][p], z) for p in PASSES} for z in problems}
    torch.cuda.synchronize()
    streams, found = {z: torch.cuda.Stream() for z in problems}, {z: [] for z in problems}
    for _ in range(20):
        for z in problems:
            with torch.cuda.stream(streams[z]):
                found[z] += [(p, call(p, *made[z][p], z)) for p in PASSES]
    torch.cuda.synchronize()
    for z in problems:
        for p, got in found[z]:
            assert same_bits(got.cpu(), wanted[z][p].cpu()), (z, p)


def test_four_threads_with_streams_of_their_own():
    x, w = (t.cuda() for t in operands("forward", LAYER, torch.float32, "signed"))
    wanted, failures = call("forward", x, w, LAYER), []
    torch.cuda.synchronize()

    def body():
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                got = call("forward", x, w, LAYER)
                torch.cuda.current_stream().synchronize()
                if not torch.equal(got, wanted):
                    failures.append(got)

    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_backward_pass_on_the_stream_of_its_forward():
    model, x = lenet5().cuda(), torch.randn(8, 1, 32, 32, device="cuda")
    wanted = gradients(model, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = gradients(model, x)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


@several_gpus
def test_two_gpus_from_two_threads():
    models = [lenet5().to(f"cuda:{i}") for i in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, found = torch.randn(8, 1, 32, 32), [[], []]

    def body(i):  # the current device stays the first
        for _ in range(10):
            found[i].append([g.cpu() for g in gradients(models[i], x.to(f"cuda:{i}"))])

    threads = [threading.Thread(target=body, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in found:
        assert len(results) == 10
        assert all(same_bits(a, b) for grads in results for a, b in zip(grads, found[0][0]))


@several_gpus
def test_data_parallel():
    model, x = lenet5().cuda(), torch.randn(8, 1, 32, 32, device="cuda")
    torch.testing.assert_close(nn.DataParallel(model, [0, 1])(x), model(x))


# ---- graphs


def test_a_training_step_in_a_graph():
    """Forward, backward and SGD captured once: replays give the weights of the same steps without a graph."""
    torch.manual_seed(0)
    plain, captured = lenet5().cuda(), lenet5().cuda()
    captured.load_state_dict(plain.state_dict())
    batches = [torch.randn(16, 1, 32, 32, device="cuda") for _ in range(3)]
    x = batches[0].clone()

    def step(model, optimizer, images):
        optimizer.zero_grad(set_to_none=True)
        model(images).square().mean().backward()
        optimizer.step()

    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (plain, captured)]
    state = {name: value.clone() for name, value in captured.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # outside the graph first, as torch asks
            step(captured, optimizers[1], x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, optimizers[1], x)
    captured.load_state_dict(state)  # in place: the graph has these tensors
    for images in batches:
        x.copy_(images)
        graph.replay()
        step(plain, optimizers[0], images)
    torch.cuda.synchronize()
    for ours, wanted in zip(captured.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, wanted)


def test_graphed_callables():
    layer, x = conv_ext.Conv2d(8, 16, 3, padding=1, activation="relu").cuda(), torch.randn(4, 8, 12, 13, device="cuda")
    wanted = gradients(layer, x), layer(x)
    graphed = torch.cuda.make_graphed_callables(layer, (x.clone(),))
    assert torch.equal(graphed(x), wanted[1])
    assert all(torch.equal(a, b) for a, b in zip(gradients(graphed, x), wanted[0]))


# ---- epilogues


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("activation", BEHIND, ids=str)
def test_residuals_of_any_strides_before_every_activation(activation, dtype):
    """The bits of an addition and an activation on the CPU; a residual that lies otherwise than the result is laid."""
    if dtype.is_complex and activation != "none":
        pytest.skip("activations are for real numbers")
    for z in SMALL[:2]:
        operands_ = operands("forward", z, dtype, "signed")
        for layout in ("contiguous", "channels_last"):
            x, w = (laid_out(t, layout).to("cuda") for t in operands_)
            bias, residual = fill((z.k,), dtype, "signed", 3).to("cuda"), 4 * fill(z.output_shape, dtype, "signed", 5)
            plain = run_forward(x, w, bias, z)
            expanded = residual[:1, :, :1].expand(z.output_shape)
            laid = [laid_out(residual, how) for how in ("contiguous", "channels_last", "transposed", "sliced")]
            for other in (*laid, expanded, None):
                given = None if other is None else other.to("cuda")
                got = run_forward(x, w, bias, z, activation, given)
                assert_behind(got.cpu(), plain.cpu(), activation, other)
                assert given is None or same_bits(given.cpu(), other)


# ---- memory, size, determinism


def test_memory_stays_flat_over_many_shapes():
    """Nothing is kept from call to call: not a plan, not a workspace."""

    def some(first, last):
        for i in range(first, last):
            c, k, h = 1 + i % 37, 1 + i % 53, 5 + i % 29
            x = torch.randn(1 + i % 3, c, h, h + 1, device="cuda", requires_grad=True)
            w = torch.randn(k, c, 3, 3, device="cuda", requires_grad=True)
            conv_ext.conv2d(x, w, padding=1).sum().backward()

    some(0, 100)
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    some(100, 1100)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= allocated
    assert torch.cuda.memory_reserved() <= reserved + (64 << 20)


@pytest.mark.parametrize("pass_name", PASSES)
def test_beyond_two_to_the_31_elements(pass_name):
    z = Problem("far", 2, 1, 2**15 + 3, 2**15 + 1, 1, 1, 1)
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    a = torch.zeros(z.input_shape, dtype=torch.bfloat16, device="cuda")
    a[-1, 0, -1, -1], a[1, 0, 5, 7] = 3, 2
    if pass_name == "weight_grad":
        other = torch.zeros_like(a)
        other[-1, 0, -1, -1], other[1, 0, 5, 7], other[0, 0, 5, 7] = 5, 4, 64
        assert call(pass_name, a, other, z).item() == 23
        return
    y = call(pass_name, a, torch.full(z.weight_shape, 2.0, dtype=torch.bfloat16, device="cuda"), z)
    assert y[-1, 0, -1, -1] == 6 and y[1, 0, 5, 7] == 4 and y.count_nonzero() == 2


def test_a_channel_beyond_two_to_the_31_elements():
    """Large strides within an image: 2^31 numbers lie between the first channel and the last."""
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    z = Problem("wide", 1, 33, 2**13, 2**13 + 1, 2, 1, 1, (64, 64))
    x = torch.zeros(z.input_shape, dtype=torch.bfloat16, device="cuda")
    x[0, 32, -64:, -64:] = 1
    y = call("forward", x, torch.ones(z.weight_shape, dtype=torch.bfloat16, device="cuda"), z)
    assert y.sum() == 2 * x[0, 32, ::64, ::64].sum() and y.count_nonzero() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_deterministic_algorithms(dtype):
    """Nothing is refused, and a step has the same bits each time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        conv_ext.Conv2d(3, 32, 5, stride=2, padding=2, activation="relu"),
        conv_ext.Conv2d(32, 64, 3, padding=1, groups=4), nn.ReLU(), conv_ext.Conv2d(64, 64, 3, groups=64),
        conv_ext.ConvTranspose2d(64, 8, 3, stride=2),
    ).to("cuda", dtype)  # fmt: skip
    x = torch.randn(6, 3, 41, 43, device="cuda", dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        wanted = gradients(model, x)
        for _ in range(10):
            assert all(torch.equal(a, b) for a, b in zip(gradients(model, x), wanted))
    finally:
        torch.use_deterministic_algorithms(False)


def test_non_contiguous_operands_at_odd_addresses():
    z = SMALL[1]
    a, b = operands("forward", z, torch.bfloat16, "integers")
    moved = []
    for t in (a, b):
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype, device="cuda")
        moved.append(storage[1:].view(t.shape).copy_(t))
    assert_exact(call("forward", *moved, z).cpu(), reference("forward", a, b, z), torch.bfloat16)
