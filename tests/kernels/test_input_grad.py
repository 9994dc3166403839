"""The input gradient against the reference: every algorithm, dtype and layout; the size that the output leaves open."""

from dataclasses import replace

import pytest
import torch

from passes import CASES, DTYPES, applicable, call, check_pass, dtype_name, fill
from problems import SMALL, Problem
from tolerance import assert_exact, assert_within_bound, reference


@pytest.mark.parametrize("z, dtype", CASES)
def test_against_the_reference(z, dtype):
    check_pass("input_grad", z, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_input_size_of_one_output_size(dtype):
    """With a stride several sizes give the same output; what no window reaches has gradient zero."""
    z = Problem("rest", 2, 3, 11, 13, 4, 2, 3, (4, 5), (1, 0, 0, 2))
    g, w = fill(z.output_shape, dtype, "integers", 1), fill(z.weight_shape, dtype, "integers", 2)
    tried = 0
    for h in range(z.h - 3, z.h + 4):
        for width in range(z.w - 4, z.w + 5):
            sized = replace(z, h=h, w=width)
            if (sized.p, sized.q) != (z.p, z.q):
                continue
            tried += 1
            for algorithm in applicable("input_grad", sized, dtype):
                got = call("input_grad", g, w, sized, algorithm=algorithm)
                assert_exact(got, reference("input_grad", g, w, sized), dtype)
                reach_h = (z.p - 1) * z.stride[0] + z.r - z.padding[0]
                assert (got[:, :, reach_h:] == 0).all()
    assert tried == 4 * 5


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_each_precision_keeps_its_bound(precision):
    for z in SMALL:
        g, w = fill(z.output_shape, torch.float32, "signed", 1), fill(z.weight_shape, torch.float32, "signed", 2)
        got = call("input_grad", g, w, z, precision=precision)
        assert_within_bound(got, reference("input_grad", g, w, z), torch.float32, precision)
