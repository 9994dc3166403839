"""A kernel that covers its input is taken for 1x1 over C R S channels: only where the operands' memory allows it."""

import itertools

import pytest
import torch

from passes import LAYOUTS, PASSES, call, fill, laid_out, operand_shapes
from problems import Problem
from tolerance import assert_exact, reference

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
