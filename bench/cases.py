"""One case of the bench: a layer, a pass, a dtype and a layout; its operands, both calls, and whether ours is right."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import conv_ext
from bench.shapes import Shape

# The unit roundoffs of the accumulation and of the result's own rounding.
ROUNDOFF = {
    "float32": (2.0**-24, 0.0),
    "float64": (2.0**-53, 0.0),
    "bfloat16": (2.0**-24, 2.0**-8),
    "float16": (2.0**-24, 2.0**-11),
}
MEMORY_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    shape: Shape
    pass_name: str
    dtype: str
    layout: str
    algorithm: str

    @property
    def name(self) -> str:
        return f"{self.shape.full_name} {self.pass_name} {self.dtype} {self.layout}"

    def describe(self) -> dict:
        return {**self.shape.describe(), "pass": self.pass_name, "dtype": self.dtype, "layout": self.layout,
                "algorithm": self.algorithm, "bytes": self.shape.elements * getattr(torch, self.dtype).itemsize}


def cases(shapes: list[Shape], passes, dtypes, layouts, algorithm: str) -> list[Case]:
    product = itertools.product(dtypes, layouts, shapes, passes)
    return [Case(shape, pass_name, dtype, layout, algorithm) for dtype, layout, shape, pass_name in product]


@dataclass
class Operands:
    """x: (N, C, H, W), w: (K, C/g, R, S), b: (K), g, the upstream gradient: (N, K, P, Q)."""

    x: torch.Tensor
    w: torch.Tensor
    b: torch.Tensor
    g: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Operands":
        return Operands(*map(function, (self.x, self.w, self.b, self.g)))


def operands(case: Case) -> Operands:
    """Normally distributed, the same numbers at every run."""
    shape, generator = case.shape, torch.Generator().manual_seed(2024)
    dtype, memory_format = getattr(torch, case.dtype), MEMORY_FORMATS[case.layout]

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    return Operands(
        x=normal(shape.n, shape.c, shape.h, shape.w).contiguous(memory_format=memory_format),
        w=normal(shape.k, shape.c // shape.groups, shape.r, shape.s).contiguous(memory_format=memory_format),
        b=normal(shape.k),
        g=normal(shape.n, shape.k, shape.p, shape.q).contiguous(memory_format=memory_format),
    )


def ours(case: Case, o: Operands) -> Callable[[], torch.Tensor]:
    """The public function for forward, the operator for a gradient alone."""
    shape = case.shape
    sides = (shape.padding[0], shape.padding[0], shape.padding[1], shape.padding[1])
    settings = (shape.stride, sides, shape.dilation, shape.groups, "ieee", case.algorithm)
    if case.pass_name == "forward":
        return lambda: conv_ext.conv2d(o.x, o.w, o.b, shape.stride, shape.padding, shape.dilation, shape.groups)
    if case.pass_name == "input_grad":
        return lambda: torch.ops.conv_ext.input_grad(o.g, o.w, (shape.h, shape.w), *settings)
    return lambda: torch.ops.conv_ext.weight_grad(o.g, o.x, (shape.r, shape.s), *settings)


def theirs(case: Case, o: Operands) -> Callable[[], torch.Tensor]:
    """F.conv2d for forward; for a gradient the function behind its backward, asked for that one alone."""
    shape = case.shape
    if case.pass_name == "forward":
        return lambda: F.conv2d(o.x, o.w, o.b, shape.stride, shape.padding, shape.dilation, shape.groups)
    which = ("input_grad", "weight_grad").index(case.pass_name)
    mask = [which == 0, which == 1, False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(o.g, o.x, o.w, None, shape.stride, shape.padding, shape.dilation, False, [0, 0],
                            shape.groups, mask)[which]


@dataclass
class Verdict:
    """Errors of one result, in units of the rounding that cannot be avoided; wrong where one is beyond its bound."""

    largest: float
    rms: float
    right: bool


class Judge:
    """Holds a case's float64 result and judges others by it.

    With A the convolution of the absolute values, L the length of the reduction, u the roundoff of the accumulation and
    u_out that of the result's dtype, an element may be wrong by u_out |reference| + 2 sqrt(L) u A. Errors are reported
    relative to u_out |reference| + u A.
    """

    def __init__(self, case: Case, o: Operands):
        self.u, self.u_out = ROUNDOFF[case.dtype]
        self.length = case.shape.reduction(case.pass_name)
        # Always from contiguous operands, by torch's float64 code: no code in common with what is judged.
        self.reference = theirs(case, o.map(lambda t: t.double().contiguous()))()
        self.magnitude = theirs(case, o.map(lambda t: t.double().abs().contiguous()))()

    def __call__(self, result: torch.Tensor) -> Verdict:
        if result.shape != self.reference.shape:
            return Verdict(math.inf, math.inf, False)
        error = (result.double() - self.reference).abs()
        rounding = self.u_out * self.reference.abs()
        accumulation = self.u * self.magnitude
        right = bool((error <= rounding + 2 * math.sqrt(self.length) * accumulation).all())  # false for a NaN
        units = torch.where(error == 0, 0.0, error / (rounding + accumulation))
        return Verdict(units.max().item(), units.square().mean().sqrt().item(), right)
