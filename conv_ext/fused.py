"""What `fuse` makes of a traced model: a graph module with a report, and the way back to torch's layers."""

from __future__ import annotations

import copy
import html
import operator
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from . import patterns
from .arguments import Sides
from .modules import Conv1d, Conv2d, set_sides, torchs_activation
from .tables import Table, as_html

if TYPE_CHECKING:
    from .layouts import Layouts
    from .packed import Packing

__all__ = ["Fused", "Report", "Row"]

PADDING, NORM, RESIDUAL, ACTIVATION = "padding", "normalisation", "residual", "activation"


@dataclass
class Row:
    """One convolution: what it took in, and what stays, with why.

    taken: (padding, normalisation, residual or activation; name).
    """

    layer: str
    kind: str
    taken: list[tuple[str, str]] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What `fuse` did to a model: ``str(report)`` is a table of it, and a notebook shows it as one.

    Attributes:
        how: by which way the model was read: torch.fx, torch.export, or part by part, and then why.
        exported: whether by torch.export.
        rows: a `Row` for each convolution, in the order of the graph (part by part: of the modules).
        others: (name, why) of each normalisation and activation that stays without a convolution before it.
        places, paddings: of a model that was fused part by part, what stood where an nn.Identity stands for an
            activation or a padding, and the attributes that a layer's padding was; `conv_ext.revert` puts them back.
        layouts: the estimates that a memory format was chosen by (`conv_ext.layouts.Layouts`); None where none was.
        packing: what became of the weights (`conv_ext.packed.Packing`): bytes of each layer, and which were left and
            why; None where nothing was to be packed, and after `conv_ext.unpack`.
    """

    how: str
    exported: bool = False
    rows: list[Row] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    places: dict[str, nn.Module] = field(default_factory=dict)
    paddings: dict[str, dict[str, Any]] = field(default_factory=dict)
    layouts: Layouts | None = None
    packing: Packing | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many paddings, normalisations, residuals and activations were taken in."""
        return Counter(what for row in self.rows for what, _ in row.taken)

    def _headline(self) -> str:
        counts, n = self.counts, len(self.rows)
        kinds = (PADDING, NORM, RESIDUAL, ACTIVATION) if counts[RESIDUAL] else (PADDING, NORM, ACTIVATION)
        taken = ", ".join(f"{counts[what]} {what}{'' if counts[what] == 1 else 's'}" for what in kinds)
        return f"{n} convolution{'' if n == 1 else 's'}, {self.how}; taken in: {taken}"

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [
            (row.layer, row.kind, ", ".join(name for _, name in row.taken), "; ".join(row.stays)) for row in self.rows
        ]

    def __str__(self) -> str:
        lines = [self._headline()]
        if self.rows:
            cells = [("layer", "kind", "with", "what stays, and why"), *self._cells()]
            widths = [max(len(row[i]) for row in cells) for i in range(3)]
            lines += ["  " + "  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in cells]
        if self.others:
            lines += ["stay as they are:", *(f"  {name}: {why}" for name, why in self.others)]
        lines += [str(each) for each in (self.layouts, self.packing) if each]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = [Table(("layer", "kind", "with", "what stays, and why"), self._cells(), left=4)] if self.rows else []
        parts = [as_html([self._headline(), *table])]
        if self.others:
            stay = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in self.others)
            parts.append(f"<p>stay as they are:</p><ul>{stay}</ul>")
        parts += [f"<pre>{html.escape(str(each))}</pre>" for each in (self.layouts, self.packing) if each]
        return "".join(parts)


class Fused(GraphModule):
    """The model that `fuse` returns where it has a graph. `report` is what was done; copies and pickles keep it."""

    report: Report

    def __deepcopy__(self, memo: dict[int, Any]) -> Fused:
        copied = cast(Fused, super().__deepcopy__(memo))
        copied.report = copy.deepcopy(self.report, memo)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self.report.exported:
            raise pickle.PicklingError(
                "a model that was fused from an exported program cannot be pickled, as the program's module() cannot: "
                "keep it by torch.export.save(torch.export.export(fused, example_inputs), path)"
            )
        function, arguments = super().__reduce__()
        return _unpickled, (function, arguments, type(self).__name__)


def _unpickled(function: Callable[..., GraphModule], arguments: tuple[Any, ...], name: str) -> Fused:
    """torch.fx makes a plain GraphModule of what was pickled."""
    plain = function(*arguments)
    fused = Fused(plain, plain.graph, name)
    fused.report = plain.report
    return fused.train(plain.training)


# ---- back to torch's layers

_OURS = (Conv1d, Conv2d)  # of those that take something in, the ones that torch has as well


def restorable(model: nn.Module) -> set[nn.Module]:
    """The layers of `model` whose activation and padding `restore` can put beside them."""
    found: set[nn.Module] = set()
    for module in model.modules():
        report = vars(module).get("report")
        if isinstance(module, Fused):
            found |= {module.get_submodule(node.target) for node in module.graph.nodes if node.op == "call_module"}
        elif isinstance(report, Report):
            found |= {module.get_submodule(row.layer) for row in report.rows if row.taken}
    return found


def restore(model: nn.Module) -> None:
    """Put what `fuse` has given to layers, activations and paddings, into the graph or the module tree again."""
    for module in list(model.modules()):
        report = vars(module).get("report")
        if isinstance(module, Fused):
            _restore_graph(module)
        elif isinstance(report, Report):
            _restore_parts(module, report)


def _restore_graph(fused: Fused) -> None:
    """A layer with an activation gets one behind every call of it, whoever gave it to the layer; a call with a
    residual is a call and an addition.
    """
    graph, layers = fused.graph, set()
    for node in [node for node in graph.nodes if node.op == "call_module"]:
        layer = fused.get_submodule(node.target)
        if type(layer) not in _OURS:
            continue
        layers.add(layer)
        last = node
        if len(node.args) + len(node.kwargs) > 1:
            residual = node.args[1] if len(node.args) > 1 else node.kwargs["residual"]
            node.args, node.kwargs = (patterns.source(node),), {}
            last = _put_behind(last, operator.add, (residual,))
        if layer.activation != "none":
            _put_behind(last, *torchs_activation(layer.activation))
        if isinstance(layer.padding, Sides):
            source = node.args[0] if node.args else node.kwargs["input"]
            with graph.inserting_before(node):
                padded = graph.call_function(F.pad, (source, layer.padding.last_first()))
            node.replace_input_with(source, padded)
    for layer in layers:
        layer.activation = "none"
        if isinstance(layer.padding, Sides):
            set_sides(layer, [0] * len(layer.padding))
    fused.recompile()


def _put_behind(node: Node, function: Callable[..., Any], more: tuple[Any, ...]) -> Node:
    """A function of a node, which all others read in its place."""
    with node.graph.inserting_after(node):
        behind = node.graph.call_function(function, (node, *more))
    node.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)
    return behind


def _restore_parts(model: nn.Module, report: Report) -> None:
    for name, module in report.places.items():
        model.set_submodule(name, module)
    for name, padding in report.paddings.items():
        vars(model.get_submodule(name)).update(padding)
    for row in report.rows:
        if any(what == ACTIVATION for what, _ in row.taken):
            model.get_submodule(row.layer).activation = "none"
    report.places.clear()
    report.paddings.clear()
