"""What will run and why: the plan of the three passes of one call, for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram  # `import torch` loads it, too

from . import _C
from .arguments import (
    Activation,
    Geometry,
    Padding,
    check_operands,
    normalize,
    of_one_row,
    operators_activation,
    shown_activation,
)
from .functional import IntOrPair
from .mapped import MappedConv2d
from .modules import Conv1d, Conv2d, _padded
from .passes import PASSES, result_size
from .settings import current_algorithm, current_precision
from .tables import Table, as_html
from .transposed import transposed_size

if TYPE_CHECKING:
    from .model_plans import ModelExplanation


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
    """As the kernels see it (is_channels_last, csrc/common/buffers.h): a slice of the channels is, too."""

    def ordered(fastest_first: tuple[int, ...]) -> bool:
        least = 0
        for d in fastest_first:
            if tensor.size(d) != 1:
                if tensor.stride(d) < least:
                    return False
                least = tensor.size(d) * tensor.stride(d)
        return True

    return ordered((1, 3, 2, 0)) and not ordered((3, 2, 1, 0))


@dataclass(frozen=True)
class PassPlan:
    """How one pass would be computed.

    algorithm: None where `conv_ext.algorithm` forces one that cannot compute this pass; `refused` has the words of the
        error that the call raises, and what follows from a plan is empty. forced: whether one is forced.
    candidates: (name, reason, possible, cycles) of every algorithm. On a CPU the reason says why it cannot compute the
        pass, and is None where it can; cycles are those of a core that it is estimated to take, of a forward or
        input_grad for one image, and None where there is no estimate: the plan takes the fewest. On CUDA the first
        without a reason is taken; one that is possible in spite of its reason can be forced.
    works: what the estimates of cycles count, for `python -m bench fit`: name: (loops, counts).
    tiles: outputs and channels per task (on CUDA: of a block). workspace_bytes: shared by all threads; scratch_bytes:
        for each thread.
    as_1x1: the kernel covers its input, and is computed as a 1x1 kernel over C R S channels. channels_last: whether
        one of the operands lies so, its rows and columns perhaps with gaps between them.
    flops: multiplications and additions of real numbers. bytes: operands and result, each touched once.
    """

    name: str
    algorithm: str | None
    isa: str
    candidates: tuple[Any, ...]
    tiles: dict[str, Any]
    tasks: int
    workspace_bytes: int
    scratch_bytes: int
    works: dict[str, Any] = field(repr=False)
    flops: float
    bytes: float
    as_1x1: bool
    channels_last: bool = False
    forced: bool = False
    refused: str | None = None

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(candidate[0], self._mark(*candidate)) for candidate in self.candidates]
        if self.as_1x1:
            rows.append(("computed", "as a 1x1 kernel over C R S channels"))
        if self.tiles:
            tiles = ", ".join(f"{k} {v}" for k, v in self.tiles.items())
            rows.append(("tiles", f"{tiles}; {self.tasks} task{'' if self.tasks == 1 else 's'}"))
        if not self.refused:
            memory = f"workspace {_bytes(self.workspace_bytes)}, scratch {_bytes(self.scratch_bytes)} a thread"
            rows.append(("memory", memory))
        intensity = f", {self.flops / self.bytes:.1f} FLOP per byte" if self.bytes else ""
        rows.append(("work", f"{_count(self.flops)}FLOP, {_bytes(self.bytes)}{intensity}"))
        return rows

    def _title(self) -> str:
        return f"{self.name}: {f'none, {self.refused}' if self.refused else self.algorithm} ({self.isa})"

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join([self._title(), *(f"    {name:<{width}} {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        return as_html([self._title(), Table((), self._rows(), left=2)])

    def _mark(self, name: str, reason: str | None, possible: bool, cycles: float | None) -> str:
        """What is said of a candidate; one that can be forced is never said to be one that cannot."""
        if not possible:
            return f"cannot: {reason}"
        each = "" if self.name == "weight_grad" else " an image"
        estimate = f", estimated at {_count(cycles)}cycles{each}" if cycles is not None else ""
        if name == self.algorithm:
            return f"chosen: conv_ext.algorithm says so{estimate}" if self.forced else f"chosen{estimate}"
        least = min((own for *_, own in self.candidates if own is not None), default=None)
        if cycles is not None and least:
            return f"can{estimate}, {'the least' if cycles == least else f'{cycles / least:.3g} times the least'}"
        if reason:
            return f"can, but leaves it to others: {reason}"
        return "can where it is forced: it has no estimate here" if least else "can"


@dataclass(frozen=True)
class Explanation:
    """The plans of the three passes of one call; `print` shows them, `.forward` and its like hold them."""

    problem: str
    forward: PassPlan = field(repr=False)
    input_grad: PassPlan = field(repr=False)
    weight_grad: PassPlan = field(repr=False)

    def __str__(self) -> str:
        return "\n".join([self.problem, *(str(getattr(self, each.name)) for each in PASSES)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html([self.problem]) + "".join(getattr(self, each.name)._repr_html_() for each in PASSES)


@overload
def explain(input: nn.Conv1d | nn.Conv2d, weight: Tensor, residual: Tensor, /) -> Explanation: ...
@overload
def explain(
    input: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
) -> Explanation: ...
@overload
def explain(input: nn.Module, weight: Tensor | tuple[Any, ...]) -> Explanation | ModelExplanation: ...
@overload
def explain(input: ExportedProgram, weight: Tensor | tuple[Any, ...]) -> Explanation | ModelExplanation: ...
@overload
def explain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: Padding | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Explanation: ...
def explain(
    input: Any,
    weight: Any = None,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *,
    activation: Any = "none",
    residual: Any = None,
) -> Explanation | ModelExplanation:
    """Says for each pass of ``conv2d`` with these arguments which algorithm would run, and why not the others.

    Takes the arguments of ``conv2d`` (tensors on any device; their values are not read) and checks them as it does; or
    a layer and its input, ``explain(layer, x)``: Conv1d, Conv2d, ConvTranspose1d or ConvTranspose2d, ours or torch's,
    which is explained as `conv_ext.convert` would make it; a layer of ours takes a residual behind x, too. No plan
    knows of an activation or a residual: they are checked and shown. As in a call, one operand that is contiguous as
    ``torch.channels_last`` alone decides for that layout, and so does a slice of such a tensor's channels. The upstream
    gradient is taken for a dense one; with an expanded one, as ``y.sum().backward()`` has, another algorithm may run.
    The algorithm and precision settings in force are those that the call would get; a pass that a forced algorithm
    cannot compute is shown with the reason.

    Of a model and its input, ``explain(model, x)``, it gives a table with a row for each call of such a layer, and of
    MappedConv2d, whose rows are convolutions of several sizes: their algorithms, work, estimated cycles and packed
    bytes. x may be a tuple, of all that the model is called with. Nothing is computed and the model stays as it is; one
    that looks at the numbers of its tensors is copied and called. Convolutions that no layer computes have no row. A
    program of torch.export, whose convolutions are functions, is explained as `conv_ext.fuse` makes it.

    Of each algorithm it prints "chosen", "can" with the cycles of a core that it is estimated to take (for one image;
    a weight_grad for all), or "cannot" and why. The fewest cycles are chosen; what nobody has measured for such a
    problem, or found never worth it, has none. On CUDA "can, but leaves it to others" and why, too. What can may be
    forced by ``conv_ext.algorithm``.

    A sequence is an image of one row. A transposed layer is explained as the convolution that it is the input gradient
    of: `.input_grad` is what its forward runs, `.forward` its own input gradient.

    Returns:
        Explanation: prints algorithm, reasons, tiles, workspace, FLOPs and bytes of each pass; of a model, and of a
        MappedConv2d, a ModelExplanation, whose ``.layers`` have the explanations of each.

    Raises:
        What ``conv2d``, the layer or the model raises for the same arguments. TypeError: a module without convolutions,
        or nothing behind a tensor or a module.
    """
    if isinstance(input, (nn.Module, ExportedProgram)):
        if weight is None:
            raise TypeError(
                f"explain({type(input).__name__}) lacks the input: explain(layer, x) or explain(model, x), where "
                "values of x are not read (torch.empty will do)"
            )
        if (stride, padding, dilation, groups, activation) != (1, 0, 1, 1, "none"):
            raise TypeError("explain(layer, input) takes nothing more: the layer has the other arguments")
        if bias is not None or residual is not None:
            return _of_layer_with(input, weight, bias, residual)
        return _of_module(input, weight) if isinstance(input, nn.Module) else _of_program(input, weight)
    if weight is None:
        raise TypeError(
            "explain(input) lacks the weight: explain(x, weight, ...) takes the arguments of conv2d, "
            "and explain(layer, x) a layer or a model before its input"
        )
    return _of_convolution(4, input, weight, bias, stride, padding, dilation, groups, activation, residual)


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def is_explained(module: nn.Module) -> bool:
    """Whether `explain_calls` takes a layer."""
    return isinstance(module, (*_LAYERS, MappedConv2d))


def explain_calls(layer: Any, input: Any, residual: Any = None) -> list[Explanation]:
    """The convolutions that a call of a layer computes: one, or several of a MappedConv2d."""
    if isinstance(layer, MappedConv2d):
        return [_of_convolution(4, *[*arguments, layer.activation]) for arguments in layer._calls(input)]
    try:
        return [_of_layer(layer, input, residual)]
    except RuntimeError as error:
        raise (of_one_row(error) if len(layer.kernel_size) == 1 else error) from None


def _of_layer_with(layer: Any, input: Any, third: Any, residual: Any) -> Explanation:
    """Of a layer's call with a residual, given in the third place or by its name."""
    if not isinstance(layer, (Conv1d, Conv2d)) or (third is not None and residual is not None):
        raise TypeError(
            "explain(layer, input) takes nothing more, but a residual of conv_ext.Conv1d and Conv2d: the layer has the "
            f"other arguments, and of a model x is a tuple of all that it is called with; got {type(layer).__name__}"
        )
    added = residual if third is None else third
    if not isinstance(added, Tensor):
        raise TypeError(f"explain(): argument 'residual' must be Tensor, not {type(added).__name__}")
    plans = explain_calls(layer, input)[0]  # checks the input, at whose size `_fuses` looks
    return explain_calls(layer, input, added)[0] if layer._fuses(input, layer.weight, added) else plans


def _of_module(module: nn.Module, input: Any) -> Explanation | ModelExplanation:
    from .model_plans import explain_model  # which explains each layer by this module

    if isinstance(module, _LAYERS):
        return explain_calls(module, input)[0]
    if not any(map(is_explained, module.modules())):
        raise TypeError(
            "explain takes a tensor, a layer of Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d or MappedConv2d with "
            f"its input, or a model that has one; got {type(module).__name__}"
        )
    given = input if isinstance(input, tuple) else (input,)
    _check_given(given)
    return explain_model(module, given)


def _of_program(program: ExportedProgram, input: Any) -> Explanation | ModelExplanation:
    from .fuse import fuse  # which chooses layouts by what `explain` says

    given = input if isinstance(input, tuple) else (input,)
    _check_given(given)
    return _of_module(fuse(program, *given), given)


def _check_given(given: tuple[Any, ...]) -> None:
    if all(isinstance(value, (int, float)) for value in given):  # a size, as summary takes it
        raise TypeError(
            "explain(model, x) takes the model's input, a tensor or a tuple of all that it is called with (values are "
            f"not read: torch.empty(1, 3, 224, 224) will do), got {given[0] if len(given) == 1 else given!r}"
        )


def _of_layer(layer: nn.Module, input: Any, residual: Any) -> Explanation:
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return _of_transposed(layer, input)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    input, padding = _padded(layer, input)
    geometry = layer.stride, padding, layer.dilation, layer.groups
    activation = getattr(layer, "activation", "none")
    return _of_convolution(len(layer.kernel_size) + 2, input, layer.weight, layer.bias, *geometry, activation, residual)


def _of_convolution(
    rank: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    residual: Any = None,
) -> Explanation:
    batched = check_operands("explain", rank, input, weight, bias, residual)
    stride, padding, dilation, groups = normalize("explain", input, weight, stride, padding, dilation, groups, rank - 2)
    if not batched:
        input, residual = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    if rank == 3:
        input, weight = input.contiguous().unsqueeze(2), weight.unsqueeze(2)
        residual = None if residual is None else residual.unsqueeze(2)
        stride, padding, dilation = (1, *stride), (0, 0, *padding), (1, *dilation)
    geometry: Geometry = stride, padding, dilation, groups
    name, low, high = operators_activation(activation)
    output = result_size("forward", input, weight, bias, (), *geometry, _precision(input), name, residual, low, high)
    shown = "" if residual is None else ", residual"
    shown += "" if activation == "none" else f", {shown_activation(activation)}"
    return _explained(input, list(input.shape), weight, output, *geometry, shown, list(input.stride()))


def _of_transposed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, input: Any) -> Explanation:
    weight, length = layer.weight, len(layer.kernel_size)
    batched = check_operands("explain", length + 2, input, weight, layer.bias)
    if not batched:
        input = input.unsqueeze(0)
    stride, padding, dilation, groups = normalize(
        "explain", input, weight, layer.stride, layer.padding, layer.dilation, layer.groups, length
    )
    output_padding = layer.output_padding
    if length == 1:
        input, weight = input.contiguous().unsqueeze(2), weight.unsqueeze(2)
        stride, padding, dilation, output_padding = (1, *stride), (0, 0, *padding), (1, *dilation), (0, *output_padding)
    geometry: Geometry = stride, padding, dilation, groups
    size = transposed_size(input, weight, layer.bias, stride, padding, output_padding, groups, dilation)
    # As in functional.py: an output padding of a stride or more is more positions of the convolution.
    extra = [o // s for o, s in zip(output_padding, stride)]
    grad = input if extra == [0, 0] else F.pad(input, (0, extra[1], 0, extra[0]))
    image = result_size("input_grad", grad, weight, None, size, *geometry, _precision(input))
    return _explained(input, image, weight, list(grad.shape), *geometry)


def _precision(tensor: torch.Tensor) -> str:
    return current_precision(tensor.device.type) if tensor.dtype == torch.float32 else "ieee"


def _plan_or_refusal(plan: Callable[[str], PassPlan], algorithm: str) -> PassPlan:
    """Of a pass that the forced algorithm cannot compute: the candidates, none of them chosen."""
    try:
        return plan(algorithm)
    except RuntimeError as error:
        usual = plan("auto")
        if algorithm not in (name for name, _, possible, _ in usual.candidates if not possible):
            raise
        refused = str(error).splitlines()[0]
        return replace(
            usual, algorithm=None, forced=True, refused=refused, tiles={}, tasks=0, workspace_bytes=0, scratch_bytes=0
        )


def _explained(
    operand: Any,
    input: Any,
    weight: Any,
    output: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    epilogue: str = "",
    input_stride: Any = None,
) -> Explanation:
    """The plans of one convolution. operand: the tensor beside the weight; input, output: sizes.

    epilogue: what is shown of it. input_stride: where the operand is the input, how it lies; else all three tensors
    are taken for dense ones.
    """
    dtype, precision = str(operand.dtype).removeprefix("torch."), _precision(operand)
    sizes = input, list(weight.shape), output
    channels_last = any(map(_is_channels_last, (operand, weight)))
    strides = {"input_stride": input_stride, "weight_stride": list(weight.stride())} if input_stride else {}
    capability = 0
    if operand.is_cuda:
        major, minor = torch.cuda.get_device_capability(operand.device)
        capability = 10 * major + minor
    plans = {}
    for each in PASSES:

        def plan(algorithm: str, name: Any = each.name) -> PassPlan:
            found = _C.plan(
                name, dtype, *sizes, list(stride), list(padding), list(dilation), groups, algorithm, precision,
                channels_last, capability, **strides,
            )  # fmt: skip
            candidates = tuple(found.pop("candidates"))
            return PassPlan(name=found.pop("pass"), candidates=candidates, forced=algorithm != "auto", **found)

        plans[each.name] = _plan_or_refusal(plan, current_algorithm())
    n, c, h, w = input
    k, _, r, s = sizes[1]
    problem = (
        f"N {n}  C {c}  H {h}  W {w}   K {k}  R {r}  S {s}   P {output[2]}  Q {output[3]}   "
        f"stride {stride}  padding {padding}  dilation {dilation}  groups {groups}   {dtype}"
        + (f", precision {precision}" if operand.dtype == torch.float32 else "")
        + (", channels_last" if plans["forward"].channels_last else "")
        + epilogue
    )
    return Explanation(problem, **plans)
