"""Convolutions that a graph calls as functions become layers, where their weights are constants of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from . import patterns
from .arguments import named_activation
from .modules import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, set_sides
from .patterns import Modules, aten

__all__ = ["lift"]

_PACKED = torch.ops.conv_ext.forward_packed.default
_TRANSPOSED = (ConvTranspose1d, ConvTranspose2d)


def lift(traced: GraphModule) -> dict[str, tuple[Any, ...]]:
    """Exchange, in place, calls of convolution functions for calls of our layers with the same parameters.

    A layer stands where its weight stood, so that names in the state_dict stay; a weight that others read as well
    stays where it is, and the layer gets a name of its own.

    Returns: of each call that stays, by its node's name, (kind, nothing taken in, [why]).
    """
    modules: dict[str, nn.Module] = dict(traced.named_modules(remove_duplicate=False))
    refused: dict[str, tuple[Any, ...]] = {}
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target is _PACKED:
            refused[node.name] = "forward_packed", [], ["it is packed already: export what conv_ext.unpack makes"]
        if node.op != "call_function" or node.target not in patterns.CONVOLUTIONS:
            continue
        values = patterns.bound(node, patterns.CONVOLUTIONS[node.target][1])
        kind, why = _kind_of(node, values, modules)
        if why:
            refused[node.name] = getattr(node.target, "__name__", str(node.target)), [], [why]
            continue
        layer = _layer(kind, node.target, values, modules)
        name = _home(traced, node, values, modules)
        traced.add_submodule(name, layer)
        modules[name] = layer
        with traced.graph.inserting_before(node):
            called = traced.graph.call_module(name, (values["input"],))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        traced.graph.erase_node(node)
        for read in {values["weight"], values.get("bias")} - {None}:
            if not read.users:
                traced.graph.erase_node(read)
                _forget(traced, read.target, modules)
    return refused


def _kind_of(node: Node, values: dict[str, Any], modules: Modules) -> tuple[type, str]:
    """The layer that computes a call, and why none can."""
    kind = patterns.CONVOLUTIONS[node.target][0]
    weight, bias = values["weight"], values.get("bias")
    if any(each is not None and patterns.constant(each, modules) is None for each in (weight, bias)):
        return kind, "its weight or bias is computed when it is called"
    geometry = [value for name, value in values.items() if name not in ("input", "weight", "bias", "residual")]
    if any(
        isinstance(each, Node)
        for value in geometry
        for each in (value if isinstance(value, (list, tuple)) else [value])
    ):
        return kind, "its geometry is computed when it is called"
    if values.get("residual") is not None:
        return kind, "it adds a tensor already"
    if node.target is torch.ops.conv_ext.forward.default:
        settings = values.get("precision", "ieee"), values.get("algorithm", "auto")
        if settings != ("ieee", "auto"):  # a layer asks for them when it is called
            return kind, f"it was exported under precision {settings[0]!r} and algorithm {settings[1]!r}"
    rank = patterns.constant(weight, modules).dim()
    if node.target is aten.convolution.default:
        kinds = {(False, 3): Conv1d, (False, 4): Conv2d, (True, 3): ConvTranspose1d, (True, 4): ConvTranspose2d}
        kind = kinds.get((values["transposed"], rank))
        dimensions = f"{'Transpose' * values['transposed']}{rank - 2}d"
        return (kind, "") if kind else (nn.Module, f"conv_ext has no Conv{dimensions}")
    return kind, "" if rank == (3 if kind in (Conv1d, ConvTranspose1d) else 4) else f"its weight has {rank} dimensions"


def _layer(kind: type, operator: Callable[..., Any], values: dict[str, Any], modules: Modules) -> nn.Module:
    weight, bias = patterns.constant(values["weight"], modules), patterns.constant(values.get("bias"), modules)
    names = ["stride", "padding", "dilation", "groups"]
    if kind in _TRANSPOSED:
        names.append("output_padding")
    else:
        names.append("activation")  # of our own function
    options = {name: _plain(values[name]) for name in names if name in values}
    if operator is torch.ops.conv_ext.forward.default and "activation" in options:
        options["activation"] = named_activation(options["activation"], values.get("low", 0.0), values.get("high", 0.0))
    sides = options.pop("padding") if operator is torch.ops.conv_ext.forward.default else ()
    groups = options.get("groups", 1)
    c, k = weight.shape[1] * groups, weight.shape[0]
    if kind in _TRANSPOSED:
        c, k = weight.shape[0], weight.shape[1] * groups
    layer = kind(c, k, tuple(weight.shape[2:]), **options, bias=bias is not None, device="meta", dtype=weight.dtype)
    if sides:
        set_sides(layer, sides)
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    found: nn.Module = layer.eval()
    return found


def _forget(traced: GraphModule, target: str, modules: Modules) -> None:
    """Take a parameter that only a layer of its own reads from where it stood, or the state_dict had it twice."""
    place, _, leaf = target.rpartition(".")
    wanted = {node.target for node in traced.graph.nodes if node.op in ("get_attr", "call_module")}
    if target not in wanted and place not in wanted and leaf in modules[place]._parameters:
        delattr(modules[place], leaf)


def _plain(value: Any) -> Any:
    """A list of ints as the tuple that a layer keeps; a list of one, which is meant for every dimension, as it."""
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(value) == 1 else tuple(value)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _home(traced: GraphModule, node: Node, values: dict[str, Any], modules: Modules) -> str:
    """Where the layer goes: to the place of what holds its weight and nothing else, or to one of its own."""
    operands = {"weight": values["weight"], "bias": values.get("bias")}
    place, _, leaf = operands["weight"].target.rpartition(".")
    holder = modules.get(place)
    names = {name: each.target for name, each in operands.items() if each is not None}
    reads = Counter(each.target for each in traced.graph.nodes if each.op == "get_attr")
    alone = place and names == {name: f"{place}.{name}" for name in names}
    if alone and type(holder) is nn.Module and not holder._modules and not holder._buffers:
        held = {name for name, tensor in holder._parameters.items() if tensor is not None}
        once = all(reads[target] == 1 for target in names.values())
        mine = all(set(each.users) == {node} for each in operands.values() if each is not None)
        if held == set(names) and once and mine:
            found: str = place
            return found
    return f"{place.replace('.', '_') or 'weight'}_{node.name}"
