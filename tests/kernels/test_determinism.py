"""The same bits always: for any number of threads, any batch around an image, any alignment, and from run to run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import conv_ext
from children import run_python
from passes import DTYPES, LAYOUTS, PASSES, applicable, call, dtype_name, fill, laid_out, operands, same_bits
from problems import SMALL, THREADED, Problem

SHORT_LIST = (torch.float32, torch.bfloat16, torch.complex64)
each_isa = pytest.mark.usefixtures("each_isa")
every_pass = pytest.mark.parametrize("pass_name", PASSES)
every_threaded = pytest.mark.parametrize("z", THREADED, ids=str)


@each_isa
@every_pass
@every_threaded
def test_there_is_something_to_share_out(pass_name, z):
    """Or the tests below would say nothing of threads."""
    sizes = (z.input_shape, z.weight_shape, z.output_shape)
    plan = conv_ext._C.plan(pass_name, "float32", *sizes, z.stride, z.padding, z.dilation, z.groups)
    assert plan["tasks"] >= 3, plan


THREADS_OF_A_CALL = """
import os, torch
import conv_ext
torch.set_num_threads(3)
x, w = torch.ones(1).expand(2, 32, 40, 40), torch.ones(1).expand(64, 32, 3, 3)
before = len(os.listdir("/proc/self/task"))
conv_ext.conv2d(x, w)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads where Linux lists them")
def test_the_kernels_run_on_torchs_threads():
    """A call under torch.set_num_threads(3) starts two more threads: torch's own, none beside them."""
    child = run_python("-c", THREADS_OF_A_CALL)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) == 2


@each_isa
@every_pass
@pytest.mark.parametrize("z", THREADED + SMALL, ids=str)
@pytest.mark.parametrize("dtype", SHORT_LIST, ids=dtype_name)
def test_any_number_of_threads(pass_name, z, dtype):
    for layouts in LAYOUTS[:2]:
        a, b = (laid_out(t, layout) for t, layout in zip(operands(pass_name, z, dtype, "signed"), layouts))
        for algorithm in applicable(pass_name, z, dtype):
            if algorithm == "reference" and z in THREADED:
                continue  # slow, and it works on one output after the other
            results = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(call(pass_name, a, b, z, algorithm=algorithm))
            assert all(same_bits(results[0], other) for other in results[1:])


@each_isa
@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
@pytest.mark.parametrize("z", THREADED + SMALL[:3], ids=str)
@pytest.mark.parametrize("dtype", SHORT_LIST, ids=dtype_name)
def test_an_image_alone_and_in_any_batch(pass_name, z, dtype):
    torch.set_num_threads(2)
    z = replace(z, n=5)
    for layouts in LAYOUTS[:2]:
        a, b = (laid_out(t, layout) for t, layout in zip(operands(pass_name, z, dtype, "signed"), layouts))
        whole = call(pass_name, a, b, z)
        for images in (slice(0, 1), slice(3, 4), slice(4, 5), slice(1, 3), slice(0, 4)):
            part = replace(z, n=images.stop - images.start)
            assert same_bits(call(pass_name, a[images], b, part), whole[images]), images
        order = torch.tensor([3, 1, 4, 0, 2, 2, 3])
        shuffled = call(pass_name, laid_out(a[order], layouts[0]), b, replace(z, n=7))
        assert same_bits(shuffled, whole[order])


@each_isa
@pytest.mark.parametrize("dtype", SHORT_LIST, ids=dtype_name)
@pytest.mark.parametrize("groups, channels", [(16, 16), (33, 33), (4, 32), (1, 16)])
def test_an_image_that_is_indexed_out_of_a_batch_in_channels_last(groups, channels, dtype):
    """`x[1][None]` has a stride over images by which torch has it, and the result, in NCHW."""
    for h, w, kernel in ((7, 31, 7), (14, 7, 3), (1, 25, 3)):
        z = Problem("indexed", 3, channels, h, w, channels, kernel, kernel, padding=(kernel // 2,) * 4, groups=groups)
        for pass_name in ("forward", "input_grad"):
            a, b = operands(pass_name, z, dtype, "signed")
            a = laid_out(a, "channels_last")
            for algorithm in applicable(pass_name, z, dtype):
                batch = call(pass_name, a, b, z, algorithm=algorithm)
                alone = call(pass_name, a[1][None], b, replace(z, n=1), algorithm=algorithm)
                assert same_bits(alone, batch[1:2]), algorithm


@each_isa
@pytest.mark.parametrize("c", [8, 16])
def test_depthwise_weights_that_may_lie_either_way(c):
    """(C, 1, R, S) in channels_last are the same bytes; torch's result is channels_last all the same."""
    z = Problem("either", 2, c, 14, 9, c, 3, 3, padding=(1, 1, 1, 1), groups=c)
    for pass_name in ("forward", "input_grad"):
        a, b = operands(pass_name, z, torch.float32, "signed")
        other = b.to(memory_format=torch.channels_last)
        results = [call(pass_name, a, weight, z) for weight in (b, other)]
        assert other.stride() != b.stride() and results[0].stride() != results[1].stride()
        assert same_bits(*results)


@each_isa
@pytest.mark.parametrize("dtype, tiny", [(torch.float32, 1e-30), (torch.float64, 1e-200)], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [(3, 3), (7, 7), (2, 6)])
def test_the_sign_of_a_zero_in_any_batch(size, dtype, tiny):
    """Products that round to -0 make a sum of -0, and of +0 where padding is added: not one that depends on N."""
    z = Problem("tiny", 13, 5, *size, 48, 5, 5, padding=(2, 2, 2, 2))
    x, w = torch.full(z.input_shape, -tiny, dtype=dtype), torch.full(z.weight_shape, tiny, dtype=dtype)
    for algorithm in applicable("forward", z, dtype):
        batch = call("forward", x, w, z, algorithm=algorithm)
        alone = call("forward", x[:1], w, replace(z, n=1), algorithm=algorithm)
        assert same_bits(batch[:1], alone), algorithm


@each_isa
@pytest.mark.parametrize("n", [1, 2, 3, 17, 64])
def test_small_images_in_any_batch(n):
    """Several small images may share a vector: the first and the last of a batch must not show it."""
    base = next(z for z in SMALL if z.name == "pointwise")
    for z in (replace(base, n=n), replace(base, n=n, h=3, w=2, r=2, s=2, padding=(1, 0, 0, 1))):
        for pass_name in ("forward", "input_grad"):
            a, b = operands(pass_name, replace(z, n=64), torch.float32, "signed")
            whole = call(pass_name, a, b, replace(z, n=64))
            for first in (0, 64 - n):
                images = slice(first, first + n)
                assert same_bits(call(pass_name, a[images], b, z), whole[images])


@each_isa
@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (5, 2), (4, 1)])
def test_depthwise_batches_beyond_the_caches(pass_name, size, stride):
    """Such operands in channels_last are gone through in strips of columns and parts of the channels."""
    z = Problem("far", 15, 300, 28, 27, 300, size, size, (stride, stride), (1, 2, 1, 1), groups=300)
    a, b = operands(pass_name, z, torch.float32, "signed")
    a, b = a.contiguous(memory_format=torch.channels_last), b.contiguous(memory_format=torch.channels_last)
    whole = call(pass_name, a, b, z)
    for image in (0, 8, 14):
        assert same_bits(call(pass_name, a[image : image + 1], b, replace(z, n=1)), whole[image : image + 1])


def misaligned(t, offset):
    """The same values in storage that begins `offset` bytes after an aligned address."""
    memory = bytearray(t.numel() * t.element_size() + 64 + offset)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 64 + offset
    moved = torch.frombuffer(memory, dtype=t.dtype, offset=start, count=t.numel()).view(t.shape)
    assert moved.data_ptr() % 64 == offset
    # torch itself copies in whole elements only where they are aligned: by bytes, then.
    moved_bytes = torch.frombuffer(memory, dtype=torch.uint8, offset=start, count=t.numel() * t.element_size())
    moved_bytes.copy_(t.contiguous().flatten().view(torch.uint8))
    return moved


@each_isa
@every_pass
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_any_alignment(pass_name, dtype):
    for z in SMALL:
        a, b = operands(pass_name, z, dtype, "signed")
        for algorithm in applicable(pass_name, z, dtype):
            aligned = call(pass_name, a, b, z, algorithm=algorithm)
            for first, second in ((1, 3), (a.element_size(), 0), (0, a.element_size()), (33, 62)):
                got = call(pass_name, misaligned(a, first), misaligned(b, second), z, algorithm=algorithm)
                assert same_bits(got, aligned), (z, algorithm, first, second)


def with_idle_strides(t, stride):
    """The same values in memory of their own, where each dimension of size 1 has this stride."""
    strides = [stride if size == 1 else step for size, step in zip(t.shape, t.stride())]
    return t.clone().as_strided(t.shape, strides)


@each_isa
@every_pass
@pytest.mark.parametrize("sizes", [(1, 1, 7, 9), (3, 1, 8, 5), (2, 20, 9, 1), (2, 20, 1, 9), (1, 3, 1, 1)], ids=str)
def test_depthwise_does_not_ask_dimensions_of_size_1(pass_name, sizes):
    """Whose strides may be anything: neither what the lanes are nor what is read in place depends on them."""
    n, c, h, w = sizes
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for stride in (1, 2):
            z = Problem("idle", n, c, h, w, c, 3, 3, (stride, stride), (1, 1, 1, 1), groups=c)
            a, b = operands(pass_name, z, dtype, "signed")
            usual = call(pass_name, a, b, z, algorithm="depthwise")
            for idle in (1, 2, 1000):
                got = call(pass_name, with_idle_strides(a, idle), with_idle_strides(b, idle), z, algorithm="depthwise")
                assert same_bits(got, usual), (dtype, stride, idle)


SINGLE = (
    Problem("single_channel", 2, 1, 9, 10, 40, 3, 5, padding=(1, 1, 2, 2)),
    Problem("single_column", 3, 8, 11, 1, 33, 3, 3, padding=(1, 1, 1, 1)),
    Problem("single_row_of_pixels", 2, 20, 1, 13, 48, 1, 1),
    Problem("single_column_of_pixels", 1, 20, 13, 1, 16, 1, 1),
    Problem("single_result", 2, 24, 6, 7, 1, 3, 3),
    Problem("all_single", 1, 1, 1, 1, 1, 3, 3, padding=(1, 1, 1, 1)),
)


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("z", SINGLE, ids=str)
def test_any_stride_of_a_dimension_of_size_1(pass_name, layout, z):
    """It says nothing of memory, and so nothing of the order of a sum."""
    a, b = (laid_out(t, layout) for t in operands(pass_name, z, torch.float32, "signed"))
    for algorithm in applicable(pass_name, z, torch.float32):
        usual = call(pass_name, a, b, z, algorithm=algorithm)
        for first, second in ((1, 7), (0, 0), (z.c, z.k), (999, 1)):
            got = call(pass_name, with_idle_strides(a, first), with_idle_strides(b, second), z, algorithm=algorithm)
            assert same_bits(got, usual), (algorithm, first, second)


@each_isa
@every_pass
@every_threaded
def test_from_run_to_run(pass_name, z):
    """Whatever was left in the memory that the passes reuse."""
    torch.set_num_threads(2)
    a, b = operands(pass_name, z, torch.float32, "signed")
    once = call(pass_name, a, b, z)
    for value in (float("nan"), 1e30):
        for other in SMALL + THREADED:
            call(
                pass_name,
                *(torch.full_like(t, value) for t in operands(pass_name, other, torch.float32, "signed")),
                other,
            )
        assert same_bits(call(pass_name, a, b, z), once)


def public_gradients(z, dtype, images=slice(None)):
    x, w = (t.clone() for t in operands("forward", z, dtype, "signed"))
    x, w, b = x[images].requires_grad_(), w.requires_grad_(), fill((z.k,), dtype, "signed", 3).requires_grad_()
    padding = z.padding[0::2]
    y = conv_ext.conv2d(x, w, b, z.stride, padding, z.dilation, z.groups)
    gy = fill((z.n, *y.shape[1:]), dtype, "signed", 4)[images]
    return y, *torch.autograd.grad(y, (x, w, b), gy)


@every_threaded
@pytest.mark.parametrize("dtype", SHORT_LIST, ids=dtype_name)
def test_layers_gradients_with_any_number_of_threads(z, dtype):
    """Through autograd: the output, the gradients of input and weight, and the bias gradient."""
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(public_gradients(z, dtype))
    for other in results[1:]:
        for name, a, b in zip(("output", "input", "weight", "bias"), results[0], other):
            assert same_bits(a, b), name


@every_threaded
def test_layers_input_gradient_in_any_batch(z):
    y, dx, _, _ = public_gradients(z, torch.float32)
    for images in (slice(2, 3), slice(1, 4)):
        part_y, part_dx, _, _ = public_gradients(z, torch.float32, images)
        assert same_bits(part_y, y[images]) and same_bits(part_dx, dx[images])
