"""A kernel that covers its input is taken for 1x1 over C R S channels: only where the operands' memory allows it."""

import itertools
import math

import pytest
import torch

from passes import DTYPES, LAYOUTS, PASSES, call, dtype_name, fill, laid_out, operand_shapes
from problems import Problem
from tolerance import assert_exact, assert_same_with_non_finite, reference

PROBLEMS = tuple(
    Problem(f"{c}x{h}x{w}", n, c, h, w, k, h, w, groups=groups)
    for (h, w), (n, c, k, groups) in itertools.product(
        [(5, 1), (1, 5), (3, 4)], [(1, 6, 4, 1), (3, 6, 4, 2), (2, 1, 3, 1), (1, 1, 1, 1), (2, 4, 4, 4), (2, 3, 1, 1)]
    )
)


def any_strides(t, seed):
    """The values of t in memory of their own, in which dimensions of size 1 have strides that say nothing."""
    order = [(1, 2, 3, 0), (3, 0, 2, 1), (0, 2, 3, 1), (2, 3, 1, 0)][seed % 4]
    moved = t.permute(order).contiguous().permute([order.index(d) for d in range(4)])
    strides = [s if size > 1 else 7 * seed + d for d, (s, size) in enumerate(zip(moved.stride(), moved.shape))]
    return moved.as_strided(moved.shape, strides, moved.storage_offset())


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("z", PROBLEMS, ids=lambda z: f"{z}-groups{z.groups}-n{z.n}-k{z.k}")
def test_every_pair_of_layouts(pass_name, z):
    first, second = (fill(shape, torch.float32, "integers", i) for i, shape in enumerate(operand_shapes(pass_name, z)))
    want = reference(pass_name, first, second, z)
    layouts = {layout for pair in LAYOUTS for layout in pair}
    for one, other in itertools.product(sorted(layouts), repeat=2):
        got = call(pass_name, laid_out(first, one), laid_out(second, other), z)
        assert_exact(got, want, torch.float32)
    for one, other in itertools.product(range(4), repeat=2):
        assert_exact(call(pass_name, any_strides(first, one), any_strides(second, other), z), want, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
def test_zeros_around_the_gradient_show_in_every_layout(value, dtype):
    """As a 1x1 kernel it reads no padding; what is not finite stands where the definition puts it."""
    for z in (
        Problem("plain", 2, 5, 3, 4, 6, 3, 4),
        Problem("strided", 2, 4, 3, 4, 6, 3, 4, (2, 3)),
        Problem("groups", 1, 6, 4, 1, 3, 4, 1, groups=3),
    ):
        first, second = (fill(shape, dtype, "integers", i) for i, shape in enumerate(operand_shapes("input_grad", z)))
        second[1, 1, -1, 0] = value
        want = reference("input_grad", first, second, z)
        for one, other in itertools.product(("contiguous", "channels_last", "sliced"), repeat=2):
            got = call("input_grad", laid_out(first, one), laid_out(second, other), z)
            assert_same_with_non_finite(got, want, dtype)
