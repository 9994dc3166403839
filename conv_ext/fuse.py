"""`fuse(model)`: batch normalisations folded into our convolutions, activations and padding computed by them."""

from __future__ import annotations

import copy
import logging
import operator
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram  # `import torch` loads it, too
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.nn.modules.conv import _ConvNd

from . import packed, patterns
from .arguments import Sides, check_switches, padding_of
from .convert import check_for_inference, convert, why_left
from .fused import ACTIVATION, NORM, PADDING, RESIDUAL, Fused, Report, Row
from .layouts import set_faster_layout, set_layout
from .lifting import lift
from .mapped import MappedConv2d
from .modules import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, set_sides
from .patterns import Modules, Norm, undisturbed

__all__ = ["fuse"]

_OF_ROWS, _TRANSPOSED = (Conv1d, ConvTranspose1d), (ConvTranspose1d, ConvTranspose2d)
_LAYERS = (Conv1d, Conv2d, *_TRANSPOSED, MappedConv2d)
_TORCHS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_FORMATS = (torch.preserve_format, torch.channels_last, torch.contiguous_format)
_logger = logging.getLogger("conv_ext")


class _Proxy(Proxy):
    """Stands for a value whose ``a += b`` is traced as what it is: torch.fx makes ``a = a + b`` of it, and then who
    else looks at `a` does not see the change.
    """


def _in_place(function: Callable[..., Any]) -> Callable[[_Proxy, Any], Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in patterns.IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(Tracer):
    """Keeps our layers whole, as torch's are, and the modules of `whole`."""

    def __init__(self, whole: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.whole = whole

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> Graph:
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if isinstance(node.type, str):  # an annotation unevaluated: a graph that keeps it cannot be pickled
                node.type = None
        return graph

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _LAYERS) or module in self.whole or super().is_leaf_module(module, name)


def fuse(
    model: nn.Module | ExportedProgram,
    *inputs: Any,
    pack: bool = True,
    epilogues: bool = True,
    memory_format: torch.memory_format | Literal["auto"] = torch.preserve_format,
    verbose: bool = False,
) -> nn.Module:
    """A new model for inference that computes the same in fewer passes over memory.

    Every batch normalisation that alone reads what a convolution layer writes is folded into its weight and bias; a
    tensor that is then added becomes the layer's residual; and an activation (module, function or method) that alone
    reads the result moves into the layer, as its ``activation``: ReLU, ReLU6, Hardtanh, clamps by one number or two,
    SiLU, Hardswish. Transposed convolutions have neither. Zeros that a padding layer or function puts in front of a
    Conv1d or Conv2d become the layer's own padding, also where the sides differ. torch's own layers become ours first,
    as `convert` makes them; so does a convolution function whose weight is a parameter. What else there is stays, and
    the report says why: layers with hooks, parametrizations or a forward put into the object, complex ones,
    normalisations without running statistics or with a layout of their own. A Conv1d or ConvTranspose1d that has taken
    a normalisation in refuses (C, L).

    Then the weights of 2-D layers are packed once, as `conv_ext.pack` does it, which computes the same bits: their
    layers are `PackedConv2d`, which have no Parameters. With `inputs` that is done at once, without at the first call,
    for the sizes of that. What is compiled or exported before it has been called packs in each call, but for
    torch.compile within `conv_ext.inductor.fusing`, which packs by itself. Their ``weight`` and ``bias`` are copies: to
    change a layer, assign (``layer.weight = w``) or load a state_dict; what is written into the copy changes nothing.

    Args:
        model: an nn.Module in eval mode, all of it; or what torch.export has made of one in eval mode, an
            ExportedProgram or its ``module()``: for models that torch.fx cannot trace. It stays as it is; the new one
            has copies of its tensors.
        inputs: what the model is called with, without gradients; of the numbers nothing is kept. An ExportedProgram
            has its own. A model that can only be fused part by part needs them (see what is returned).
        pack: whether weights are packed. Without, the layers' weights are Parameters, and gradients flow to them.
        epilogues: whether a layer takes in a tensor that is added to its result (``layer(x, residual)``), so that a
            block of a ResNet is convolutions alone, and activations beyond ReLU: passes over memory that are saved.
            Without, torch computes them behind the layer.
        memory_format: ``torch.channels_last`` or ``torch.contiguous_format`` for the weights of 2-D layers; what a
            layer computes lies as its weight does, so that one layout goes from the first layer to the last, whatever
            the images have. The default leaves weights as they are: which layout is faster depends on the network and
            the processor, and ``conv-ext bench`` tells. "auto" takes that of the two whose estimates for
            convolutions (`conv_ext.explain` prints them) and pooling are lower; nothing is timed. It needs `inputs`.
        verbose: print the report.

    Returns:
        torch.fx.GraphModule: with the submodules' old names, in eval mode. Scores are those of `model` but for rounding
        (the same bits where nothing was folded and no padding taken in). Layers that a model calls more than once are
        copied for each call that was changed. An exported program is made for the sizes that it was exported for.

        Modules without children that torch.fx cannot trace are called as they are. Where it cannot trace the
        rest (control flow that depends on values or options, as in the models of Hugging Face), and where
        `model` itself has hooks or a forward put into the object, a copy of `model` with its own class: each
        largest part that can be traced is fused, and what was taken out of it is an nn.Identity. There a layer has
        to be called once, and what it takes in to be a module. Such a part has to be called as a whole, its layers
        by its own forward alone, and only a call tells: with `inputs` the copy is called once more, and what that
        call does not reach, or calls from elsewhere (one by one, to look at what is between), stays, and what it
        reads the weight of; without `inputs` nothing is taken in. The call has to go the way that later ones go: a
        branch that it does not take is not seen.

        The attribute `report` (`conv_ext.fused.Report`) says what was done to each convolution, and what stays and why;
        copies and pickles have it, too (a model of its own class that has an attribute of that name keeps it).
        `conv_ext.revert` makes torch's layers of the fused ones, for exporters that know these alone.

    Raises TypeError where `model` is neither, memory_format no torch.memory_format, or a switch no bool, and where the
    inputs are one tuple that the model cannot be called with; ValueError where the model, or a part of it, is in
    training mode, and for another memory format; RuntimeError where a lazy layer has no parameters yet, or where a
    model can neither be traced nor has a convolution: the message has torch.fx's reason; and what the call with
    `inputs` raises.
    """
    _check_options(inputs, memory_format, pack=pack, epilogues=epilogues, verbose=verbose)
    kwargs: dict[str, Any] = {}
    if isinstance(model, ExportedProgram):
        if not inputs and model.example_inputs:
            inputs, kwargs = model.example_inputs
        model = model.module()
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes a torch.nn.Module or a torch.export.ExportedProgram, got {type(model).__name__}")
    if memory_format == "auto" and not (inputs or kwargs):
        raise ValueError('fuse: memory_format="auto" needs what the model is called with: fuse(model, images, ...)')
    if _is_exported(model):
        fused: nn.Module = _fuse_exported(model, epilogues)
    else:
        check_for_inference("fuse", model)
        fused = _fuse_module(model, inputs, epilogues)
    layouts = None
    with packed.told_of_one_tuple("fuse", inputs):
        if memory_format == "auto":
            layouts = set_faster_layout(fused, inputs, kwargs)
        elif memory_format is not torch.preserve_format:
            set_layout(fused, memory_format)
        packing = packed.pack_in_place(fused, inputs, kwargs) if pack else None
    report = vars(fused).get("report")
    if isinstance(report, Report):
        report.layouts, report.packing = layouts, packing
    if verbose:
        print(report)
    _logger.info("fuse: %s", report)
    return fused


def _check_options(inputs: tuple[Any, ...], memory_format: object, **switches: object) -> None:
    check_switches("fuse", **switches)
    if any(isinstance(value, torch.memory_format) for value in inputs):
        raise TypeError("fuse: memory_format is given by its name: fuse(model, images, memory_format=...)")
    if isinstance(memory_format, str) and memory_format == "auto":  # an array would be compared element by element
        return
    if not isinstance(memory_format, torch.memory_format):
        raise TypeError(f'fuse: memory_format must be a torch.memory_format or "auto", got {memory_format!r:.80}')
    if memory_format not in _FORMATS:
        raise ValueError(
            f'fuse: memory_format must be one of {", ".join(map(str, _FORMATS))} and "auto", got {memory_format}'
        )


def _is_exported(model: nn.Module) -> bool:
    """Whether a module is a graph of aten's operators."""
    nodes = model.graph.nodes if isinstance(model, GraphModule) else ()
    return any(isinstance(node.target, torch._ops.OpOverload) for node in nodes)


def _fuse_module(model: nn.Module, inputs: tuple[Any, ...], epilogues: bool) -> nn.Module:
    if isinstance(model, (*_LAYERS, *_TORCHS)):
        model = nn.Sequential(model).eval()  # a single layer has no graph of its own
    fused = convert(packed.unpack(copy.deepcopy(model)))
    if not undisturbed(fused):  # a graph has its class's forward alone
        return _fuse_parts(fused, inputs, "the model has hooks, or a forward of its own", epilogues)
    tracer = _Tracer()
    try:
        try:
            graph = tracer.trace(fused)
        except Exception:
            tracer = _Tracer(_untraceable(fused))
            if not tracer.whole:
                raise
            graph = tracer.trace(fused)
    except Exception as error:  # torch.fx raises TraceError, and whatever a forward raises on its proxies
        if any(isinstance(module, _LAYERS) for module in fused.modules()):
            why = f"torch.fx cannot trace the whole ({_first_line(error)})"
            return _fuse_parts(fused, inputs, why, epilogues)
        raise RuntimeError(
            f"fuse: {type(model).__name__} cannot be traced by torch.fx, and has no convolution layers to be fused one "
            f"by one. torch.fx says: {error}"
        ) from error
    return _fuse_graph(Fused(tracer.root, graph, type(model).__name__), Report("traced by torch.fx"), epilogues)


def _untraceable(model: nn.Module) -> set[nn.Module]:
    """The modules without children that cannot be traced by themselves: a graph can call them as they are."""
    found = set()
    for name, module in model.named_modules():
        if next(module.children(), None) is not None or _Tracer().is_leaf_module(module, name):
            continue
        try:
            _Tracer().trace(module)
        except Exception:  # as in `fuse`
            found.add(module)
    return found - {model}


def _first_line(error: Exception) -> str:
    return textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 120)


def _fuse_exported(model: GraphModule, epilogues: bool) -> Fused:
    for node in model.graph.nodes:
        if patterns.is_training(node):
            raise ValueError(
                f"fuse takes a model in eval mode, but this program was exported in training mode ({node.name} is in "
                "it): model.eval() before torch.export.export"
            )
    copied = copy.deepcopy(model)
    return _fuse_graph(
        Fused(copied, copied.graph, type(model).__name__), Report("exported by torch.export", True), epilogues
    )


def _fuse_graph(traced: Fused, report: Report, epilogues: bool) -> Fused:
    """Fuse a graph in place."""
    traced.report = report
    refused = lift(traced)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.name in refused:
            report.rows.append(Row(node.name, *refused[node.name]))
        if node.op != "call_module" or not isinstance(modules[node.target], (_ConvNd, MappedConv2d)):
            continue
        layer = modules[node.target]
        row = Row(node.target, type(layer).__name__)
        report.rows.append(row)
        if why := _why_not_fusible(layer):
            row.stays.append(why)
            continue
        found = _match(node, layer, modules, epilogues=epilogues)
        row.stays += found.stays
        if found.anything:
            layer = _own(traced, node, layer, modules)
            row.layer = node.target
        row.taken = found.taken(modules)
        if found.zeros:
            _take_zeros_in(layer, found.amounts)
            node.replace_input_with(patterns.source(node), patterns.source(found.zeros))
        if found.norm:
            _fold(layer, found.norm)
            _skip(traced, found.norm.result)
        if found.sum:
            _take_sum_in(traced, node, found.sum, found.residual)
        if found.activation:
            layer.activation = patterns.activation(found.activation, modules)
            _skip(traced, found.activation)
    _erase_unread(traced, modules)
    _tell_who_took_sums(report.rows)
    report.others = _others(traced, modules, report)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _take_sum_in(traced: Fused, node: Node, sum: Node, residual: Node) -> None:
    """The layer is called where the sum stood, when the other tensor is there; what asks for its size comes after."""
    moved = [node, *_followers(node, sum)]
    node.args, node.kwargs = (patterns.source(node), residual), {}
    for each in moved:
        sum.prepend(each)
    sum.replace_all_uses_with(node)
    traced.graph.erase_node(sum)


def _tell_who_took_sums(rows: list[Row]) -> None:
    """A sum that one layer left and another one took in does not stay."""
    takers = {name: row.layer for row in rows for what, name in row.taken if what == RESIDUAL}
    for row in rows:
        names = [text.partition(":")[0] for text in row.stays]
        row.stays = [
            f"{name}: taken in by {takers[name]}" if name in takers else text for name, text in zip(names, row.stays)
        ]


def _followers(node: Node, end: Node) -> list[Node]:
    """What stands between two nodes and follows from the first one."""
    found = [node]
    between = node.next
    while between is not end:
        if any(each in found for each in between.all_input_nodes):
            found.append(between)
        between = between.next
    return found[1:]


def _erase_unread(traced: Fused, modules: Modules) -> None:
    """What was read by nothing but that which is gone: tensors, paddings and what passes numbers on."""
    for node in reversed(traced.graph.nodes):
        idle = node.op == "get_attr" or patterns.is_identity(node, modules) or patterns.zeros(node, modules) is not None
        if idle and not node.users:
            traced.graph.erase_node(node)


def _others(traced: Fused, modules: Modules, report: Report) -> list[tuple[str, str]]:
    """Normalisations and activations that no row speaks of: what they read is no convolution's."""
    told = {text.partition(":")[0] for row in report.rows for text in row.stays}
    found = []
    for node in traced.graph.nodes:
        name, norm = patterns.shown(node, modules), patterns.normalisation(node, modules)
        if name in told or norm is None and patterns.activation(node, modules) is None:
            continue
        read = patterns.before(node, modules)
        why = (
            norm
            if isinstance(norm, str)
            else f"it reads {patterns.shown(read, modules)}"
            if read
            else "it reads nothing"
        )
        found.append((name, why))
    return found


# ---- a model that cannot be traced: part by part, in place


@dataclass(frozen=True)
class _Chain:
    """The names of a layer, and of the modules around it that it can take in; "" where there is none."""

    layer: str
    zeros: str
    norm: str
    activation: str


_READ = ("weight", "bias", "running_mean", "running_var")
_Callers = dict[nn.Module, set[nn.Module]]
_NO_CALL = "only a call shows which module calls it: fuse(model, inputs) looks at one"


def _callers(model: nn.Module, inputs: tuple[Any, ...]) -> _Callers:
    """Of each module that a call of the model reaches, those whose forward was under way whenever it was called.

    That another module reads a weight or statistics counts as a call: they will be others.

    A copy of the model is called, which shares its Parameters.
    """
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    modules = dict(model.named_modules())
    of_copy = {module: modules[name] for name, module in copied.named_modules() if name in modules}
    under_way: list[nn.Module] = []
    callers: _Callers = {}

    def note(original: nn.Module) -> None:
        callers[original] = callers.get(original, {*under_way}) & {*under_way}

    def enter(module: nn.Module, _: Any) -> None:
        note(of_copy[module])
        under_way.append(of_copy[module])

    def leave(module: nn.Module, *_: Any) -> None:
        if of_copy[module] in under_way:  # not where another hook failed before `enter`
            del under_way[len(under_way) - 1 - under_way[::-1].index(of_copy[module]) :]

    def read(module: nn.Module, name: str) -> Any:
        if name in _READ and of_copy[module] not in under_way:
            note(of_copy[module])
        return nn.Module.__getattr__(module, name)

    for module in of_copy:
        if type(module) in _LAYERS or isinstance(module, _NORMS):
            module.__class__ = type(type(module).__name__, (type(module),), {"__getattr__": read})
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_pre_hook(enter)  # next to the forward: hooks may call modules, too
            module.register_forward_hook(leave, prepend=True, always_call=True)
    with torch.no_grad():
        copied(*inputs)
    return callers


def _why_unproved(part: nn.Module, place: str, chain: _Chain, callers: _Callers | None) -> str:
    """Why it is not known that a part's forward alone calls what a chain names; "" where it is."""
    if callers is None:
        return _NO_CALL
    for name in filter(None, vars(chain).values()):
        module = part.get_submodule(name)
        if module not in callers:
            return "the call does not reach it, or what stands around it"
        if part not in callers[module]:
            full = f"{place}.{name}" if place else name
            return f"{full} is called, or its weight read, outside the forward of {place or 'the model'}"
    return ""


def _fuse_parts(model: nn.Module, inputs: tuple[Any, ...], why: str, epilogues: bool) -> nn.Module:
    """Fuse in place what lies within each largest part that can be traced, and that a call shows to be called whole."""
    names = defaultdict(list)  # of each module; a shared one has several
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    report = Report(f"part by part: {why}")
    rows = {
        module: Row(name, type(module).__name__)
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, MappedConv2d))
    }
    callers = _callers(model, inputs) if inputs else None
    unproved: dict[nn.Module, str] = {}

    def inside(part: nn.Module, module: nn.Module) -> bool:
        """Whether no other part of the model can call the module."""
        prefixes = tuple(f"{outer}." if outer else "" for outer in names[part])
        return all(name.startswith(prefixes) for name in names[module])

    def visit(outer: nn.Module) -> None:
        for name, part in outer.named_children():
            whole = _Tracer().is_leaf_module(part, name)  # a layer, or a ModuleList, which has no forward
            traced = None if whole else _chains(part, epilogues)
            if traced is None:
                visit(part)
                continue
            chains, stays = traced
            left = {chain: _why_unproved(part, names[part][0], chain, callers) for chain in chains}
            unproved.update((part.get_submodule(chain.layer), why) for chain, why in left.items() if why)
            for layer_name, texts in stays.items():
                row = rows[part.get_submodule(layer_name)]
                row.stays += [text for text in texts if text not in row.stays]
            for chain in sorted((chain for chain in chains if not left[chain]), key=lambda chain: chain.layer):
                take(part, chain)
            if callers is not None and any(left.values()):  # it may have parts of its own that are called whole
                visit(part)

    def take(part: nn.Module, chain: _Chain) -> None:
        layer = part.get_submodule(chain.layer)
        removed = [part.get_submodule(name) for name in (chain.zeros, chain.norm, chain.activation) if name]
        if not all(inside(part, module) for module in (layer, *removed)):
            rows[layer].stays.append("other parts of the model can call it, or what stands around it")
            return
        _take_in(part, chain, names[part][0], rows[layer], report)
        for module in removed:
            for alias in names[module]:
                if not isinstance(module, _NORMS):
                    report.places[alias] = module
                model.set_submodule(alias, nn.Identity().eval())

    visit(nn.Sequential(model))
    for module, why in unproved.items():
        if not rows[module].taken and why not in rows[module].stays:
            rows[module].stays.append(why)
    for module, row in rows.items():
        if why := _why_not_fusible(module):
            row.stays = [why]
    report.rows = list(rows.values())
    if not hasattr(model, "report"):
        model.report = report
    return model.eval()


_NORMS = (nn.modules.batchnorm._BatchNorm,)


def _take_in(part: nn.Module, chain: _Chain, place: str, row: Row, report: Report) -> None:
    """What a part's chain says, into the layer. place: the part's name in the model, "" where it is the model."""
    prefix = f"{place}." if place else ""
    layer, modules = part.get_submodule(chain.layer), dict(part.named_modules(remove_duplicate=False))
    graph = Graph()  # one call of each, for `patterns`, which knows nodes
    nodes = {name: graph.call_module(name, (graph.placeholder("x"),)) for name in vars(chain).values() if name}
    if chain.zeros:
        report.paddings[row.layer] = {
            name: vars(layer)[name] for name in ("padding", "_reversed_padding_repeated_twice")
        }
        _take_zeros_in(layer, patterns.zeros(nodes[chain.zeros], modules))
        row.taken.append((PADDING, prefix + chain.zeros))
    if chain.norm:
        _fold(layer, patterns.normalisation(nodes[chain.norm], modules))
        row.taken.append((NORM, prefix + chain.norm))
    if chain.activation:
        layer.activation = patterns.activation(nodes[chain.activation], modules)
        row.taken.append((ACTIVATION, prefix + chain.activation))


def _chains(part: nn.Module, epilogues: bool) -> tuple[set[_Chain], dict[str, list[str]]] | None:
    """What each layer of a part can take in, and what stays behind it; None where tracing fails.

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
            found.append(_chains_of(graph, dict(part.named_modules(remove_duplicate=False)), epilogues))
    except Exception:  # as in `fuse`
        return None
    return set.intersection(*(chains for chains, _ in found)), found[0][1]


def _chains_of(graph: Graph, modules: Modules, epilogues: bool) -> tuple[set[_Chain], dict[str, list[str]]]:
    called = Counter(modules[node.target] for node in graph.nodes if node.op == "call_module")
    read = {modules.get(node.target.rpartition(".")[0]) for node in graph.nodes if node.op == "get_attr"}

    def usable(node: Node) -> bool:
        """Whether a module can go from the tree with this one call of it."""
        return node.op == "call_module" and called[modules[node.target]] == 1 and modules[node.target] not in read

    chains, stays = set(), {}
    for node in graph.nodes:
        layer = modules[node.target] if node.op == "call_module" else None
        if not isinstance(layer, _LAYERS) or _why_not_fusible(layer):
            continue
        if not usable(node):
            stays[node.target] = ["it is called, or its weight is read, more than once"]
            continue
        match = _match(node, layer, modules, usable, epilogues)
        stays[node.target] = match.stays
        if match.anything:
            nodes = (match.zeros, match.norm and match.norm.result, match.activation)
            chains.add(_Chain(node.target, *(each.target if each else "" for each in nodes)))
    return chains, stays


# ---- what may be fused


@dataclass
class _Match:
    """What a layer can take in around one call of it, and what stays, with why."""

    zeros: Node | None = None
    amounts: tuple[int, ...] = ()
    norm: Norm | None = None
    sum: Node | None = None
    residual: Node | None = None
    activation: Node | None = None
    stays: list[str] = field(default_factory=list)

    @property
    def anything(self) -> bool:
        return any((self.zeros, self.norm, self.sum, self.activation))

    def taken(self, modules: Modules) -> list[tuple[str, str]]:
        found = [(PADDING, patterns.shown(self.zeros, modules))] if self.zeros else []
        found += [(NORM, self.norm.name)] if self.norm else []
        found += [(RESIDUAL, patterns.shown(self.sum, modules))] if self.sum else []
        return found + ([(ACTIVATION, patterns.shown(self.activation, modules))] if self.activation else [])


def _why_not_fusible(layer: nn.Module) -> str:
    """Why a convolution is left as it is; "" where it is exactly ours and nothing else looks at what passes through."""
    if type(layer) not in _LAYERS:
        return why_left(layer)
    if not undisturbed(layer):
        return "it has hooks, or a forward of its own"
    return "" if list(layer._parameters) == ["weight", "bias"] else "it has parameters beside weight and bias"


def _match(
    node: Node,
    layer: nn.Module,
    modules: Modules,
    usable: Callable[[Node], bool] = lambda node: True,
    epilogues: bool = False,
) -> _Match:
    """usable: whether a node that fits can be taken in; part by part, only a module can. epilogues: as in `fuse`."""
    found = _Match()
    _match_zeros(found, node, layer, modules, usable)
    after = _behind(found, node, modules)
    norm = None if after is None else patterns.normalisation(after, modules)
    if norm is not None:
        why = norm if isinstance(norm, str) else _why_not_folded(layer, norm)
        if why or not usable(after):
            found.stays.append(f"{patterns.shown(after, modules)}: {why or _UNUSABLE}")
            return found
        found.norm = norm
        after = _behind(found, norm.result, modules)
    if after is not None and (added := patterns.addends(after)):
        result = found.norm.result if found.norm else node
        residual = next(each for each in added if _passed_on(each, modules) is not result)
        why = _why_not_added(node, layer, after, residual, modules) or ("" if usable(after) else _UNUSABLE)
        why = why if epilogues or why else _NOT_ASKED_FOR
        if why:
            found.stays.append(f"{patterns.shown(after, modules)}: {why}")
            return found
        found.sum, found.residual = after, residual
        after = _behind(found, after, modules)
    if after is None:
        return found
    if patterns.activation(after, modules) is None:
        found.stays += filter(None, [patterns.why_it_stays(after, modules)])
        return found
    why = "" if usable(after) else _UNUSABLE
    if not epilogues and patterns.activation(after, modules) != "relu":
        why = _NOT_ASKED_FOR
    if getattr(layer, "activation", None) != "none":
        has = "no" if getattr(layer, "activation", None) is None else "already an"
        why = f"{type(layer).__name__} has {has} activation"
    elif layer.weight.is_complex():
        why = "complex numbers have no order"
    if why:
        found.stays.append(f"{patterns.shown(after, modules)}: {why}")
    else:
        found.activation = after
    return found


def _passed_on(node: Node, modules: Modules) -> Node:
    """Where a node's numbers come from, past what only passes them on."""
    return node if not patterns.is_identity(node, modules) else _passed_on(patterns.source(node), modules)


def _why_not_added(node: Node, layer: nn.Module, sum: Node, residual: Node, modules: Modules) -> str:
    """Why a layer does not take a sum in; "" where it does, and is called in its place."""
    if type(layer) not in (Conv1d, Conv2d):
        return f"{type(layer).__name__} adds no other tensor"
    if layer.activation != "none":
        return "the layer has an activation before it"
    if len(node.args) + len(node.kwargs) > 1:
        return "the layer adds a tensor already"
    if patterns.writes(sum, modules) and sum.args[0] is residual:
        return "it writes into the other tensor"
    if residual in _followers(node, sum):
        return "the other tensor follows from the layer's size"
    between = node.next
    while between is not sum:
        if patterns.writes(between, modules):
            return f"{patterns.shown(between, modules)} writes in place before it"
        between = between.next
    return ""


_NOT_ASKED_FOR = "epilogues=False leaves it"
_UNUSABLE = "only a graph can lose it: it is a function, or a module that is called or read elsewhere"


def _behind(found: _Match, node: Node, modules: Modules) -> Node | None:
    """The node that alone reads a result; where there are several, and one of them would fit, that is told."""
    after = patterns.behind(node, modules)
    if after is None:
        fit = [
            patterns.shown(reader, modules)
            for reader in patterns.readers(node)
            if patterns.activation(reader, modules) or isinstance(patterns.normalisation(reader, modules), Norm)
        ]
        found.stays += [f"{name}: others read the same result" for name in fit]
    return after


def _why_not_folded(layer: nn.Module, norm: Norm) -> str:
    if getattr(layer, "activation", "none") != "none":
        return "the layer has an activation before it"
    other = nn.BatchNorm2d if isinstance(layer, _OF_ROWS) else nn.BatchNorm1d
    if norm.kind == other.__name__:
        return f"{norm.kind} reads other dimensions than {type(layer).__name__} writes"
    if norm.mean.numel() != layer.out_channels:
        return f"it has {norm.mean.numel()} features, and the layer {layer.out_channels} output channels"
    return ""


def _match_zeros(found: _Match, node: Node, layer: nn.Module, modules: Modules, usable: Callable[[Node], bool]) -> None:
    pad = patterns.before(node, modules)
    amounts = None if pad is None else patterns.zeros(pad, modules)
    if amounts is None:
        return
    why = amounts if isinstance(amounts, str) else ""
    if not why and type(layer) not in (Conv1d, Conv2d):
        why = f"{type(layer).__name__} has no padding of single sides"
    if not why and (layer.padding_mode != "zeros" or layer.padding == "same_strided"):
        why = f"the layer's own padding, {layer.padding_mode}, {layer.padding}, comes after it"
    if not why and any(amounts[2 * len(layer.kernel_size) :]):
        why = "it adds to other dimensions than the layer's"
    if not why and not usable(pad):
        why = _UNUSABLE
    between = pad.next
    while not why and between is not node:
        if patterns.writes(between, modules):
            why = f"{patterns.shown(between, modules)} writes in place before the layer reads"
        between = between.next
    if why:
        found.stays.append(f"{patterns.shown(pad, modules)}: {why}")
    else:
        found.zeros, found.amounts = pad, amounts


def _take_zeros_in(layer: nn.Module, amounts: tuple[int, ...]) -> None:
    """Add zeros, which are counted last dimension first, to the layer's own padding."""
    length = len(layer.kernel_size)
    own = layer.padding
    if isinstance(own, str):
        own = padding_of(own, None, layer.kernel_size, layer.stride, layer.dilation)  # none of these asks for a size
    elif not isinstance(own, Sides):
        own = tuple(p for p in own for _ in range(2))
    amounts = Sides(amounts + (0,) * (2 * length - len(amounts))).last_first()[: 2 * length]
    set_sides(layer, [a + b for a, b in zip(own, amounts)])


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
    """Take a node out of the graph: its readers read what it read. A getitem of a tuple goes with what made that."""
    made = node.all_input_nodes[0] if node.target is operator.getitem else node
    node.replace_all_uses_with(patterns.source(made))
    traced.graph.erase_node(node)
    if made is not node:
        traced.graph.erase_node(made)


def _fold(layer: nn.Module, norm: Norm) -> None:
    """Give the layer the weight and bias that compute the normalisation as well."""
    weight, old = layer.weight, layer.bias
    with torch.no_grad():
        scale = torch.rsqrt(norm.var + norm.eps) * (1 if norm.weight is None else norm.weight)
        bias = ((0 if old is None else old) - norm.mean) * scale + (0 if norm.bias is None else norm.bias)
        scaled = (weight * _for_each_weight(layer, scale)).to(weight.dtype)
        bias = bias.to(weight.dtype)
    layer.weight = nn.Parameter(scaled, weight.requires_grad)
    layer.bias = nn.Parameter(bias, weight.requires_grad if old is None else old.requires_grad)
    if isinstance(layer, _OF_ROWS):
        layer.register_forward_pre_hook(_only_batches, with_kwargs=True)


def _only_batches(layer: Conv1d | ConvTranspose1d, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Refuses (C, L), for a layer one example's channels, and for BatchNorm1d many examples' features."""
    input = arguments[0] if arguments else keywords["input"]
    if input.dim() != 3:
        raise RuntimeError(
            f"a {type(layer).__name__} into which fuse has folded a BatchNorm1d takes (N, C, L), "
            f"got input of size: {list(input.shape)}"
        )


def _for_each_weight(layer: nn.Module, scale: Tensor) -> Tensor:
    """A factor for each output map, as one that the layer's weight can be multiplied with."""
    if isinstance(layer, MappedConv2d):
        fan_ins = torch.tensor([len(row) for row in layer.table.sources], device=scale.device)
        return scale.repeat_interleave(fan_ins)[:, None, None]
    if isinstance(layer, _TRANSPOSED):  # (C, K / groups, R, S): each input map goes to the outputs of its group
        of_group = scale.unflatten(0, (layer.groups, 1, -1))
        channels = of_group.expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)
        found: Tensor = channels.reshape(*channels.shape, *[1] * len(layer.kernel_size))
        return found
    return scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
