"""The weight gradient against the reference: every algorithm, dtype and layout; long sums; the open kernel size."""

from dataclasses import replace

import pytest
import torch

from conv_ext import _C
from passes import CASES, DTYPES, applicable, call, check_pass, dtype_name, expected, fill, operands
from problems import SMALL, THREADED, Problem
from tolerance import assert_exact, assert_within_bound, reference


@pytest.mark.parametrize("z, dtype", CASES)
def test_against_the_reference(z, dtype):
    check_pass("weight_grad", z, dtype)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_long_sums(kind, dtype):
    """Over 10,000 products to an element: the bound grows with their square root only."""
    z = next(z for z in THREADED if z.name == "threaded_long_reduction")
    ref = expected("weight_grad", z, dtype, kind)
    assert ref.length > 20_000
    for algorithm in applicable("weight_grad", z, dtype):
        assert_within_bound(
            call("weight_grad", *operands("weight_grad", z, dtype, kind), z, algorithm=algorithm), ref, dtype
        )


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("algorithm", ["panels", "depthwise"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_some_sums_are_cut_into_parts(algorithm, channels_last):
    """Or the tests above would not see a part that is lost."""
    most = 0
    for z in THREADED:
        if algorithm in applicable("weight_grad", z, torch.float32):
            sizes = (z.input_shape, z.weight_shape, z.output_shape)
            geometry = (z.stride, z.padding, z.dilation, z.groups)
            plan = _C.plan("weight_grad", "float32", *sizes, *geometry, algorithm, "ieee", channels_last)
            most = max(most, plan["tiles"]["splits"])
    assert most > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_kernel_size_of_one_output_size(dtype):
    """With a stride several kernels give the same output."""
    z = Problem("rest", 2, 3, 11, 13, 4, 3, 4, (4, 5), (1, 0, 0, 2))
    g, x = fill(z.output_shape, dtype, "integers", 1), fill(z.input_shape, dtype, "integers", 2)
    tried = 0
    for r in range(1, 9):
        for s in range(1, 9):
            sized = replace(z, r=r, s=s)
            if (sized.p, sized.q) == (z.p, z.q):
                tried += 1
                for algorithm in applicable("weight_grad", sized, dtype):
                    got = call("weight_grad", g, x, sized, algorithm=algorithm)
                    assert_exact(got, reference("weight_grad", g, x, sized), dtype)
    assert tried >= 12


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_each_precision_keeps_its_bound(precision):
    for z in SMALL:
        g, x = operands("weight_grad", z, torch.float32, "signed")
        got = call("weight_grad", g, x, z, precision=precision)
        assert_within_bound(got, reference("weight_grad", g, x, z), torch.float32, precision)
