"""The three operators called alike: operands, fills, layouts, and one check that the three test files share."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from conv_ext import _C
from conv_ext.library import EMULATED, PACKAGE, available_isas
from conv_ext.settings import PRECISIONS
from problems import ALL, NETWORK, SMALL, THREADED, Problem
from tolerance import PASS, Reference, assert_exact, assert_within_bound, reference

PASSES = tuple(PASS)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
FILLS = ("integers", "signed", "positive")
LAYOUTS = (
    ("contiguous", "contiguous"),
    ("channels_last", "channels_last"),
    ("channels_last", "contiguous"),
    ("contiguous", "channels_last"),
    ("sliced", "transposed"),
    ("transposed", "sliced"),
)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# The libraries of these instruction sets are of the same objects (SHARES_PASSES in setup.py) but for one algorithm.
SAME_PASSES = ("amx", "avx512_bf16", "avx512", EMULATED)
THEIR_OWN = "implicit_gemm"
# The naive loops have no blocks, tails or tasks: what they do with more products than these, they do with fewer.
NAIVE_MACS = 250_000


def repeats(isa: str) -> bool:
    """Whether an instruction set that comes before has the same kernels, THEIR_OWN aside."""
    same = [name for name in (*available_isas(), EMULATED) if name in SAME_PASSES]
    return isa in same[1:]


def is_slow(algorithm: str, z: Problem) -> bool:
    """Whether only `make test-all` tries it."""
    return algorithm == "reference" and z.macs > NAIVE_MACS


# Every problem with every dtype; the networks' larger ones with three that differ in kind, the largest with one.
CASES = [
    pytest.param(z, dtype, id=f"{z}-{dtype_name(dtype)}", marks=pytest.mark.quick if z in SMALL else ())
    for z in ALL + THREADED
    for dtype in (DTYPES[:1] if z in THREADED else DTYPES[:3] if z in NETWORK else DTYPES)
]


def operand_shapes(pass_name: str, z: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the two operands, in the order in which the operator takes them."""
    return {
        "forward": (z.input_shape, z.weight_shape),
        "input_grad": (z.output_shape, z.weight_shape),
        "weight_grad": (z.output_shape, z.input_shape),
    }[pass_name]


def fill(shape: tuple[int, ...], dtype: torch.dtype, kind: str, seed: int) -> Tensor:
    """Integers in [-4, 4] (every sum is exact), or reals in [-1, 1) or [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_complex:
        parts = fill((*shape, 2), torch.float32 if dtype is torch.complex64 else torch.float64, kind, seed)
        return torch.view_as_complex(parts)
    if kind == "integers":
        return torch.randint(-4, 5, shape, generator=generator).to(dtype)
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (values if kind == "positive" else 2 * values - 1).to(dtype)


@functools.lru_cache(maxsize=64)
def operands(pass_name: str, z: Problem, dtype: torch.dtype, kind: str) -> tuple[Tensor, Tensor]:
    seed = zlib.crc32(f"{z} {pass_name} {kind}".encode())
    first, second = operand_shapes(pass_name, z)
    return fill(first, dtype, kind, seed), fill(second, dtype, kind, seed + 1)


@functools.lru_cache(maxsize=64)
def expected(pass_name: str, z: Problem, dtype: torch.dtype, kind: str) -> Reference:
    return reference(pass_name, *operands(pass_name, z, dtype, kind), z)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values in another layout. What lies between the elements of a slice is NaN."""
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert layout == "sliced"
    n, c, h, w = t.shape
    around = torch.full((n + 1, c + 2, 2 * h + 1, 3 * w + 2), float("nan"), dtype=t.dtype)
    view = around[1:, 1 : c + 1, 1::2, 1 : 3 * w + 1 : 3]
    view.copy_(t)
    return view


def call(
    pass_name: str,
    first: Tensor,
    second: Tensor,
    z: Problem,
    bias: Tensor | None = None,
    algorithm: str = "auto",
    precision: str = "ieee",
) -> Tensor:
    op = getattr(torch.ops.conv_ext, pass_name)
    geometry = (z.stride, z.padding, z.dilation, z.groups, precision, algorithm)
    if pass_name == "forward":
        return op(first, second, bias, *geometry)
    return op(first, second, (z.h, z.w) if pass_name == "input_grad" else (z.r, z.s), *geometry)


def candidates(
    pass_name: str, z: Problem, dtype: torch.dtype, precision: str = "ieee"
) -> list[tuple[str, str | None, bool]]:
    """The plan's algorithms, each with its reason for "no" (None: nothing speaks against it), and if it can run."""
    sizes = (z.input_shape, z.weight_shape, z.output_shape)
    geometry = (z.stride, z.padding, z.dilation, z.groups)
    return _C.plan(pass_name, dtype_name(dtype), *sizes, *geometry, "auto", precision)["candidates"]


def applicable(pass_name: str, z: Problem, dtype: torch.dtype, precision: str = "ieee") -> list[str]:
    return [name for name, _, possible, _ in candidates(pass_name, z, dtype, precision) if possible]


def algorithms_by_precision(pass_name: str, z: Problem, dtype: torch.dtype) -> list[tuple[str, str]]:
    """What can run at "ieee", and the implicit matrix product at the strictest precision that lets it."""
    found = dict.fromkeys(applicable(pass_name, z, dtype), "ieee")
    for precision in PRECISIONS if dtype is torch.float32 else ():
        if "implicit_gemm" in applicable(pass_name, z, dtype, precision):
            found.setdefault("implicit_gemm", precision)
    return list(found.items())


@contextlib.contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """The kernels of another instruction set, in this process; CONV_EXT_ISA chooses one at import."""
    before = _C.isa()
    _C.load_kernel_library(str(PACKAGE / "lib" / f"libconv_ext_{isa}.so"))
    try:
        assert _C.isa() == isa
        yield
    finally:
        _C.load_kernel_library(str(PACKAGE / "lib" / f"libconv_ext_{before}.so"))


def assert_result_format(got: Tensor, first: Tensor, second: Tensor) -> None:
    """channels_last if either operand suggests it, and exactly the strides of a new tensor of that format."""
    either = torch.channels_last in (suggest_memory_format(first), suggest_memory_format(second))
    wanted = torch.empty(got.shape, memory_format=torch.channels_last if either else torch.contiguous_format)
    assert got.stride() == wanted.stride()


def check_pass(pass_name: str, z: Problem, dtype: torch.dtype) -> None:
    """Every instruction set and applicable algorithm against the reference; SMALL problems in more ways.

    A kernel that several libraries have is tried in one of them.
    """
    for kind in FILLS if z in SMALL else FILLS[:2]:
        ref = expected(pass_name, z, dtype, kind)
        check = assert_exact if kind == "integers" else assert_within_bound
        for layouts in LAYOUTS if z in SMALL and kind == "integers" else LAYOUTS[:2]:
            a, b = (laid_out(t, layout) for t, layout in zip(operands(pass_name, z, dtype, kind), layouts))
            for isa in available_isas():
                with instruction_set(isa):
                    algorithms = algorithms_by_precision(pass_name, z, dtype)
                    assert ("reference", "ieee") in algorithms
                    new = [how for how in algorithms if how[0] == THEIR_OWN or not repeats(isa)]
                    results = {how: call(pass_name, a, b, z, None, *how) for how in new if not is_slow(how[0], z)}
                for (algorithm, precision), got in results.items():
                    try:
                        # Small integers have few bits: exact in any precision.
                        check(got, ref, dtype, precision) if check is assert_within_bound else check(got, ref, dtype)
                        assert_result_format(got, a, b)
                    except AssertionError as error:
                        how = f"{pass_name} by {algorithm} with {isa} of {kind}, {layouts}, {z!r}"
                        raise AssertionError(f"{how}: {error}") from None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit: +0 is not -0, and a NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))
