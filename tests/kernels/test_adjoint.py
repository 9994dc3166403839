"""The three passes are derivatives of one form: <forward(x, w), g> = <x, input_grad(g, w)> = <w, weight_grad(g, x)>."""

import pytest
import torch

from drawn import given, st
from passes import DTYPES, PASSES, applicable, call, dtype_name, fill
from problems import ALL, Problem


def inner(a, b):
    """Sum of products in float64 or complex128, not conjugated; exact for small integers."""
    wide = torch.complex128 if a.is_complex() else torch.float64
    return (a.to(wide) * b.to(wide)).sum()


def assert_adjoint(z, dtype, algorithms):
    """algorithms: one for each pass."""
    shapes = z.input_shape, z.weight_shape, z.output_shape
    x, w, g = (fill(shape, dtype, "integers", seed) for seed, shape in enumerate(shapes))
    y = call("forward", x, w, z, algorithm=algorithms[0])
    dx = call("input_grad", g, w, z, algorithm=algorithms[1])
    dw = call("weight_grad", g, x, z, algorithm=algorithms[2])
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype,) * 3
    assert inner(y, g) == inner(x, dx) == inner(w, dw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=dtype_name)
@pytest.mark.parametrize("z", ALL, ids=str)
def test_named_problems(z, dtype):
    for algorithms in zip(*(applicable(pass_name, z, dtype) for pass_name in PASSES)):
        assert_adjoint(z, dtype, algorithms)


@st.composite
def problems(draw):
    """Any problem that is small, its sizes drawn so that the kernel fits."""
    size = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    groups = size(1, 3)
    r, s, dilation = size(1, 4), size(1, 4), (size(1, 3), size(1, 3))
    padding = tuple(size(0, 4) for _ in range(4))
    h = size(max(1, dilation[0] * (r - 1) + 1 - padding[0] - padding[1]), 14)
    w = size(max(1, dilation[1] * (s - 1) + 1 - padding[2] - padding[3]), 14)
    c, k = groups * size(1, 3), groups * size(1, 3)
    return Problem("drawn", size(0, 3), c, h, w, k, r, s, (size(1, 4), size(1, 4)), padding, dilation, groups)


@given(z=problems(), dtype=st.sampled_from(DTYPES[:2] + DTYPES[4:]), data=st.data())
def test_drawn_problems(z, dtype, data):
    algorithms = [data.draw(st.sampled_from(applicable(pass_name, z, dtype))) for pass_name in PASSES]
    assert_adjoint(z, dtype, algorithms)
