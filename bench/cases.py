"""One case of the bench: a layer, a pass, a dtype, a layout and a precision; its operands, and both sides' calls."""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import conv_ext
from bench.judge import Judge, Verdict
from bench.shapes import TRAIN, Shape

MEMORY_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    shape: Shape
    pass_name: str
    dtype: str
    layout: str
    algorithm: str
    precision: str = "ieee"
    device: str = "cpu"

    @property
    def name(self) -> str:
        precision = "" if self.precision == "ieee" else f" {self.precision}"
        batch = "" if self.shape.batch == TRAIN else f" n={self.shape.n}"
        return f"{self.shape.full_name}{batch} {self.pass_name} {self.dtype}{precision} {self.layout}"

    def describe(self) -> dict:
        return {**self.shape.describe(), "pass": self.pass_name, "dtype": self.dtype, "layout": self.layout,
                "precision": self.precision, "algorithm": self.algorithm, "device": self.device,
                "bytes": self.shape.elements * getattr(torch, self.dtype).itemsize}


def cases(shapes: Iterable[Shape], passes, dtypes, layouts, algorithm: str, precisions=("ieee",),
          device: str = "cpu") -> list[Case]:
    """Neighbours differ in layout and precision alone, so that they are judged by one float64 result."""
    found = []
    for dtype, shape, pass_name in itertools.product(dtypes, shapes, passes):
        # A precision is leave to round float32's operands; the other dtypes know only one.
        several = precisions if dtype == "float32" else ("ieee",)
        found += [Case(shape, pass_name, dtype, layout, algorithm, precision, device)
                  for layout, precision in itertools.product(layouts, several)]
    return found


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
    """Normally distributed, made where they are used, the same numbers at every run and in every layout."""
    shape, generator = case.shape, torch.Generator(case.device).manual_seed(2024)
    dtype, memory_format = getattr(torch, case.dtype), MEMORY_FORMATS[case.layout]

    def normal(*sizes: int) -> torch.Tensor:
        drawn = dtype if dtype.is_complex else torch.float32
        return torch.randn(sizes, generator=generator, device=case.device, dtype=drawn).to(dtype)

    return Operands(
        x=normal(shape.n, shape.c, shape.h, shape.w).contiguous(memory_format=memory_format),
        w=normal(shape.k, shape.c // shape.groups, shape.r, shape.s).contiguous(memory_format=memory_format),
        b=normal(shape.k),
        g=normal(shape.n, shape.k, shape.p, shape.q).contiguous(memory_format=memory_format),
    )


def ours(case: Case, o: Operands) -> Callable[[], torch.Tensor]:
    """The public function for forward, under precision and algorithm in force; the operator for a gradient alone."""
    shape = case.shape
    sides = (shape.padding[0], shape.padding[0], shape.padding[1], shape.padding[1])
    settings = (shape.stride, sides, shape.dilation, shape.groups, case.precision, case.algorithm)
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
    if o.x.is_complex():
        return lambda: _complex_gradient(shape, o, which)
    mask = [which == 0, which == 1, False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(o.g, o.x, o.w, None, shape.stride, shape.padding, shape.dilation, False, [0, 0],
                            shape.groups, mask)[which]


def _complex_gradient(shape: Shape, o: Operands, which: int) -> torch.Tensor:
    """By autograd, for the function behind it takes real numbers alone; without its conjugation, as our operators."""
    with torch.enable_grad():
        x, w = (operand.conj().resolve_conj().requires_grad_() for operand in (o.x, o.w))
        y = F.conv2d(x, w, None, shape.stride, shape.padding, shape.dilation, shape.groups)
        return torch.autograd.grad(y, (x, w)[which], o.g)[0]


def judged_images(case: Case) -> list[int] | None:
    """Which images of a result on a GPU are judged, where float64 of all would take its time; None: all."""
    n = case.shape.n
    return [0, 1, n - 2, n - 1] if case.device == "cuda" and case.pass_name != "weight_grad" and n > 4 else None


@functools.lru_cache(maxsize=1)
def _judge(shape: Shape, pass_name: str, dtype: str, device: str) -> Judge:
    case = Case(shape, pass_name, dtype, "nchw", "auto", device=device)
    o = operands(case)
    if images := judged_images(case):
        o.x, o.g = o.x[images], o.g[images]
    searching = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # of float64, nothing is timed here
    try:
        return Judge(pass_name, dtype, shape.reduction(pass_name), lambda change: theirs(case, o.map(change))())
    finally:
        torch.backends.cudnn.benchmark = searching


def judge(case: Case) -> Callable[[torch.Tensor, str], Verdict]:
    found, images = _judge(case.shape, case.pass_name, case.dtype, case.device), judged_images(case)
    return found if images is None else lambda result, precision: found(result[images], precision)


def plan(case: Case, o: Operands) -> "conv_ext.explain.PassPlan":
    """What ours would do with the case; with a forced algorithm, whether it can is in the candidates' reasons."""
    shape = case.shape
    with conv_ext.algorithm("auto"):
        found = conv_ext.explain(o.x, o.w, o.b, shape.stride, shape.padding, shape.dilation, shape.groups)
    return getattr(found, case.pass_name)


def declined(case: Case, o: Operands) -> str | None:
    """Why the forced algorithm cannot compute the case; None where it can, or none is forced."""
    if case.algorithm == "auto":
        return None
    reasons = {name: None if possible else reason for name, reason, possible, _ in plan(case, o).candidates}
    if case.algorithm not in reasons:
        raise SystemExit(f"--algorithm must be auto or one of {', '.join(reasons)}, got {case.algorithm}")
    return reasons[case.algorithm]
