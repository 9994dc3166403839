"""`fuse(model)`: batch normalisation folded into our convolutions, and ReLU computed in their epilogue."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .convert import convert
from .mapped import MappedConv2d
from .modules import Conv1d, Conv2d

__all__ = ["fuse"]

_NORMS = {Conv1d: nn.BatchNorm1d, Conv2d: nn.BatchNorm2d}
_RELU_FUNCTIONS = {torch.relu, torch.relu_, F.relu, F.relu_}
_RELU_METHODS = {"relu", "relu_"}


class _Tracer(Tracer):
    """Keeps our layers whole, as torch's are."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (Conv1d, Conv2d, MappedConv2d)) or super().is_leaf_module(module, name)


def fuse(model: nn.Module) -> GraphModule:
    """A new model for inference that computes the same in fewer passes over memory.

    Every batch normalisation that alone reads what a convolution layer writes is folded into its weight and bias; then
    every ReLU (module, function or method) that alone reads it moves into the layer, as ``activation="relu"``. torch's
    own Conv1d and Conv2d become ours first. What else there is stays: layers with hooks or parametrizations, complex
    ones, normalisations without running statistics or with a layout of their own.

    Args:
        model: an nn.Module in eval mode, all of it. It stays as it is; the new one has copies of its tensors.

    Returns:
        torch.fx.GraphModule: made by symbolic tracing, with the submodules' old names, in eval mode. Scores are those
        of `model` but for rounding (the same bits where nothing was folded). Layers that a model calls more than once
        are copied for each call that was changed.

    Raises TypeError where `model` is no nn.Module, ValueError where it, or a part of it, is in training mode, and
    RuntimeError where it cannot be traced (control flow that depends on values): the message has torch.fx's reason.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes a torch.nn.Module, got {type(model).__name__}")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        raise ValueError(f"fuse takes a model in eval mode, but {training[0]}{more} is in training mode: model.eval()")
    if isinstance(model, (Conv1d, Conv2d, MappedConv2d, nn.Conv1d, nn.Conv2d)):
        model = nn.Sequential(model).eval()  # a single layer has no graph of its own
    fused = convert(copy.deepcopy(model))
    tracer = _Tracer()
    try:
        graph = tracer.trace(fused)
    except Exception as error:  # torch.fx raises TraceError, and whatever a forward raises on its proxies
        raise RuntimeError(
            f"fuse: {type(model).__name__} cannot be traced by torch.fx; fuse the parts that can, or convert alone. "
            f"torch.fx says: {error}"
        ) from error
    traced = GraphModule(tracer.root, graph, type(model).__name__)
    modules = dict(traced.named_modules())
    for node in list(graph.nodes):
        layer = _fusible(node, modules)
        if layer is None:
            continue
        if isinstance(layer, tuple(_NORMS)) and layer.activation == "none":
            layer = _fold_norm(traced, node, layer, modules)
        if layer.activation == "none" and not layer.weight.is_complex():
            _fold_relu(traced, node, layer, modules)
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _fusible(node: Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The layer that a node calls, if it is exactly ours and nothing else looks at what passes through it."""
    if node.op != "call_module":
        return None
    layer = modules[node.target]
    plain = type(layer) in (Conv1d, Conv2d, MappedConv2d) and not layer._forward_hooks and not layer._forward_pre_hooks
    return layer if plain and list(layer._parameters) == ["weight", "bias"] else None


def _next(node: Node) -> Node | None:
    """The one node that reads this one's result, or None where there are several."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _own(traced: GraphModule, node: Node, layer: nn.Module, modules: dict[str, nn.Module]) -> nn.Module:
    """The layer, for this call alone: a copy under a new name where others call it as well, or read its weight."""

    def uses(other: Node) -> bool:
        if other.op == "get_attr":
            return modules.get(other.target.rpartition(".")[0]) is layer
        return other.op == "call_module" and modules[other.target] is layer and other is not node

    if not any(map(uses, traced.graph.nodes)):
        return layer
    name = f"{node.target.replace('.', '_')}_{node.name}"
    layer = copy.deepcopy(layer)
    traced.add_submodule(name, layer)
    modules[name] = layer
    node.target = name
    return layer


def _skip(traced: GraphModule, node: Node) -> None:
    """Take a node out of the graph: its readers read what it read."""
    node.replace_all_uses_with(node.args[0])
    traced.graph.erase_node(node)


def _fold_norm(traced: GraphModule, node: Node, layer, modules: dict[str, nn.Module]):
    """Fold the normalisation behind a layer into it, if there is one that can be; returns the layer to go on with."""
    after = _next(node)
    norm = modules[after.target] if after is not None and after.op == "call_module" else None
    if type(norm) is not _NORMS[type(layer)] or norm.running_mean is None:
        return layer
    if norm._forward_hooks or norm._forward_pre_hooks or norm.num_features != layer.out_channels:
        return layer
    layer = _own(traced, node, layer, modules)
    layer.weight, layer.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    _skip(traced, after)
    return layer


def _fold_relu(traced: GraphModule, node: Node, layer, modules: dict[str, nn.Module]) -> None:
    """Move the ReLU behind a layer into it, if there is one that alone reads the layer's result."""
    after = _next(node)
    if after is None or after.args[:1] != (node,):
        return
    is_module = after.op == "call_module" and type(modules[after.target]) is nn.ReLU
    is_function = after.op == "call_function" and after.target in _RELU_FUNCTIONS
    if not (is_module or is_function or after.op == "call_method" and after.target in _RELU_METHODS):
        return
    if is_module and (modules[after.target]._forward_hooks or modules[after.target]._forward_pre_hooks):
        return
    _own(traced, node, layer, modules).activation = "relu"
    _skip(traced, after)
