"""`fuse(model)`: batch normalisation folded into our convolutions, and ReLU computed in their epilogue."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from inspect import Parameter, signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn.modules.lazy import LazyModuleMixin

from .convert import convert
from .mapped import MappedConv2d
from .modules import Conv1d, Conv2d, ConvTranspose2d

__all__ = ["fuse"]

_LAYERS = (Conv1d, Conv2d, ConvTranspose2d, MappedConv2d)
_TORCHS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_RELU_FUNCTIONS = {torch.relu, torch.relu_, F.relu, F.relu_}
_RELU_METHODS = {"relu", "relu_"}


class _Tracer(Tracer):
    """Keeps our layers whole, as torch's are."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _LAYERS) or super().is_leaf_module(module, name)


def fuse(model: nn.Module) -> nn.Module:
    """A new model for inference that computes the same in fewer passes over memory.

    Every batch normalisation that alone reads what a convolution layer writes is folded into its weight and bias; then
    every ReLU (module, function or method) that alone reads it moves into the layer, as ``activation="relu"``, but for
    ConvTranspose2d, which has none. torch's own Conv1d, Conv2d and ConvTranspose2d become ours first, as `convert`
    makes them. What else there is stays: layers of classes derived from these (the logger "conv_ext" names them, at
    level INFO), with hooks, parametrizations or a forward put into the object, complex ones, normalisations without
    running statistics or with a layout of their own. A Conv1d that has taken a normalisation in refuses (C, L).

    Args:
        model: an nn.Module in eval mode, all of it. It stays as it is; the new one has copies of its tensors.

    Returns:
        torch.fx.GraphModule: made by symbolic tracing, with the submodules' old names, in eval mode. Scores are those
        of `model` but for rounding (the same bits where nothing was folded). Layers that a model calls more than once
        are copied for each call that was changed.

        Where torch.fx cannot trace the whole (control flow that depends on values or options, as in the models of
        Hugging Face), and where `model` itself has hooks or a forward put into the object, a copy of `model` with its
        own class: each largest part that can be traced is fused, and what was taken out of it is an nn.Identity. There
        a layer has to be called once, and a ReLU to be a module. A part is taken to be called as a whole: its layers
        by its own forward alone.

    Raises TypeError where `model` is no nn.Module, ValueError where it, or a part of it, is in training mode, and
    RuntimeError where a lazy layer has no parameters yet, or where it can neither be traced nor has a convolution: the
    message has torch.fx's reason.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes a torch.nn.Module, got {type(model).__name__}")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        raise ValueError(f"fuse takes a model in eval mode, but {training[0]}{more} is in training mode: model.eval()")
    lazy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()
    ]
    if lazy:
        raise RuntimeError(f"fuse: {lazy[0]} has no parameters before its first call; call the model once first")
    if isinstance(model, (*_LAYERS, *_TORCHS)):
        model = nn.Sequential(model).eval()  # a single layer has no graph of its own
    fused = convert(copy.deepcopy(model))
    if not _undisturbed(fused):  # a graph has its class's forward alone
        return _fuse_parts(fused)
    tracer = _Tracer()
    try:
        graph = tracer.trace(fused)
    except Exception as error:  # torch.fx raises TraceError, and whatever a forward raises on its proxies
        if any(isinstance(module, _LAYERS) for module in fused.modules()):
            return _fuse_parts(fused)
        raise RuntimeError(
            f"fuse: {type(model).__name__} cannot be traced by torch.fx, and has no convolution layers to be fused one "
            f"by one. torch.fx says: {error}"
        ) from error
    traced = GraphModule(tracer.root, graph, type(model).__name__)
    modules = dict(traced.named_modules())
    for node in list(graph.nodes):
        layer = _fusible(node, modules)
        if layer is None:
            continue
        norm = _norm_behind(node, layer, modules)
        if norm is not None:
            layer = _own(traced, node, layer, modules)
            _fold(layer, modules[norm.target])
            _skip(traced, norm)
        relu = _relu_behind(node, layer, modules)
        if relu is not None:
            _own(traced, node, layer, modules).activation = "relu"
            _skip(traced, relu)
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


# ---- a model that cannot be traced: part by part, in place


def _fuse_parts(model: nn.Module) -> nn.Module:
    """Fuse in place what lies within each largest part that can be traced."""
    names = defaultdict(list)  # of each module; a shared one has several
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)

    def inside(part: nn.Module, module: nn.Module) -> bool:
        """Whether no other part of the model can call the module."""
        prefixes = tuple(f"{outer}." if outer else "" for outer in names[part])
        return all(name.startswith(prefixes) for name in names[module])

    def visit(outer: nn.Module) -> None:
        for name, part in outer.named_children():
            whole = _Tracer().is_leaf_module(part, name)  # a layer, or a ModuleList, which has no forward
            chains = None if whole else _chains(part)
            if chains is None:
                visit(part)
                continue
            for layer_name, norm_name, relu_name in sorted(chains):
                removed = [name for name in (norm_name, relu_name) if name]
                layer = part.get_submodule(layer_name)
                if not all(inside(part, part.get_submodule(name)) for name in (layer_name, *removed)):
                    continue
                if norm_name:
                    _fold(layer, part.get_submodule(norm_name))
                if relu_name:
                    layer.activation = "relu"
                gone = [part.get_submodule(name) for name in removed]
                for alias in [alias for module in gone for alias in names[module]]:
                    model.set_submodule(alias, nn.Identity().eval())

    visit(nn.Sequential(model))
    return model.eval()


def _chains(part: nn.Module) -> set[tuple[str, str, str]] | None:
    """(layer, norm or "", ReLU or "") of each layer behind which one of them can go; None where tracing fails.

    Code that asks whether an optional argument is None finds a proxy when that is traced, and a caller may give none:
    what is to be fused has to be there in both cases. A part with a forward put into the object is not traced: torch.fx
    would trace its class's.
    """
    if "forward" in vars(part):
        return None
    found = []
    try:
        arguments = signature(part.forward).parameters.values()
        defaults = {a.name: a.default for a in arguments if a.default is not Parameter.empty}
        for concrete in [None, defaults] if defaults else [None]:
            graph = _Tracer().trace(part, concrete_args=concrete)
            found.append(_chains_of(graph, dict(part.named_modules())))
    except Exception:  # as in `fuse`
        return None
    return set.intersection(*found)


def _chains_of(graph: Graph, modules: dict[str, nn.Module]) -> set[tuple[str, str, str]]:
    called = Counter(modules[node.target] for node in graph.nodes if node.op == "call_module")
    read = {modules.get(node.target.rpartition(".")[0]) for node in graph.nodes if node.op == "get_attr"}

    def alone(module: nn.Module) -> bool:
        return called[module] == 1 and module not in read

    found = set()
    for node in graph.nodes:
        layer = _fusible(node, modules)
        if layer is None or not alone(layer):
            continue
        norm = _norm_behind(node, layer, modules)
        norm = norm if norm is not None and alone(modules[norm.target]) else None
        relu = _relu_behind(norm or node, layer, modules)
        relu = relu if relu is not None and relu.op == "call_module" and alone(modules[relu.target]) else None
        if norm or relu:
            found.add((node.target, norm.target if norm else "", relu.target if relu else ""))
    return found


# ---- what may be fused


def _fusible(node: Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The layer that a node calls, if it is exactly ours and nothing else looks at what passes through it."""
    if node.op != "call_module":
        return None
    layer = modules[node.target]
    plain = type(layer) in _LAYERS and _undisturbed(layer)
    return layer if plain and list(layer._parameters) == ["weight", "bias"] else None


def _undisturbed(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward and nothing else: no hook, no forward of its own."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and not {"forward", "_conv_forward"} & set(vars(module))


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
    node.replace_all_uses_with(node.all_input_nodes[0])
    traced.graph.erase_node(node)


def _fold(layer, norm: nn.Module) -> None:
    """Give the layer the weight and bias that compute the normalisation as well."""
    weight, old = layer.weight, layer.bias
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)
        bias = ((0 if old is None else old) - norm.running_mean) * scale + (0 if norm.bias is None else norm.bias)
        scaled = (weight * _for_each_weight(layer, scale)).to(weight.dtype)
        bias = bias.to(weight.dtype)
    layer.weight = nn.Parameter(scaled, weight.requires_grad)
    layer.bias = nn.Parameter(bias, weight.requires_grad if old is None else old.requires_grad)
    if isinstance(layer, Conv1d):
        layer.register_forward_pre_hook(_only_batches, with_kwargs=True)


def _only_batches(layer: Conv1d, arguments: tuple, keywords: dict) -> None:
    """Refuses (C, L), which Conv1d takes for one example's channels and BatchNorm1d for many examples' features."""
    input = arguments[0] if arguments else keywords["input"]
    if input.dim() != 3:
        raise RuntimeError(
            f"a Conv1d into which fuse has folded a BatchNorm1d takes (N, C, L), got input of size: {list(input.shape)}"
        )


def _for_each_weight(layer, scale: Tensor) -> Tensor:
    """A factor for each output map, as one that the layer's weight can be multiplied with."""
    if isinstance(layer, MappedConv2d):
        fan_ins = torch.tensor([len(row) for row in layer.table.sources], device=scale.device)
        return scale.repeat_interleave(fan_ins)[:, None, None]
    if isinstance(layer, ConvTranspose2d):  # (C, K / groups, R, S): each input map goes to the outputs of its group
        of_group = scale.unflatten(0, (layer.groups, 1, -1))
        return of_group.expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)[:, :, None, None]
    return scale.reshape(-1, *[1] * (layer.weight.dim() - 1))


def _norm_behind(node: Node, layer, modules: dict[str, nn.Module]) -> Node | None:
    """The normalisation that alone reads the layer's result, if there is one that can be folded."""
    after = _next(node)
    norm = modules[after.target] if after is not None and after.op == "call_module" else None
    kinds = (nn.BatchNorm1d if isinstance(layer, Conv1d) else nn.BatchNorm2d, nn.SyncBatchNorm)
    if getattr(layer, "activation", "none") != "none" or type(norm) not in kinds:
        return None
    if norm.running_mean is None or norm.num_features != layer.out_channels or after.all_input_nodes != [node]:
        return None
    return after if _undisturbed(norm) else None


def _relu_behind(node: Node, layer, modules: dict[str, nn.Module]) -> Node | None:
    """The ReLU that alone reads the node's result, if there is one that the layer can compute."""
    after = _next(node)
    can = getattr(layer, "activation", None) == "none" and not layer.weight.is_complex()
    if after is None or not can or after.all_input_nodes != [node]:
        return None
    if after.op == "call_module":
        relu = modules[after.target]
        return after if type(relu) is nn.ReLU and _undisturbed(relu) else None
    is_function = after.op == "call_function" and after.target in _RELU_FUNCTIONS
    return after if is_function or after.op == "call_method" and after.target in _RELU_METHODS else None
