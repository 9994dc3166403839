"""Infinities, NaN, zeros of both signs and denormals: read where they are read, and seen nowhere else."""

import math

import pytest
import torch

from passes import DTYPES, PASSES, applicable, call, dtype_name, fill, laid_out, operand_shapes, operands, same_bits
from problems import CORNERS, SMALL, Problem
from tolerance import assert_exact, assert_same_with_non_finite, reference

pytestmark = pytest.mark.usefixtures("each_isa")
every_pass = pytest.mark.parametrize("pass_name", PASSES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
# With padding, stride, dilation and groups, and with nothing of them.
FIELD_NAMES = (
    "everything plain_3x3 depthwise depthwise_strided_dilated depthwise_wide pointwise_strided stride_beyond_kernel "
    "padding_beyond_kernel stride_leaves_a_rest many_images"
).split()
FIELDS = tuple(z for z in SMALL + CORNERS if z.name in FIELD_NAMES)
assert len(FIELDS) == len(FIELD_NAMES)


def places(shape):
    """A corner, the other corner, and one in the middle."""
    return tuple(0 for _ in shape), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)


@every_pass
@every_dtype
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_one_value_reaches_its_field_and_nothing_else(pass_name, dtype, value):
    """In either operand; the other has zeros in it (0 * Inf = NaN), and zeros of the padding are read as well."""
    for z in FIELDS:
        for operand in (0, 1):
            pair = [t.clone() for t in operands(pass_name, z, dtype, "signed")]
            pair[1 - operand].flatten()[::3] = 0
            place = places(pair[operand].shape)[len(z.name) % 3]
            pair[operand][place] = value
            ref = reference(pass_name, *pair, z)
            for layout in ("contiguous", "channels_last"):
                first, second = (laid_out(t, layout) for t in pair)
                for algorithm in applicable(pass_name, z, dtype):
                    got = call(pass_name, first, second, z, algorithm=algorithm)
                    try:
                        assert_same_with_non_finite(got, ref, dtype)
                    except AssertionError as error:
                        raise AssertionError(
                            f"{value} in operand {operand} at {place}, {layout}, {algorithm}, {z!r}: {error}"
                        ) from None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels, groups", [(3, 1), (3, 3), (20, 20)], ids=["dense", "depthwise", "depthwise_wide"])
def test_nan_weight_over_the_padding(channels, groups, layout):
    """Padding is zeros that are read: NaN * 0 = NaN, in dense and depthwise convolutions alike, and in every pass."""
    z = Problem("corner", 1, channels, 3, 4, channels, 3, 3, padding=(1, 1, 1, 1), groups=groups)
    w = torch.ones(z.weight_shape)
    w[1, 0, 0, 0] = math.nan  # over the padding for the first row and column of the outputs
    w, x, dy = (laid_out(t, layout) for t in (w, torch.ones(z.input_shape), torch.ones(z.output_shape)))
    others = [0, *range(2, channels)]
    for algorithm in applicable("forward", z, torch.float32):
        y = call("forward", x, w, z, algorithm=algorithm)
        assert y[:, 1].isnan().all() and y[:, others].isfinite().all()
    for algorithm in applicable("input_grad", z, torch.float32):
        dx = call("input_grad", dy, w, z, algorithm=algorithm)
        assert dx[:, 1 if groups > 1 else 0].isnan().all()
    for algorithm in applicable("weight_grad", z, torch.float32):
        g = dy.clone()
        g[0, 1, 0, 0] = math.nan
        dw = call("weight_grad", g, x, z, algorithm=algorithm)
        assert dw[1].isnan().all() and dw[others].isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_special_weights_among_others(layout, activation):
    """Every kind of weight that padding shows, over strides, dilation and both ends of a row; a bias of -0 as well."""
    for z in (
        Problem("strided", 2, 21, 9, 8, 21, 3, 5, (2, 1), (1, 2, 2, 3), (1, 2), 21),
        Problem("beyond", 1, 18, 3, 2, 18, 2, 2, (1, 2), (4, 3, 3, 4), (1, 1), 18),
    ):
        w = fill(z.weight_shape, torch.float32, "signed", 3)
        w[2, 0, 0, 0], w[5, 0, 1, 1], w[7, 0, -1, 0] = math.inf, math.nan, -math.inf
        x = fill(z.input_shape, torch.float32, "signed", 4)
        bias = -torch.zeros(z.k)
        want = reference("forward", x, w, z).value
        want = want.relu() if activation == "relu" else want
        for algorithm in applicable("forward", z, torch.float32):
            geometry = (z.stride, z.padding, z.dilation, z.groups, "ieee", algorithm, activation)
            y = torch.ops.conv_ext.forward(laid_out(x, layout), laid_out(w, layout), bias, *geometry)
            assert torch.equal(y.isnan(), want.isnan()), (algorithm, z)
            assert torch.equal(y.isinf(), want.isinf()), (algorithm, z)
            assert (y - want)[y.isfinite()].abs().max() < 1e-4


@every_dtype
def test_what_no_window_reads_does_no_harm(dtype):
    """Rows and columns that the strides leave out, and their gradient, which is zero and not NaN."""
    z = Problem("gaps", 2, 3, 11, 9, 4, 1, 2, (3, 4))
    x, w = operands("forward", z, dtype, "integers")
    read = torch.zeros(z.h, z.w, dtype=torch.bool)
    for column in (0, 1):
        read[::3, column::4] = True
    read[:, 8] = False
    spoiled = x.clone()
    spoiled[..., ~read] = math.nan
    g = fill(z.output_shape, dtype, "integers", 1)
    for algorithm in applicable("forward", z, dtype):
        assert_exact(call("forward", spoiled, w, z, algorithm=algorithm), reference("forward", x, w, z), dtype)
    for algorithm in applicable("weight_grad", z, dtype):
        got = call("weight_grad", g, spoiled, z, algorithm=algorithm)
        assert_exact(got, reference("weight_grad", g, x, z), dtype)
    for algorithm in applicable("input_grad", z, dtype):
        dx = call("input_grad", torch.full_like(g, math.inf), torch.ones_like(w), z, algorithm=algorithm)
        assert (dx[..., ~read] == 0).all() and not dx[..., read].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=dtype_name)
def test_overflow_is_an_infinity(dtype):
    """A sum beyond the dtype's largest number; float16 is summed in float32 and may pass its own on the way."""
    z = Problem("sum", 1, 4, 1, 3, 2, 1, 1)
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, largest, -largest, -largest / 2], dtype=dtype).view(1, 4, 1, 1).expand(1, 4, 1, 3)
    w = torch.ones(2, 4, 1, 1, dtype=dtype)
    w[1, 1:] = torch.tensor([1, 0, 0], dtype=dtype).view(3, 1, 1)
    for algorithm in applicable("forward", z, dtype):
        y = call("forward", x, w, z, algorithm=algorithm)
        assert (y[:, 1] == math.inf).all()
        if dtype is torch.float16:
            assert (y[:, 0] == largest / 2).all()


@every_pass
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=dtype_name)
def test_denormals_are_kept(pass_name, dtype):
    z = Problem("identity", 1, 1, 5, 7, 1, 1, 1)
    tiny = torch.finfo(dtype).smallest_normal
    numbers = (torch.arange(1, 36).view(1, 1, 5, 7).double() / 64 * tiny).to(dtype)
    assert (numbers.abs() < tiny).all() and (numbers != 0).any()
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for algorithm in applicable(pass_name, z, dtype):
        if pass_name == "weight_grad":  # the sum of one
            z = Problem("identity", 1, 1, 1, 1, 1, 1, 1)
            number = numbers[..., -1:, -1:]
            assert same_bits(call(pass_name, one, number, z, algorithm=algorithm), number)
        else:
            assert same_bits(call(pass_name, numbers, one, z, algorithm=algorithm), numbers)


@every_pass
def test_denormals_in_pairs_of_bfloat16(pass_name):
    """The processors' products of bfloat16 pairs take subnormal numbers for zero: zero or exact, nothing else."""
    z = Problem("sixteen", 1, 16, 3, 5, 16, 1, 1)
    a, b = (fill(shape, torch.bfloat16, "integers", 7) for shape in operand_shapes(pass_name, z))
    smallest = torch.finfo(torch.bfloat16).smallest_normal * 2.0**-7
    for algorithm in applicable(pass_name, z, torch.bfloat16):
        got = call(pass_name, a * smallest, b, z, algorithm=algorithm)
        exact = reference(pass_name, a, b, z).value.to(torch.bfloat16) * smallest
        assert ((got == exact) | ((got == 0) if algorithm == "implicit_gemm" else False)).all()


def test_flushing_denormals_holds_in_every_thread():
    """The caller's mode is that of all its workers, so that results do not depend on who computed them."""
    z = Problem("identity", 8, 16, 17, 19, 16, 1, 1, groups=16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x = torch.full(z.input_shape, 0.75 * torch.finfo(torch.float32).smallest_normal * 2)
            results.append(call("forward", x, torch.full(z.weight_shape, 0.5), z))
    finally:
        torch.set_flush_denormal(False)
    assert all(same_bits(results[0], other) for other in results[1:])
    assert (results[0] == 0).all()


@every_pass
def test_zeros_give_zeros(pass_name):
    for z in SMALL:
        first, second = operand_shapes(pass_name, z)
        for algorithm in applicable(pass_name, z, torch.float32):
            assert (call(pass_name, torch.zeros(first), -torch.rand(second), z, algorithm=algorithm) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_every_number_of_a_short_type(dtype):
    """All 65,536 bit patterns, alone and added to another: converted, summed in float32, rounded to nearest even."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    others = numbers.flatten()[torch.randperm(2**16)].view(1, 1, 256, 256)
    others = torch.where(others.isfinite(), others, 0) * torch.tensor([1.0, 2.0**-3], dtype=dtype).repeat(128)
    x = torch.cat([numbers, others], 1)
    z = Problem("add", 1, 2, 256, 256, 2, 1, 1)
    w = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=dtype).view(2, 2, 1, 1)
    wanted = torch.cat([numbers, (numbers.float() + others.float()).to(dtype)], 1)
    for algorithm in applicable("forward", z, dtype):
        y = call("forward", x, w, z, algorithm=algorithm)
        assert torch.equal(y.isnan(), wanted.isnan())
        assert torch.equal(y[~y.isnan()], wanted[~y.isnan()])
