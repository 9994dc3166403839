"""On a GPU: every CUDA algorithm against float64, gradients, the same bits always, streams, graphs, errors.

`pytest -m gpu` runs these alone; without a GPU they are skipped.
"""

from dataclasses import replace

import pytest
import torch

import conv_ext
from conv_ext import _C
from passes import (
    CASES,
    DTYPES,
    FILLS,
    LAYOUTS,
    PASSES,
    call,
    dtype_name,
    expected,
    fill,
    laid_out,
    operands,
    same_bits,
)
from problems import EMPTY, SMALL, THREADED, Problem
from test_epilogue import BEHIND, assert_behind
from test_epilogue import run as run_forward
from tolerance import assert_exact, assert_same_with_non_finite, assert_within_bound, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not conv_ext.build_info()["cuda"], reason="this build holds no CUDA kernels"),
]
LAYERS = (
    Problem("large_tile", 4, 64, 30, 31, 192, 3, 3, padding=(1, 1, 1, 1)),
    Problem("split", 3, 256, 7, 7, 256, 3, 3, padding=(1, 1, 1, 1)),
    Problem("strided", 3, 32, 29, 28, 96, 3, 3, (2, 2), (1, 1, 1, 1)),
    Problem("depthwise_layer", 3, 96, 28, 27, 96, 3, 3, padding=(1, 1, 1, 1), groups=96),
    Problem("depthwise_5x5_strided", 2, 40, 28, 27, 80, 5, 5, (2, 2), (2, 2, 2, 2), groups=40),
    Problem("groups_of_four", 2, 128, 15, 14, 128, 3, 3, padding=(1, 1, 1, 1), groups=32),
    Problem("first_layer", 2, 3, 61, 58, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
    Problem("first_layer_of_eleven", 1, 3, 99, 98, 40, 11, 11, (4, 4), (2, 2, 2, 2)),
)
LAYER_CASES = [pytest.param(z, dtype, id=f"{z}-{dtype_name(dtype)}") for z in LAYERS for dtype in DTYPES]


def on_gpu(t, layout="contiguous"):
    """The same values and strides on the GPU."""
    t = laid_out(t, layout)
    moved = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
    return moved.copy_(t)


def candidates(pass_name, z, dtype, precision):
    major, minor = torch.cuda.get_device_capability()
    sizes = (z.input_shape, z.weight_shape, z.output_shape)
    found = _C.plan(
        pass_name,
        dtype_name(dtype),
        *sizes,
        z.stride,
        z.padding,
        z.dilation,
        z.groups,
        "auto",
        precision,
        False,
        10 * major + minor,
    )
    return [name for name, _, possible, _ in found["candidates"] if possible and name != "wgmma"]  # test_gpu_wgmma.py


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("z, dtype", CASES + LAYER_CASES)
def test_against_the_reference(pass_name, z, dtype):
    for kind in FILLS if z in SMALL + LAYERS else FILLS[:2]:
        ref = expected(pass_name, z, dtype, kind)
        for layouts in LAYOUTS if z in SMALL and kind == "integers" else LAYOUTS[:2]:
            a, b = (on_gpu(t, layout) for t, layout in zip(operands(pass_name, z, dtype, kind), layouts))
            for precision in ("ieee", "tf32") if dtype is torch.float32 else ("ieee",):
                for algorithm in ["auto", *candidates(pass_name, z, dtype, precision)]:
                    got = call(pass_name, a, b, z, None, algorithm, precision).cpu()
                    try:
                        if kind == "integers":
                            assert_exact(got, ref, dtype)
                        else:
                            assert_within_bound(got, ref, dtype, precision)
                    except AssertionError as error:
                        how = f"{pass_name} by {algorithm}, {precision}, {kind}, {layouts}, {z!r}"
                        raise AssertionError(f"{how}: {error}") from None


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("z", SMALL + EMPTY, ids=str)
def test_bias_and_relu(z, dtype):
    x, w = operands("forward", z, dtype, "signed")
    bias = fill((z.k,), dtype, "signed", 5)
    ref = reference("forward", x, w, z, bias)
    y = call("forward", on_gpu(x), on_gpu(w), z, on_gpu(bias.view(1, -1, 1, 1)).view(-1))
    assert_within_bound(y.cpu(), ref, dtype)
    if not dtype.is_complex:
        fused = conv_ext.conv2d(on_gpu(x), on_gpu(w), bias.cuda(), z.stride, 0, z.dilation, z.groups, activation="relu")
        apart = conv_ext.conv2d(on_gpu(x), on_gpu(w), bias.cuda(), z.stride, 0, z.dilation, z.groups).relu()
        assert same_bits(fused.cpu(), apart.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("z", SMALL + LAYERS, ids=str)
def test_epilogues_by_every_algorithm(z, dtype):
    """The bits of an addition and an activation behind the convolution, in registers or behind reduce()."""
    x, w = operands("forward", z, dtype, "signed")
    bias, residual = fill((z.k,), dtype, "signed", 5).cuda(), 4 * fill(z.output_shape, dtype, "signed", 6)
    for layout in ("contiguous", "channels_last"):
        a, b, other = on_gpu(x, layout), on_gpu(w, layout), on_gpu(residual, layout)
        for algorithm in candidates("forward", z, dtype, "ieee"):
            plain = run_forward(a, b, bias, z, algorithm=algorithm).cpu()
            for activation in ["none"] if dtype.is_complex else BEHIND:
                for added in (other, None):
                    got = run_forward(a, b, bias, z, activation, added, algorithm).cpu()
                    assert_behind(got, plain, activation, None if added is None else residual, algorithm)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("z", LAYERS + SMALL + THREADED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_name)
def test_the_same_bits_from_run_to_run(pass_name, z, dtype):
    a, b = (on_gpu(t) for t in operands(pass_name, z, dtype, "signed"))
    first = call(pass_name, a, b, z)
    for _ in range(5):
        assert same_bits(first.cpu(), call(pass_name, a, b, z).cpu())


@pytest.mark.parametrize("pass_name", PASSES[:2])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("z", LAYERS + SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=dtype_name)
def test_an_image_alone_and_in_any_batch(pass_name, z, dtype, precision):
    z = replace(z, n=5)
    a, b = (on_gpu(t) for t in operands(pass_name, z, dtype, "signed"))
    whole = call(pass_name, a, b, z, precision=precision)
    for images in (slice(0, 1), slice(3, 4), slice(1, 3), slice(0, 4)):
        part = call(pass_name, a[images], b, replace(z, n=images.stop - images.start), precision=precision)
        assert same_bits(part.cpu(), whole[images].cpu())


@pytest.mark.parametrize("pass_name", PASSES)
def test_infinity_and_nan_show_where_they_are_read_and_nowhere_else(pass_name):
    for z in SMALL + LAYERS[:2]:
        a, b = (t.clone() for t in operands(pass_name, z, torch.float32, "signed"))
        a.view(-1)[a.numel() // 2], b.view(-1)[b.numel() // 3] = torch.inf, torch.nan
        ref = reference(pass_name, a, b, z)
        for algorithm in candidates(pass_name, z, torch.float32, "ieee"):
            got = call(pass_name, on_gpu(a), on_gpu(b), z, algorithm=algorithm).cpu()
            assert_same_with_non_finite(got, ref, torch.float32)


def test_gradcheck():
    for z in SMALL:
        x, w = (on_gpu(t).requires_grad_() for t in operands("forward", z, torch.float64, "signed"))
        bias = torch.randn(z.k, dtype=torch.float64, device="cuda", requires_grad=True)

        def function(x, w, bias, z=z):
            return conv_ext.conv2d(x, w, bias, z.stride, 0, z.dilation, z.groups)

        assert torch.autograd.gradcheck(function, (x, w, bias))
        assert torch.autograd.gradgradcheck(function, (x, w, bias))


def test_torchs_setting_decides_about_tf32():
    z = LAYERS[0]
    x, w = (on_gpu(t) for t in operands("forward", z, torch.float32, "signed"))
    with conv_ext.precision("ieee"):
        assert conv_ext.explain(x, w, padding=1).forward.algorithm != "tensor_cores"
    with conv_ext.precision("tf32"):
        assert conv_ext.explain(x, w, padding=1).forward.algorithm == "tensor_cores"


def test_the_current_stream():
    """The kernels wait for what was queued before them on the stream of the caller, and for nothing else."""
    z = LAYERS[1]
    a, b = operands("forward", z, torch.float32, "integers")
    ref = expected("forward", z, torch.float32, "integers")
    stream = torch.cuda.Stream()
    x, w = torch.zeros(a.shape, device="cuda"), on_gpu(b)
    stream.wait_stream(torch.cuda.current_stream())
    host = a.pin_memory()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.copy_(host, non_blocking=True)
        y = call("forward", x, w, z)
    stream.synchronize()
    assert_exact(y.cpu(), ref, torch.float32)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("z", LAYERS, ids=str)
def test_a_captured_graph(pass_name, z):
    """Captured once, replayed with other operands: the bits of a call outside the graph."""
    a, b = (on_gpu(t) for t in operands(pass_name, z, torch.float32, "signed"))
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        call(pass_name, a, b, z)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(pass_name, a, b, z)
    for seed in (1, 2):
        a.copy_(fill(tuple(a.shape), a.dtype, "signed", seed))
        graph.replay()
        assert same_bits(captured.cpu(), call(pass_name, a, b, z).cpu())


def test_operands_on_two_devices_are_refused():
    x, w = torch.randn(1, 2, 5, 5, device="cuda"), torch.randn(3, 2, 3, 3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ops.conv_ext.forward(x, w, None, [1, 1], [0, 0, 0, 0], [1, 1], 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    x, w = (t.to("cuda:1") for t in operands("forward", SMALL[1], torch.float32, "integers"))
    got = call("forward", x, w, SMALL[1])
    assert got.device.index == 1 and torch.cuda.current_device() == 0
    assert_exact(got.cpu(), expected("forward", SMALL[1], torch.float32, "integers"), torch.float32)


def test_beyond_two_to_the_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    z = Problem("far", 2, 1, 2**15 + 3, 2**15 + 1, 1, 1, 1)
    x = torch.zeros(z.input_shape, dtype=torch.bfloat16, device="cuda")
    x[-1, 0, -1, -1], x[1, 0, 5, 7] = 3, 2
    w = torch.full(z.weight_shape, 2.0, dtype=torch.bfloat16, device="cuda")
    y = call("forward", x, w, z)
    assert y[-1, 0, -1, -1] == 6 and y[1, 0, 5, 7] == 4 and y.count_nonzero() == 2
