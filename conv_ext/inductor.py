"""Under torch.compile: what stands behind our convolutions in inductor's graph becomes a part of them.

    with conv_ext.inductor.fusing():
        fast = torch.compile(conv_ext.convert(model.eval()))
        with torch.no_grad():
            fast(x)  # compiled here

Inductor writes a batch normalisation as subtractions, products and sums; where parameters are frozen they have
constants for each channel, which go into the convolution's weight and bias, as `conv_ext.fuse` folds them. A ReLU
behind that moves into the operator, a sum, a clamp, SiLU and Hardswish, too, and the weight, a constant, is packed
once, as `conv_ext.pack` does it. The graph is what Dynamo has captured, so that models which torch.fx cannot
trace have it, too.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch._inductor.config as config
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomInferenceAwareGraphPass, get_hash_for_files
from torch._inductor.virtualized import V
from torch.fx import Graph, Node

from . import ops
from .arguments import check_switches

__all__ = ["FusePass", "fusing"]

aten = torch.ops.aten
_FORWARD = ops.forward
_INPUT, _WEIGHT, _BIAS, _ACTIVATION, _RESIDUAL = 0, 1, 2, 9, 10  # arguments of the operator
_LIMITS = slice(11, 13)
_GEOMETRY = slice(3, 9)  # from the stride to the algorithm: what `pack` takes as well
_SUMS = {aten.add.Tensor: 1, aten.sub.Tensor: -1}
_CONVERT = torch.ops.prims.convert_element_type.default


class _Index(int):
    """An argument that is one of the nodes before: the first, or the last."""


_X, _LAST = _Index(0), _Index(-1)
_GATES: dict[str, list[tuple[Any, tuple[float, ...]]]] = {
    "silu": [
        (aten.neg.default, (_X,)),
        (aten.exp.default, (_LAST,)),
        (aten.add.Tensor, (_LAST, 1)),
        (aten.div.Tensor, (_X, _LAST)),
    ],
    "hardswish": [
        (aten.add.Tensor, (_X, 3)),
        (aten.clamp_min.default, (_LAST, 0)),
        (aten.clamp_max.default, (_LAST, 6)),
        (aten.mul.Tensor, (_X, _LAST)),
        (aten.div.Tensor, (_LAST, 6)),
    ],
}


def fusing(freezing: bool = True, pack: bool = True, epilogues: bool = True) -> contextlib.AbstractContextManager[None]:
    """What torch.compile compiles within the block has `FusePass` in it; it goes on to hold outside.

    A model is compiled by its first call, which has to be within the block, and, for freezing, under torch.no_grad() or
    torch.inference_mode().

    Args:
        freezing: that inductor takes parameters for constants (``torch._inductor.config.freezing``, which as an option
            of torch.compile comes too late): without it a normalisation stays, and what is compiled sees later changes
            of the model's parameters.
        pack: that frozen weights are packed once, where compiled code would pack them in each call: the same bits, and
            the memory of the packed weights beside that of the others. Only on the CPU, and for images of sizes that
            the graph knows (``dynamic=True`` leaves them open).
        epilogues: that the operators add the other tensor of a sum, and compute clamps, SiLU and Hardswish. Without,
            inductor does, in a pass with what is behind.

    Raises TypeError where one of them is no bool.
    """
    check_switches("fusing", freezing=freezing, pack=pack, epilogues=epilogues)
    return _fusing(freezing, pack, epilogues)


@contextlib.contextmanager
def _fusing(freezing: bool, pack: bool, epilogues: bool) -> Iterator[None]:
    before = config.post_grad_custom_pre_pass
    others = [] if before is None else [*before] if isinstance(before, (list, tuple)) else [before]
    passes = others if any(isinstance(other, FusePass) for other in others) else [*others, FusePass(pack, epilogues)]
    with config.patch(post_grad_custom_pre_pass=passes, freezing=freezing):
        yield


class FusePass(CustomInferenceAwareGraphPass):
    """A pass for ``torch._inductor.config.post_grad_custom_pre_pass``; it changes graphs of inference alone.

    pack, epilogues: see `fusing`. Raises TypeError where one of them is no bool.
    """

    def __init__(self, pack: bool = True, epilogues: bool = True) -> None:
        check_switches("FusePass", pack=pack, epilogues=epilogues)
        self.pack, self.epilogues = pack, epilogues

    def __call__(self, graph: Graph, is_inference: bool) -> None:  # type: ignore[override]  # as its base does
        """Fuse, in place, what stands behind each of our convolutions."""
        if not is_inference:  # a backward pass reads what stands between
            return
        for node in graph.find_nodes(op="call_function", target=_FORWARD):
            _fold(graph, node)
            if self.epilogues:
                _take_sum_in(graph, node)
            _take_activation_in(graph, node, self.epilogues)
            if self.pack:
                _pack(graph, node)

    def uuid(self) -> bytes | None:
        """What inductor keeps compiled code under; None: it keeps none.

        Inductor does not look at the numbers of frozen parameters, and takes those of the model at hand when it finds
        its code again. What is folded here would be another model's.
        """
        return None if config.freezing else get_hash_for_files((__file__,))


def _arguments(node: Node) -> list[Any]:
    """All arguments of a call of the operator, by their place."""
    rest = _FORWARD._schema.arguments[len(node.args) :]
    return [*node.args, *(node.kwargs.get(argument.name, argument.default_value) for argument in rest)]


def _set_arguments(node: Node, arguments: list[Any]) -> None:
    """Give a call these arguments, and inductor what it has noted of them: it reads the operands' strides there."""
    noted = node.meta.get("eager_input_vals")
    node.args, node.kwargs = tuple(arguments), {}
    if noted is not None:
        before = [*noted[0], *[None] * (len(arguments) - len(noted[0]))]
        values = [
            (each.meta["val"] if old is None else old) if isinstance(each, Node) else each
            for each, old in zip(arguments, before)
        ]
        node.meta["eager_input_vals"] = tuple(values), {}


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _constant(graph: Graph, value: object, channels: int) -> Tensor | None:
    """A number, or a frozen tensor with one for each channel of (N, K, P, Q), as float64 of size K."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((channels,), value, dtype=torch.float64)
    tensor = _frozen(graph, value)
    if tensor is None or not tensor.is_floating_point():
        return None
    if tensor.numel() == 1 and tensor.dim() <= 4:
        return tensor.detach().double().reshape(1).expand(channels)
    along = tensor.dim() in (3, 4) and tensor.shape[-3] == channels == tensor.numel()
    return tensor.detach().double().reshape(channels) if along else None


def _frozen(graph: Graph, value: object) -> Tensor | None:
    if not isinstance(value, Node) or value.op != "get_attr" or not isinstance(value.target, str):
        return None
    found = getattr(graph.owning_module, value.target, None)
    return found if isinstance(found, Tensor) else None


def _fold(graph: Graph, node: Node) -> None:
    """Fold products with and sums of constants for each channel that follow one another behind a convolution."""
    arguments = _arguments(node)
    weight, bias = _frozen(graph, arguments[_WEIGHT]), _frozen(graph, arguments[_BIAS])
    if weight is None or weight.is_complex() or arguments[_ACTIVATION] != "none" or arguments[_RESIDUAL] is not None:
        return
    if arguments[_BIAS] is not None and bias is None:
        return
    channels = weight.shape[0]
    scale = torch.ones(channels, dtype=torch.float64, device=weight.device)
    shift = torch.zeros_like(scale) if bias is None else bias.detach().double()
    last, chain = node, list[Node]()
    whole: tuple[list[Node], Tensor, Tensor] | None = None
    while (after := _only_reader(last)) is not None:
        found = _affine(graph, after, last, channels)
        if found is None and not (after.target is _CONVERT and chain):
            break
        if found is not None:
            factor, addend = (each.to(weight.device) for each in found)
            scale, shift = scale * factor, shift * factor + addend
        chain.append(after)
        last = after
        if last.meta["val"].dtype == weight.dtype:  # up to here a number is what the operator can give
            whole = [*chain], scale, shift
    if whole is None:
        return
    chain, scale, shift = whole
    folded = (weight.detach().double() * scale[:, None, None, None]).to(weight.dtype)
    old = [each for each in (arguments[_WEIGHT], arguments[_BIAS]) if each is not None]
    fake = arguments[_WEIGHT].meta["val"]
    arguments[_WEIGHT] = _new_constant(graph, node, "weight", _like(folded, weight), fake)
    arguments[_BIAS] = _new_constant(graph, node, "bias", shift.to(weight.dtype), fake.new_empty(channels))
    _set_arguments(node, arguments)
    _erase(graph, node, chain)
    _erase_unread(graph, old)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor in the memory format of the other."""
    return torch.empty_like(other).copy_(tensor)


def _affine(graph: Graph, node: Node, read: Node, channels: int) -> tuple[Tensor, Tensor] | None:
    """(factor, addend) of a node that computes read * factor + addend with constants; None of any other."""
    if node.op != "call_function" or node.kwargs or len(node.args) != 2:
        return None
    first = node.args[0] is read
    constant = _constant(graph, node.args[1] if first else node.args[0], channels)
    if constant is None:
        return None
    if node.target in _SUMS:
        sign = _SUMS[node.target]
        return (torch.ones_like(constant), sign * constant) if first else (sign * torch.ones_like(constant), constant)
    if node.target is aten.mul.Tensor:
        return constant, torch.zeros_like(constant)
    if node.target is aten.div.Tensor and first:
        return constant.reciprocal(), torch.zeros_like(constant)
    return None


def _new_constant(graph: Graph, node: Node, what: str, tensor: Tensor, fake: Tensor) -> Node:
    module = graph.owning_module
    assert module is not None, "inductor hands a module's graph over"
    name = next(name for i in range(len(graph.nodes) + 1) if not hasattr(module, name := f"_conv_ext_{what}{i}"))
    module.register_buffer(name, tensor)
    with graph.inserting_before(node):
        constant = graph.get_attr(name)
    constant.meta["val"] = fake
    return constant


def _take_sum_in(graph: Graph, node: Node) -> None:
    """The operator adds the other tensor of a sum, and stands where that stood: when the other one is there.

    That one must not follow from the operator's own result. The sum alone reads this, so that it only can be the same.
    """
    arguments, after = _arguments(node), _only_reader(node)
    if after is None or after.target is not aten.add.Tensor or after.kwargs or len(after.args) != 2:
        return
    if arguments[_ACTIVATION] != "none" or arguments[_RESIDUAL] is not None:
        return
    other = after.args[1] if after.args[0] is node else after.args[0]
    value = other.meta.get("val") if isinstance(other, Node) and other is not node else None
    if not isinstance(value, Tensor) or not _alike(value, node.meta["val"]):
        return
    arguments[_RESIDUAL] = other
    after.prepend(node)
    _set_arguments(node, arguments)
    _erase(graph, node, [after])


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one size, which may be symbolic, one dtype and one device."""
    return [*map(str, a.shape)] == [*map(str, b.shape)] and a.dtype == b.dtype and a.device == b.device


def _take_activation_in(graph: Graph, node: Node, others: bool) -> None:
    """others: also activations beyond ReLU.

    Of 16-bit numbers inductor computes those in float32, and rounds once, as the operator does.
    """
    arguments, after = _arguments(node), _only_reader(node)
    if arguments[_ACTIVATION] != "none" or node.meta["val"].is_complex():
        return
    x = after if others and after is not None and after.target is _CONVERT else node
    found = _activation(x, others)
    if found is None:
        return
    arguments[_ACTIVATION], chain, limits = found
    if x is not node:
        back = _only_reader(chain[-1])
        if back is None or back.target is not _CONVERT or back.meta["val"].dtype != node.meta["val"].dtype:
            return
        chain = [x, *chain, back]
    if V.aot_compilation and not all(map(math.isfinite, limits)):  # as in functional.stays_behind
        return
    if limits:
        arguments[_LIMITS] = limits
    _set_arguments(node, arguments)
    _erase(graph, node, chain)


def _activation(x: Node, others: bool) -> tuple[str, list[Node], tuple[float, ...]] | None:
    """An activation of a node: its name, its nodes, a clamp's limits."""
    after = _only_reader(x)
    if after is not None and after.target is aten.relu.default:
        return "relu", [after], ()
    clamp = None if after is None else _clamp(after)
    if clamp is not None and clamp[1:] == (0, math.inf):
        return "relu", clamp[0], ()
    if not others:
        return None
    return _gate(x) if clamp is None else ("clamp", clamp[0], clamp[1:])


def _gate(x: Node) -> tuple[str, list[Node], tuple[float, ...]] | None:
    """silu or hardswish of a node, as inductor writes them."""
    if len(x.users) != 2:
        return None
    for first, (name, steps) in itertools.product(x.users, _GATES.items()):
        chain = [x]
        last: Node | None = first
        for target, arguments in steps:
            wanted: tuple[object, ...] = tuple(chain[each] if isinstance(each, _Index) else each for each in arguments)
            if last is None or last.target is not target or last.args != wanted:
                break
            chain.append(last)
            last = _only_reader(last)
        else:
            return name, chain[1:], ()
    return None


def _clamp(node: Node) -> tuple[list[Node], float, float] | None:
    """The nodes of a clamp by numbers, of which `node` is the first, and its bounds; one that is missing is infinite.

    The clamps of NaN and of low > high are left: of the first torch makes NaN, and of the second high.
    """
    found, after = _bounds(node), _only_reader(node)
    if found is None:
        return None
    if after is not None and (node.target, after.target) == (aten.clamp_min.default, aten.clamp_max.default):
        more = _bounds(after)
        if more is not None and found[0] <= more[1]:
            return [node, after], found[0], more[1]
    return [node], *found


def _bounds(node: Node) -> tuple[float, float] | None:
    """Two numbers that one node clamps to, low <= high; None of any other node."""
    low: object = None
    high: object = None
    if node.kwargs:
        return None
    if node.target is aten.clamp.default:
        low, high, *_ = *node.args[1:], None, None
    elif node.target is aten.clamp_min.default:
        low = node.args[1]
    elif node.target is aten.clamp_max.default:
        high = node.args[1]
    if low is None and high is None:
        return None
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not low <= high:
        return None
    return float(low), float(high)


def _pack(graph: Graph, node: Node) -> None:
    """Pack a weight that is a constant, for images of the size and the strides that the graph has there."""
    arguments = _arguments(node)
    weight, x = _frozen(graph, arguments[_WEIGHT]), arguments[_INPUT].meta["val"]
    sizes = (*x.shape[1:], *x.stride())
    if weight is None or weight.device.type != "cpu" or not all(isinstance(size, int) for size in sizes):
        return
    example = torch.empty_strided((1, *x.shape[1:]), x.stride(), dtype=x.dtype)
    packed = ops.pack(weight.detach(), example, *arguments[_GEOMETRY])
    if packed.numel() == 0:  # the kernel reads the weight as it lies
        return
    fake = arguments[_WEIGHT].meta["val"].new_empty(packed.shape, dtype=packed.dtype)
    constant = _new_constant(graph, node, "packed", packed, fake)
    _set_arguments(node, arguments)
    if "eager_input_vals" in node.meta:
        values = list(node.meta["eager_input_vals"][0])
        values.insert(_WEIGHT + 1, fake)
        node.meta["eager_input_vals"] = tuple(values), {}
    arguments.insert(_WEIGHT + 1, constant)
    node.target, node.args = ops.forward_packed, tuple(arguments)


def _erase(graph: Graph, node: Node, chain: list[Node]) -> None:
    """Take a chain of nodes behind a convolution out of the graph, with the constants that nothing else reads."""
    chain[-1].replace_all_uses_with(node)
    for each in reversed(chain):
        read = [other for other in each.all_input_nodes if other.op == "get_attr"]
        graph.erase_node(each)
        _erase_unread(graph, read)


def _erase_unread(graph: Graph, constants: list[Node]) -> None:
    for node in constants:
        if not node.users:
            graph.erase_node(node)
