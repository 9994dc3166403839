"""Nothing is read or written out of bounds: guarded operands, guarded scratch, checked heap, indices beyond 2^31."""

import sys

import pytest
import torch

from children import SUPPORT, run_python
from conv_ext.library import available_isas
from passes import PASSES, applicable, call, fill, repeats
from problems import Problem
from tolerance import assert_exact, reference

# glibc's checking allocator looks at the byte after each block when the block is freed: it sees what a result's
# storage, which the operator allocates itself, cannot be guarded against.
CHECKED_HEAP = {
    "LD_PRELOAD": "libc_malloc_debug.so.0",
    "MALLOC_CHECK_": "3",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guards memory in Linux's way")


def run(what, **environment):
    return run_python("-X", "faulthandler", str(SUPPORT / "guarded_calls.py"), what, **environment)


def test_a_guard_catches_a_read_behind_the_end():
    child = run("fault")
    assert child.returncode < 0 and "Segmentation fault" in child.stderr


def checked_heap():
    """The environment that catches a byte written behind a block; empty where this C library has none."""
    return CHECKED_HEAP if run("overrun", **CHECKED_HEAP).returncode < 0 else {}


@pytest.mark.parametrize("isa", available_isas())
def test_operands_and_scratch_against_unreadable_pages(isa):
    """Every kernel, of shapes that no block divides, both behind a guard page and before one."""
    if isa == "avx512" and repeats(isa):
        pytest.skip("the library that is taken instead has all kernels of this one")
    child = run("calls", CONV_EXT_ISA=isa, **checked_heap())
    assert child.returncode == 0, f"in: {child.stdout.splitlines()[-1:]}\n{child.stderr[-3000:]}"
    assert len(child.stdout.splitlines()) > (100 if repeats(isa) else 1000)


# ---- more than 2^31 elements, in memory of which only a few pages exist


def sparse(elements, dtype=torch.float32):
    """Zeros that take no memory until they are written."""
    import mmap

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, elements * 4, flags=flags), dtype=dtype)


@pytest.mark.skipif(sys.maxsize < 2**32, reason="needs 64-bit addresses")
@pytest.mark.parametrize("pass_name", PASSES)
def test_strides_beyond_2_to_31(pass_name):
    """Every operand with an element whose offset does not fit into 32 bits."""
    z = Problem("far", 2, 2, 2, 3, 2, 2, 2)
    far = 2**31 + 7
    first, second = {
        "forward": (z.input_shape, z.weight_shape),
        "input_grad": (z.output_shape, z.weight_shape),
        "weight_grad": (z.output_shape, z.input_shape),
    }[pass_name]
    a, b = fill(first, torch.float32, "integers", 1), fill(second, torch.float32, "integers", 2)
    ref = reference(pass_name, a, b, z)
    memory = sparse(far + 4096)
    for dim in (0, 1):
        strides = [64, 64, 8, 1]
        strides[dim] = far
        views = [memory[offset:].as_strided(t.shape, strides) for offset, t in ((0, a), (1024, b))]
        for view, t in zip(views, (a, b)):
            view.copy_(t)
        for algorithm in applicable(pass_name, z, torch.float32):
            assert_exact(call(pass_name, *views, z, algorithm=algorithm), ref, torch.float32)


@pytest.mark.parametrize("columns", [True, False])
def test_positions_beyond_2_to_31(columns):
    """One row or column of over 2^31 positions, of which a stride reads five."""
    extent, step = 2**31 + 9, 2**29
    line = sparse(extent)
    for i in range(5):
        line[i * step] = i + 1
        line[i * step + 1] = 10 * (i + 1)
    shape, kernel, stride = (
        ((1, 1, 1, extent), (1, 2), (1, step)) if columns else ((1, 1, extent, 1), (2, 1), (step, 1))
    )
    z = Problem("long", 1, 1, *shape[2:], 1, *kernel, stride)
    x, w = line.view(shape), torch.tensor([1.0, 2.0]).view(1, 1, *kernel)
    assert (z.p, z.q) == ((1, 5) if columns else (5, 1))
    for algorithm in applicable("forward", z, torch.float32):
        assert call("forward", x, w, z, algorithm=algorithm).flatten().tolist() == [21.0 * (i + 1) for i in range(5)]
    g = torch.tensor([1.0, 10, 100, 1000, 10_000]).view(1, 1, z.p, z.q)
    for algorithm in applicable("weight_grad", z, torch.float32):
        assert call("weight_grad", g, x, z, algorithm=algorithm).flatten().tolist() == [54_321.0, 543_210.0]
