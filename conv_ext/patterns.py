"""What a node of a traced graph computes, whether it calls a module, a function, a method or an operator of aten.

`fuse` asks here; graphs come from torch.fx, which calls modules, and from torch.export, which calls aten's operators.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from .arguments import Activation
from .functional import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from .modules import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d

Modules = Mapping[str, nn.Module]  # of the traced model by name, itself as ""

aten = torch.ops.aten

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_OURS = (*_CONVOLUTION, "precision", "algorithm", "activation", "residual", "low", "high")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
# function -> (our layer, its arguments in order)
CONVOLUTIONS: dict[Callable[..., Any], tuple[type, tuple[str, ...]]] = {
    **dict.fromkeys((torch.conv1d, conv1d, aten.conv1d.default, aten.conv1d.padding), (Conv1d, _CONVOLUTION)),
    **dict.fromkeys((torch.conv2d, conv2d, aten.conv2d.default, aten.conv2d.padding), (Conv2d, _CONVOLUTION)),
    aten.convolution.default: (
        nn.Module,
        ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"),
    ),  # any layer, as `transposed` and sizes say
    torch.ops.conv_ext.forward.default: (Conv2d, _OURS),
    **dict.fromkeys(
        (torch.conv_transpose1d, conv_transpose1d, aten.conv_transpose1d.default), (ConvTranspose1d, _TRANSPOSED)
    ),
    **dict.fromkeys(
        (torch.conv_transpose2d, conv_transpose2d, aten.conv_transpose2d.input), (ConvTranspose2d, _TRANSPOSED)
    ),
}

_BATCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
_INFERENCE_NORM = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
_NORMS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: _BATCH_NORM,
    aten.batch_norm.default: _BATCH_NORM,
    aten._native_batch_norm_legit_no_training.default: _INFERENCE_NORM,  # a tuple, whose first is the result
}

# activation of our layers -> the modules, functions and methods that compute the same
ACTIVATIONS: dict[Activation, tuple[set[type], set[Callable[..., Any]], set[str]]] = {
    "relu": (
        {nn.ReLU},
        {torch.relu, torch.relu_, F.relu, F.relu_, aten.relu.default, aten.relu_.default},
        {"relu", "relu_"},
    ),
    "relu6": ({nn.ReLU6}, {F.relu6, aten.relu6.default, aten.relu6_.default}, set()),
    "silu": ({nn.SiLU}, {F.silu, aten.silu.default, aten.silu_.default}, set()),
    "hardswish": ({nn.Hardswish}, {F.hardswish, aten.hardswish.default, aten.hardswish_.default}, set()),
}
_HARDTANH, _CLAMP = ("input", "min_val", "max_val"), ("input", "min", "max")
_CLAMP_MIN, _CLAMP_MAX = ("input", "min"), ("input", "max")
_CLAMPS: dict[Callable[..., Any] | str, tuple[str, ...]] = {
    **dict.fromkeys((F.hardtanh, aten.hardtanh.default, aten.hardtanh_.default), _HARDTANH),
    **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, torch.clip_), _CLAMP),
    **dict.fromkeys((aten.clamp.default, aten.clamp_.default, aten.clip.default, aten.clip_.default), _CLAMP),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), _CLAMP),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"), _CLAMP_MIN),
    **dict.fromkeys((aten.clamp_min.default, aten.clamp_min_.default), _CLAMP_MIN),
    **dict.fromkeys((torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_"), _CLAMP_MAX),
    **dict.fromkeys((aten.clamp_max.default, aten.clamp_max_.default), _CLAMP_MAX),
}
OTHER_ACTIVATIONS = {
    F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.mish, F.sigmoid, F.tanh,
    torch.sigmoid, torch.tanh, aten.relu6.default, aten.gelu.default, aten.silu.default, aten.silu_.default,
    aten.hardswish.default, aten.hardswish_.default, aten.leaky_relu.default, aten.leaky_relu_.default,
    aten.elu.default, aten.sigmoid.default, aten.tanh.default,
    *(clamp for clamp in _CLAMPS if not isinstance(clamp, str)),
}  # fmt: skip
_OTHER_ACTIVATION_METHODS = {"sigmoid", "tanh", *(clamp for clamp in _CLAMPS if isinstance(clamp, str))}
_SUMS = {operator.add, operator.iadd, torch.add, aten.add.Tensor, aten.add_.Tensor}
_SUM_METHODS = {"add", "add_"}

_PADS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.pad: ("input", "pad", "mode", "value"),
    aten.pad.default: ("input", "pad", "mode", "value"),
    aten.constant_pad_nd.default: ("input", "pad", "value"),
}
_PAD_LAYERS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d)

_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUTS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.dropout: ("input", "p", "training", "inplace"),
    F.dropout1d: ("input", "p", "training", "inplace"),
    F.dropout2d: ("input", "p", "training", "inplace"),
    torch.dropout: ("input", "p", "train"),
    aten.dropout.default: ("input", "p", "train"),
    aten.dropout_.default: ("input", "p", "train"),
}
# The same of other packages, by module and name; torch.fx keeps their calls whole.
_OTHERS_DROPOUTS = {("torchvision.ops.stochastic_depth", "stochastic_depth"): ("input", "p", "mode", "training")}
# What is asked of a tensor whose numbers nobody looks at.
_SIZES = {aten.sym_size.int, aten.sym_stride.int, aten.sym_numel.default, aten._assert_tensor_metadata.default}
_SIZE_METHODS = {"size", "dim", "ndimension", "numel"}
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}


@dataclass(frozen=True)
class Norm:
    """A batch normalisation by running statistics. result: the node whose value it is; name: what a reader knows."""

    name: str
    kind: str
    result: Node
    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def undisturbed(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward and nothing else: no hook, no forward of its own."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and not {"forward", "_conv_forward"} & set(vars(module))


def bound(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a function's call by name."""
    return dict(zip(names, node.args)) | dict(node.kwargs)


def source(node: Node) -> Node | None:
    """The node that a call reads as its first argument, or as `input`."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, Node) else None


def constant(value: object, modules: Modules) -> Tensor | None:
    """The tensor that a node of kind get_attr reads; None of any other value."""
    if not isinstance(value, Node) or value.op != "get_attr":
        return None
    prefix, _, leaf = value.target.rpartition(".")
    found = getattr(modules[prefix], leaf, None) if prefix in modules else None
    return found if isinstance(found, Tensor) else None


def shown(node: Node, modules: Modules) -> str:
    """What a reader of a report knows a node by: the module's name, else the node's."""
    return node.target if node.op == "call_module" else node.name


def is_called(node: Node, kind: type | tuple[type, ...], modules: Modules) -> bool:
    """Whether a node calls a module of exactly that type, as its class computes it."""
    if node.op != "call_module":
        return False
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return type(modules[node.target]) in kinds and undisturbed(modules[node.target])


def is_training(node: Node) -> bool:
    """Whether an operator normalises by a batch's statistics, or drops numbers: an exported program of training."""
    if node.op != "call_function":
        return False
    if node.target in (aten.batch_norm.default, torch.batch_norm, F.batch_norm):
        values = bound(node, _NORMS[node.target])
        return values.get("training") is True and values.get("running_mean") is not None
    return node.target in (aten.dropout.default, aten.dropout_.default) and bound(node, _DROPOUTS[node.target])["train"]


def is_identity(node: Node, modules: Modules) -> bool:
    """Whether a node passes its input on, as dropout does in eval mode."""
    if node.op == "call_module":
        return is_called(node, _IDENTITIES, modules)
    if node.op != "call_function":
        return False
    named = getattr(node.target, "__module__", None), getattr(node.target, "__name__", None)
    names = _DROPOUTS.get(node.target) or _OTHERS_DROPOUTS.get(named)
    if names is None:
        return False
    values = bound(node, names)
    return values.get("training", values.get("train", True)) is False


def readers(node: Node) -> list[Node]:
    """The nodes that read a node's numbers: not those that ask for its size."""
    return [user for user in node.users if not _asks_for_size(user)]


def _asks_for_size(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.op != "call_function":
        return False
    return node.target in _SIZES or node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES


def behind(node: Node, modules: Modules) -> Node | None:
    """The one node that reads this one's numbers, past what only passes them on; None where there are several."""
    found = readers(node)
    if len(found) != 1:
        return None
    return behind(found[0], modules) if is_identity(found[0], modules) else found[0]


def before(node: Node, modules: Modules) -> Node | None:
    """The node whose numbers a call reads, past what only passes them on."""
    found = source(node)
    while found is not None and is_identity(found, modules):
        found = source(found)
    return found


def normalisation(node: Node, modules: Modules) -> Norm | str | None:
    """The batch normalisation that a node computes, or why none can be folded; None where it is something else."""
    if node.op == "call_module":
        module = modules[node.target]
        if not isinstance(module, _BatchNorm):
            return None
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm):
            return f"{type(module).__name__} is a class of its own"
        if not undisturbed(module):
            return "it has hooks, or a forward of its own"
        if module.running_mean is None or module.running_var is None:
            return "it has no running statistics"
        if len(node.all_input_nodes) != 1:
            return "it reads more than one tensor"
        tensors = module.running_mean, module.running_var, module.weight, module.bias
        return Norm(node.target, type(module).__name__, node, *tensors, module.eps)
    if node.op != "call_function" or node.target not in _NORMS:
        return None
    values = bound(node, _NORMS[node.target])
    if values.get("training", False) is not False:
        return "it normalises by the batch's statistics, or may"
    names = ("running_mean", "running_var", "weight", "bias")
    found = [constant(values.get(name), modules) for name in names]
    if any(tensor is None and values.get(name) is not None for name, tensor in zip(names, found)):
        return "its statistics, or gains and biases, are computed when it is called"
    if found[0] is None or found[1] is None:
        return "it has no running statistics"
    result = node
    if node.target is aten._native_batch_norm_legit_no_training.default:
        users = list(node.users)
        if len(users) != 1 or users[0].target is not operator.getitem or users[0].args[1] != 0:
            return "the statistics that it gives beside its result are read"
        result = users[0]
    name = values["running_mean"].target.rpartition(".")[0] or node.name
    mean, var, weight, bias = found
    return Norm(name, "batch_norm", result, mean, var, weight, bias, values.get("eps", 1e-5))


def _clamp(node: Node, modules: Modules) -> Activation | None:
    """What a node clamps its input to, where that is numbers: "relu" where it is what relu is, bit for bit."""
    if node.op == "call_module":
        module = modules[node.target]
        if type(module) is not nn.Hardtanh or not undisturbed(module):
            return None
        low, high = module.min_val, module.max_val
    elif node.op in ("call_function", "call_method") and node.target in _CLAMPS:
        names = _CLAMPS[node.target]
        values = bound(node, names)
        if names is _HARDTANH:
            low, high = values.get("min_val", -1.0), values.get("max_val", 1.0)
        else:
            low, high = values.get("min"), values.get("max")
            if low is None and high is None:  # torch refuses the call
                return None
            low, high = -math.inf if low is None else low, math.inf if high is None else high
    else:
        return None
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (low, high))
    if not numbers or not low <= high:  # of NaN torch makes NaN, and of low > high it makes high
        return None
    return "relu" if (low, high) == (0, math.inf) else ("clamp", float(low), float(high))


def activation(node: Node, modules: Modules) -> Activation | None:
    """The activation of our layers that a node computes of its only input."""
    if len(node.all_input_nodes) != 1:
        return None
    if clamp := _clamp(node, modules):
        return clamp
    for name, (kinds, functions, methods) in ACTIVATIONS.items():
        if is_called(node, tuple(kinds), modules):
            return name
        if (
            node.op == "call_function"
            and node.target in functions
            or node.op == "call_method"
            and node.target in methods
        ):
            return name
    return None


def addends(node: Node) -> tuple[Node, Node] | None:
    """The two tensors that a node adds, as they are; None of any other node."""
    adds = (
        node.op == "call_function" and node.target in _SUMS or node.op == "call_method" and node.target in _SUM_METHODS
    )
    if not adds or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    return (first, second) if isinstance(first, Node) and isinstance(second, Node) and first is not second else None


def zeros(node: Node, modules: Modules) -> tuple[int, ...] | str | None:
    """The zeros that a node puts around its input, last dimension first, as F.pad counts them, or why they stay.

    None where it is something else.
    """
    if node.op == "call_module":
        module = modules[node.target]
        if not isinstance(module, _PAD_LAYERS):
            return None
        if type(module) not in _PAD_LAYERS or not undisturbed(module):
            return "it has hooks, or a forward or a class of its own"
        amounts, mode, value = module.padding, "constant", module.value
    elif node.op == "call_function" and node.target in _PADS:
        values = bound(node, _PADS[node.target])
        amounts, mode, value = values.get("pad"), values.get("mode", "constant"), values.get("value")
    else:
        return None
    if mode != "constant" or not (value is None or isinstance(value, (int, float)) and value == 0):
        return "it fills in other numbers than zeros"
    if not isinstance(amounts, (tuple, list)) or any(type(amount) is not int for amount in amounts):
        return "how much it adds is computed when it is called"
    return "it cuts off numbers" if any(amount < 0 for amount in amounts) else tuple(amounts)


def why_it_stays(node: Node, modules: Modules) -> str:
    """What it is that alone reads a convolution and cannot be taken in; "" where that tells nothing."""
    name = shown(node, modules)
    if node.op == "call_module":
        module = modules[node.target]
        kind = type(module).__name__
        if type(module) in {kind for kinds, _, _ in ACTIVATIONS.values() for kind in kinds}:
            return f"{name}: it has hooks, or a forward of its own"
        is_activation = type(module).__module__ == nn.modules.activation.__name__
        return f"{name}: {kind} is no activation of a layer" if is_activation else ""
    sums, others = (
        (_SUMS, OTHER_ACTIVATIONS) if node.op == "call_function" else (_SUM_METHODS, _OTHER_ACTIVATION_METHODS)
    )
    if node.target in sums:
        return f"{name}: it adds more than one other tensor, or a number"
    return f"{name}: no activation of a layer" if node.target in others else ""


def writes(node: Node, modules: Modules) -> bool:
    """Whether a node may change a tensor in place."""
    if node.op == "call_module":
        module = modules[node.target]
        known = type(module).__module__.partition(".")[0] in ("torch", __name__.partition(".")[0])
        return not known or getattr(module, "inplace", False) is True
    if node.kwargs.get("inplace", False) or node.kwargs.get("out") is not None:
        return True
    if node.op == "call_function" and any(argument is True for argument in node.args):  # F.relu(x, True)
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") or name == "setitem"
    return node.op in ("call_function", "call_method") and (in_place or node.target in _IN_PLACE)


# Those of operator: iadd and the like.
IN_PLACE_OPERATORS = [
    name
    for name in vars(operator)
    if name.startswith("i") and f"__{name}__" in vars(operator) and name not in ("index", "inv", "invert")
]
_IN_PLACE = {getattr(operator, name) for name in IN_PLACE_OPERATORS}
