"""Our operators in ONNX: `translation_table` for torch's exporter, `register_symbolics` for the older one.

::

    program = torch.onnx.export(model, (x,), custom_translation_table=conv_ext.onnx.translation_table())
    program.save("model.onnx")

forward becomes Conv with what its epilogue computes behind it, input_grad (a transposed convolution) ConvTranspose, and
a packed forward the Conv of the weight as it was before it was packed. The precision and algorithm that a call was
exported under have no say in ONNX, nor is there a promise of equal bits.

It takes the packages onnx and onnxscript (``pip install 'conv_ext[onnx]'``), which are imported when it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import ops
from .arguments import ACTIVATIONS, padding_of

__all__ = ["register_symbolics", "translation_table"]

# The first that torch writes by itself; HardSwish came with 14. Conv, ConvTranspose and Pad are the same from 11 to 21.
_OPSET = 18
_OPSET_OF_CONV = 11

# An activation on a value of the graph; op has ONNX's operators as methods, and `number` a value's neighbour in dtype.
_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda op, y, low, high: op.Relu(y),
    "clamp": lambda op, y, low, high: op.Clip(y, _number(op, low, y), _number(op, high, y)),
    "silu": lambda op, y, low, high: op.Mul(y, op.Sigmoid(y)),
    "hardswish": lambda op, y, low, high: op.HardSwish(y),
}


def _number(op: Any, value: float, like: Any) -> Any:
    """A constant of the dtype of another value."""
    return op.CastLike(op.Constant(value_float=value), like)


def _with_epilogue(op: Any, y: Any, activation: str, residual: Any = None, low: float = 0, high: float = 0) -> Any:
    if residual is not None:
        y = op.Add(y, residual)
    if activation == ACTIVATIONS[0]:
        return y
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise NotImplementedError(f"conv_ext.onnx: activation {activation!r} has no translation; these have: {known}")
    return _ACTIVATIONS[activation](op, y, low, high)


def _known(*numbers: Sequence[Any]) -> bool:
    """Whether all are numbers; what follows from a dynamic size is a value of the graph."""
    return all(isinstance(number, int) for each in numbers for number in each)


def _vector(op: Any, numbers: Sequence[Any]) -> Any:
    """Numbers, some of which the graph computes, as one of its tensors."""
    parts = [
        op.Constant(value_ints=[n]) if isinstance(n, int) else op.Reshape(n, op.Constant(value_ints=[1]))
        for n in numbers
    ]
    return op.Concat(*parts, axis=0)


# ---- for the exporter that reads torch.export's programs


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Our operators for ``torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())``.

    Models that `convert` has changed, fused and packed ones (packed bytes do not go into the file), Conv1d, Conv2d,
    ConvTranspose1d, ConvTranspose2d, MappedConv2d and the functions, in the dtypes that ONNX's Conv has (no complex
    ones). The batch may be dynamic, and so may height and width, with every padding string.

    Raises:
        ImportError: onnxscript is missing.
    """
    try:
        op: Any = importlib.import_module("onnxscript").values.Opset("", _OPSET)
    except ImportError as error:
        raise ImportError("conv_ext.onnx needs onnx and onnxscript: pip install 'conv_ext[onnx]'") from error

    def forward(
        input: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[Any],
        padding: Sequence[Any],
        dilation: Sequence[Any],
        groups: int,
        precision: str = "ieee",
        algorithm: str = "auto",
        activation: str = "none",
        *epilogue: Any,
        **more: Any,
    ) -> Any:
        top, bottom, left, right = padding
        pads = [top, left, bottom, right]
        if not _known(pads):  # Conv has them as attributes: pad first
            input = op.Pad(input, _vector(op, [0, 0, top, left, 0, 0, bottom, right]))
            pads = [0] * 4
        y = op.Conv(input, weight, bias, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)
        return _with_epilogue(op, y, activation, *epilogue, **more)

    def forward_packed(input: Any, weight: Any, packed: Any, bias: Any, *options: Any, **named: Any) -> Any:
        return forward(input, weight, bias, *options, **named)

    def input_grad(
        grad_output: Any,
        weight: Any,
        input_size: Sequence[Any],
        stride: Sequence[Any],
        padding: Sequence[Any],
        dilation: Sequence[Any],
        groups: int,
        precision: str = "ieee",
        algorithm: str = "auto",
    ) -> Any:
        top, bottom, left, right = padding
        named = dict(strides=list(stride), dilations=list(dilation), group=groups)
        positions, kernel = list(grad_output.shape)[2:], list(weight.shape)[2:]
        if _known(input_size, positions):
            spans = zip(input_size, positions, stride, kernel, dilation, (top + bottom, left + right))
            more = [n - ((p - 1) * s + d * (r - 1) + 1 - zeros) for n, p, s, r, d, zeros in spans]
            pads = [top, left, bottom, right]
            return op.ConvTranspose(grad_output, weight, pads=pads, output_padding=more, **named)
        # Everything that positions reach, and the rest of a stride; of that the size that is wanted.
        whole = op.ConvTranspose(grad_output, weight, output_padding=[s - 1 for s in stride], **named)
        starts = op.Constant(value_ints=[top, left])
        ends = op.Add(starts, _vector(op, input_size))
        return op.Slice(whole, starts, ends, op.Constant(value_ints=[2, 3]))

    return {ops.forward: forward, ops.forward_packed: forward_packed, ops.input_grad: input_grad}


# ---- for the older exporter, which traces

_EPILOGUE = ("activation", "residual", "low", "high")
_DESCRIPTORS = {"Tensor": "v", "Optional[Tensor]": "v", "List[int]": "is", "int": "i", "float": "f", "str": "s"}


def register_symbolics() -> None:
    """Tell ``torch.onnx.export(model, inputs, path, dynamo=False)`` our operators, for the rest of the process.

    The older exporter traces: numbers that a model makes of sizes by itself are constants. It takes what
    `translation_table` takes, every padding string for dynamic sizes included. Of a fused model with ``dynamic_axes``
    it wants ``output_names``, too, as of every torch.fx.GraphModule.
    """
    from torch.onnx.utils import register_custom_op_symbolic

    for symbolic, names in {
        _convolution: ("forward", "forward_packed", "recorded_conv1d", "recorded_conv2d"),
        _transposed: ("recorded_conv_transpose1d", "recorded_conv_transpose2d"),
    }.items():
        for name in names:
            register_custom_op_symbolic(f"conv_ext::{name}", _by_name(name, symbolic), _OPSET_OF_CONV)


def _by_name(name: str, symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """`symbolic(op, arguments by their names)` as the exporter calls it: with a graph and values in their order."""
    from torch.onnx import symbolic_helper

    arguments = getattr(torch.ops.conv_ext, name).default._schema.arguments
    descriptors: list[Any] = [_DESCRIPTORS[str(argument.type)] for argument in arguments]

    def of_graph(graph: Any, *values: Any) -> Any:
        given = {
            argument.name: None if symbolic_helper._is_none(value) else symbolic_helper._parse_arg(value, descriptor)
            for argument, value, descriptor in zip(arguments, values, descriptors)
        }
        return symbolic(_Graph(graph), given)

    return of_graph


class _Graph:
    """The older exporter's graph with the operators as methods, as onnxscript has them."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def Constant(self, **attributes: Any) -> Any:
        (value,) = attributes.values()
        return self.graph.op("Constant", value_t=torch.tensor(value))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*operands: Any, **attributes: Any) -> Any:
            kinds = {int: "i", list: "i", str: "s"}
            typed = {f"{key}_{kinds[type(value)]}": value for key, value in attributes.items()}
            return self.graph.op(name, *(each for each in operands if each is not None), **typed)

        return call


def _convolution(op: _Graph, given: dict[str, Any]) -> Any:
    """Conv of the operator, or of a call that was recorded with a padding string."""
    input, weight, stride, padding = (given[name] for name in ("input", "weight", "stride", "padding"))
    named = dict(strides=stride, dilations=given["dilation"], group=given["groups"])
    if padding == "same_strided":
        named["auto_pad"] = "SAME_UPPER"  # ceil(size / stride) positions, the odd zero at the end
    else:
        if isinstance(padding, str):  # none of these asks for the input's size
            padding = padding_of(padding, (), weight.type().sizes()[2:], stride, given["dilation"])
        named["pads"] = [*padding[::2], *padding[1::2]]
    y = op.Conv(input, weight, given["bias"], **named)
    return _with_epilogue(op, y, **{name: given[name] for name in _EPILOGUE if name in given})


def _transposed(op: _Graph, given: dict[str, Any]) -> Any:
    input, stride, output_padding = given["input"], given["stride"], given["output_padding"]
    extra = [o // s for o, s in zip(output_padding, stride)]  # as in functional.py
    if any(extra):
        input = op.Pad(input, op.Constant(value_ints=[0] * (len(extra) + 4) + extra))
    rest = [o % s for o, s in zip(output_padding, stride)]
    named = dict(strides=stride, pads=given["padding"] * 2, output_padding=rest, dilations=given["dilation"])
    return op.ConvTranspose(input, given["weight"], given["bias"], group=given["groups"], **named)
