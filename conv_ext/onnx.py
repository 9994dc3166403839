"""Our operators in ONNX: `translation_table` for torch's exporter, `register_symbolics` for the older one.

::

    program = torch.onnx.export(model, (x,), custom_translation_table=conv_ext.onnx.translation_table())
    program.save("model.onnx")

forward becomes Conv with its activation behind it, input_grad (a transposed convolution) ConvTranspose, and a packed
forward the Conv of the weight as it was before it was packed. The precision and algorithm that a call was exported
under have no say in ONNX, nor is there a promise of equal bits.

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

_OPERATORS = {"relu": "Relu"}  # the operator of ONNX that computes an activation; "none" has none
_OPSET = 18  # the first of the dynamo exporter's; Conv and ConvTranspose are the same in all from 11 to 21


def _activated(op: Any, y: Any, activation: str) -> Any:
    if activation == ACTIVATIONS[0]:
        return y
    if activation not in _OPERATORS:
        known = ", ".join(_OPERATORS)
        raise NotImplementedError(
            f"conv_ext.onnx: activation {activation!r} has no translation; those that have: {known}"
        )
    return getattr(op, _OPERATORS[activation])(y)


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
    ) -> Any:
        top, bottom, left, right = padding
        pads = [top, left, bottom, right]
        if not _known(pads):  # Conv has them as attributes: pad first
            input = op.Pad(input, _vector(op, [0, 0, top, left, 0, 0, bottom, right]))
            pads = [0] * 4
        y = op.Conv(input, weight, bias, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)
        return _activated(op, y, activation)

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


def register_symbolics() -> None:
    """Tell ``torch.onnx.export(model, inputs, path, dynamo=False)`` our operators, for the rest of the process.

    The older exporter traces: numbers that a model makes of sizes by itself are constants. It takes what
    `translation_table` takes, every padding string for dynamic sizes included.
    """
    from torch.onnx import symbolic_helper
    from torch.onnx.utils import register_custom_op_symbolic

    def with_bias(g: Any, name: str, *operands: Any, **named: Any) -> Any:
        return g.op(name, *[each for each in operands if not symbolic_helper._is_none(each)], **named)

    def convolved(g: Any, input: Any, weight: Any, bias: Any, groups: int, activation: str, **named: Any) -> Any:
        y = with_bias(g, "Conv", input, weight, bias, group_i=groups, **named)
        return _activated(_Graph(g), y, activation)

    def sided(padding: Sequence[int]) -> list[int]:
        """Before and after each dimension -> before each, then after each."""
        return [*padding[::2], *padding[1::2]]

    options: Any = ("is", "is", "is", "i", "s", "s", "s")

    @symbolic_helper.parse_args("v", "v", "v", *options)
    def forward(
        g: Any,
        input: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[Any],
        padding: Sequence[Any],
        dilation: Sequence[Any],
        groups: int,
        precision: str,
        algorithm: str,
        activation: str,
    ) -> Any:
        named = dict(strides_i=stride, pads_i=sided(padding), dilations_i=dilation)
        return convolved(g, input, weight, bias, groups, activation, **named)

    def forward_packed(g: Any, input: Any, weight: Any, packed: Any, bias: Any, *rest: Any) -> Any:
        return forward(g, input, weight, bias, *rest)

    @symbolic_helper.parse_args("v", "v", "v", "is", "s", "is", "i", "s", "s", "s")
    def by_rule(
        g: Any,
        input: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[Any],
        rule: str,
        dilation: Sequence[Any],
        groups: int,
        activation: str,
        precision: str,
        algorithm: str,
    ) -> Any:
        named = dict(strides_i=stride, dilations_i=dilation)
        if rule == "same_strided":
            named["auto_pad_s"] = "SAME_UPPER"  # ceil(size / stride) positions, the odd zero at the end
        else:  # none of the others asks for the size
            kernel = symbolic_helper._get_tensor_sizes(weight)[2:]
            named["pads_i"] = sided(padding_of(rule, [], kernel, stride, dilation))
        return convolved(g, input, weight, bias, groups, activation, **named)

    @symbolic_helper.parse_args("v", "v", "v", "is", "is", "is", "i", "is", "s", "s")
    def transposed(
        g: Any,
        input: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[Any],
        padding: Sequence[Any],
        output_padding: Sequence[Any],
        groups: int,
        dilation: Sequence[Any],
        precision: str,
        algorithm: str,
    ) -> Any:
        extra = [o // s for o, s in zip(output_padding, stride)]  # as in functional.py
        if any(extra):
            pads = torch.tensor([0] * (len(extra) + 4) + extra)
            input = g.op("Pad", input, g.op("Constant", value_t=pads))
        rest = [o % s for o, s in zip(output_padding, stride)]
        named = dict(strides_i=stride, pads_i=list(padding) * 2, output_padding_i=rest, dilations_i=dilation)
        return with_bias(g, "ConvTranspose", input, weight, bias, group_i=groups, **named)

    for names, symbolic in (
        (["forward"], forward),
        (["forward_packed"], forward_packed),
        (["recorded_conv1d", "recorded_conv2d"], by_rule),
        (["recorded_conv_transpose1d", "recorded_conv_transpose2d"], transposed),
    ):
        for name in names:
            register_custom_op_symbolic(f"conv_ext::{name}", symbolic, 11)


class _Graph:
    """The older exporter's graph with the operators as methods, as onnxscript has them."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *operands: self.graph.op(name, *operands)
