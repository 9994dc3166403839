"""What will run and why: the plan of the three passes of one call, for people."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import _C, checks, functional
from .settings import current_algorithm, current_precision

PASSES = ("forward", "input_grad", "weight_grad")


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} T"


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@dataclass(frozen=True)
class PassPlan:
    """How one pass would be computed.

    candidates: (name, reason, possible) of every algorithm in the plan's order; the reason is None where nothing speaks
        against it, and an algorithm that is possible in spite of its reason can be forced.
    tiles: outputs and channels per task (on CUDA: of a block). workspace_bytes: shared by all threads; scratch_bytes:
        for each thread.
    as_1x1: the kernel covers its input and is computed as a 1x1 kernel over C R S channels (where strides allow it).
    flops: multiplications and additions of real numbers. bytes: operands and result, each touched once.
    """

    name: str
    algorithm: str
    isa: str
    candidates: tuple
    tiles: dict
    tasks: int
    workspace_bytes: int
    scratch_bytes: int
    flops: float
    bytes: float
    as_1x1: bool

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.algorithm} ({self.isa})"]
        for name, reason, _ in self.candidates:
            mark = "chosen" if name == self.algorithm else f"no: {reason}" if reason else "possible"
            lines.append(f"    {name:<10} {mark}")
        if self.as_1x1:
            lines.append("    computed as a 1x1 kernel over C R S channels, where the operands' strides allow it")
        if self.tiles:
            tiles = ", ".join(f"{k} {v}" for k, v in self.tiles.items())
            lines.append(f"    tiles      {tiles}; {self.tasks} tasks")
        lines.append(
            f"    memory     workspace {_bytes(self.workspace_bytes)}, scratch {_bytes(self.scratch_bytes)} a thread"
        )
        intensity = f", {self.flops / self.bytes:.1f} FLOP per byte" if self.bytes else ""
        lines.append(f"    work       {_count(self.flops)}FLOP, {_bytes(self.bytes)}{intensity}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """The plans of the three passes of one call; `print` shows them, `.forward` and its like hold them."""

    problem: str
    forward: PassPlan = field(repr=False)
    input_grad: PassPlan = field(repr=False)
    weight_grad: PassPlan = field(repr=False)

    def __str__(self) -> str:
        return "\n".join([self.problem, *(str(getattr(self, name)) for name in PASSES)])

    __repr__ = __str__


def explain(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation="none"
) -> Explanation:
    """Says for each pass of ``conv2d`` with these arguments which algorithm would run, and why not the others.

    Takes the arguments of ``conv2d`` (tensors on any device; their values are not read) and checks them as it does.
    As there, one operand that is contiguous as ``torch.channels_last`` alone decides for that layout.
    The algorithm and precision settings in force are those that the call would get.

    Returns:
        Explanation: prints algorithm, reasons, tiles, workspace, FLOPs and bytes of each pass.

    Raises:
        What ``conv2d`` raises for the same arguments.
    """
    batched = functional.check_operands("explain", 4, input, weight, bias)
    if not batched:
        input = input.unsqueeze(0)
    geometry = functional.normalize("explain", input, weight, stride, padding, dilation, groups)
    stride, padding, dilation, groups = geometry
    precision = current_precision(input.device.type) if input.dtype == torch.float32 else "ieee"
    output = checks.check("forward", input, weight, bias, None, *geometry, precision, activation)
    dtype = str(input.dtype).removeprefix("torch.")
    sizes = list(input.shape), list(weight.shape), output
    channels_last = any(map(_is_channels_last, (input, weight)))
    capability = 0
    if input.is_cuda:
        major, minor = torch.cuda.get_device_capability(input.device)
        capability = 10 * major + minor
    plans = {}
    for name in PASSES:
        plan = _C.plan(
            name, dtype, *sizes, list(stride), list(padding), list(dilation), groups, current_algorithm(), precision,
            channels_last, capability,
        )
        plans[name] = PassPlan(
            name=plan.pop("pass"), candidates=tuple(plan.pop("candidates")), **plan
        )
    n, c, h, w = sizes[0]
    k, _, r, s = sizes[1]
    problem = (
        f"N {n}  C {c}  H {h}  W {w}   K {k}  R {r}  S {s}   P {output[2]}  Q {output[3]}   "
        f"stride {stride}  padding {padding}  dilation {dilation}  groups {groups}   {dtype}, {precision}"
        + (", channels_last" if channels_last else "")
        + ("" if activation == "none" else f", {activation}")
    )
    return Explanation(problem, **plans)
