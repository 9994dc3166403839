"""The plans of every convolution of a model: what `explain(model, x)` shows, and what layouts.py compares.

The model runs once on the meta device, which has sizes and no numbers; a model that looks at numbers is copied and runs
for real. Hooks note what each layer gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .convert import _OURS, _convolutions, _exchange, why_left
from .explain import Explanation, PassPlan, _bytes, _count, explain_calls, is_explained
from .layer_kinds import op_of
from .meta import on_meta
from .packed import PackedConv2d
from .tables import Shown, Table

__all__ = ["LayerPlans", "ModelExplanation", "explain_model"]

_SWAPPED = {"forward": "input_grad", "input_grad": "forward"}


@dataclass(frozen=True)
class LayerPlans:
    """One call of a convolution layer of a model.

    Attributes:
        name, kind: of the layer, and its class. op: what it is, as "conv(3,64,p1)". input: the size that it got.
        calls: an `Explanation` of each convolution that it computes: several of a MappedConv2d, else one.
        transposed: whether its forward is the convolution's input_grad.
        packed_bytes: what a `PackedConv2d` keeps beside its weight; None of other layers.
    """

    name: str
    kind: str
    op: str
    input: tuple[int, ...]
    calls: tuple[Explanation, ...] = field(repr=False)
    transposed: bool = False
    packed_bytes: int | None = None

    def plans(self, name: str) -> list[PassPlan]:
        """What the layer's own "forward", "input_grad" or "weight_grad" runs."""
        name = _SWAPPED.get(name, name) if self.transposed else name
        return [getattr(call, name) for call in self.calls]

    def algorithms(self, name: str) -> str:
        """Their algorithms, each once."""
        return ", ".join(dict.fromkeys(plan.algorithm or "none" for plan in self.plans(name)))

    @property
    def cycles(self) -> float | None:
        """Cycles of a core that the forward of one image is estimated to take; None where there is no estimate."""
        found = [
            next((cycles for name, _, _, cycles in plan.candidates if name == plan.algorithm), None)
            for plan in self.plans("forward")
        ]
        return None if None in found else sum(filter(None, found))

    @property
    def flops(self) -> float:
        """Multiplications and additions of the forward of all images."""
        return sum(plan.flops for plan in self.plans("forward"))


@dataclass(frozen=True, repr=False)
class ModelExplanation(Shown):
    """The plans of a model's convolutions; `print` shows a table, ``.layers[i].calls`` hold all of them.

    Attributes:
        model: the class. layers: a `LayerPlans` for each call of a layer, in the order of the calls.
        left: (name, why) of the convolutions that have no row.
    """

    model: str
    layers: tuple[LayerPlans, ...]
    left: tuple[tuple[str, str], ...] = ()

    @property
    def cycles(self) -> float:
        """Cycles of all forwards of one image, as far as they are known."""
        return sum(layer.cycles or 0 for layer in self.layers)

    @property
    def packed_bytes(self) -> int:
        """What packed layers keep beside their weights."""
        return sum({layer.name: layer.packed_bytes or 0 for layer in self.layers}.values())

    def _rows(self) -> list[list[str]]:
        rows, whole = [], self.cycles
        for layer in self.layers:
            cycles = layer.cycles
            rows.append(
                [
                    layer.name, layer.op, "×".join(map(str, layer.input)), layer.algorithms("forward"),
                    layer.algorithms("input_grad"), layer.algorithms("weight_grad"), f"{_count(layer.flops)}FLOP",
                    "" if cycles is None else _count(cycles), f"{cycles / whole:.1%}" if cycles else "",
                    "" if layer.packed_bytes is None else _bytes(layer.packed_bytes),
                ]
            )  # fmt: skip
        packed = any(layer.packed_bytes is not None for layer in self.layers)
        flops = sum(layer.flops for layer in self.layers)
        kept = _bytes(self.packed_bytes) if packed else ""
        rows.append(["all", "", "", "", "", "", f"{_count(flops)}FLOP", _count(whole) if whole else "", "", kept])
        return rows

    def _parts(self) -> list[str | Table]:
        heads = ["layer", "op", "input", "forward", "input_grad", "weight_grad", "forward's work", "cycles an image",
                 "share", "packed"]  # fmt: skip
        rows = self._rows()
        if not rows[-1][-1]:
            heads, rows = heads[:-1], [row[:-1] for row in rows]
        n = len(self.layers)
        parts: list[str | Table] = [f"{self.model}: {n} call{'' if n == 1 else 's'} of convolution layers", ""]
        parts.append(Table(heads, rows, left=6, total=True))
        unknown = sum(layer.cycles is None for layer in self.layers)
        parts += [f"without an estimate of its cycles: {unknown} of {n}"] if unknown else []
        parts += [f"left: {name}: {why}" for name, why in self.left]
        return parts


class Call(NamedTuple):
    """What a layer got in a call."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    op: str


def calls_of(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
    """The calls of the convolution layers in a call of the model, in their order; the model stays as it is."""
    found: list[Call] = []

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    def run(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], prepare: Callable[..., Any]) -> None:
        found.clear()
        handles = []
        for name, (layer, _) in _convolutions(model).items():
            if is_explained(layer):

                def note(layer: Any, arguments: Any, keywords: Any, y: Any, name: str = name) -> None:
                    x = arguments[0] if arguments else keywords["input"]
                    batched = x.dim() == len(layer.kernel_size) + 2
                    op = op_of(layer, *((x, y) if batched else (x[None], y[None])))
                    found.append(Call(name, tuple(x.shape), tuple(x.stride()), x.dtype, op))

                handles.append(layer.register_forward_hook(note, with_kwargs=True))
        try:
            with prepare(model), torch.no_grad():
                model(*inputs, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def ours_on_meta(model: nn.Module) -> Iterator[None]:
        """Torch's own convolution has other strides on the meta device than where it computes; ours has the same."""
        classes = [(module, type(module)) for module in model.modules()]
        _exchange(model, _OURS, "explain")
        try:
            with on_meta(model):
                yield
        finally:
            for module, own in classes:
                module.__class__ = own

    try:
        run(
            model,
            *cast(tuple[tuple[Any, ...], dict[str, Any]], tree_map_only(Tensor, empty, (inputs, kwargs))),
            ours_on_meta,
        )
    except Exception:  # it looks at numbers; or the call is wrong, and then says so in the model's words
        run(copy.deepcopy(model), inputs, kwargs, lambda _: torch.no_grad())
    return found


def explain_model(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> ModelExplanation:
    """The plans of every call of a convolution layer of `model` in one call of it; see `explain`."""
    layers: dict[str, Any] = {name: layer for name, (layer, _) in _convolutions(model).items()}
    rows, calls = [], calls_of(model, inputs, kwargs or {})
    for name, size, stride, dtype, op in calls:
        layer = layers[name]
        x = torch.empty_strided(size, stride, dtype=dtype, device=layer.weight.device)
        rows.append(
            LayerPlans(
                name, type(layer).__name__, op, size, tuple(explain_calls(layer, x)),
                isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)),
                layer.packed_bytes if isinstance(layer, PackedConv2d) else None,
            )
        )  # fmt: skip
    called = {call.name for call in calls}
    left = [
        (name, "the call does not reach it" if is_explained(layer) else why_left(layer))
        for name, layer in layers.items()
        if name not in called
    ]
    return ModelExplanation(type(model).__name__, tuple(rows), tuple(left))
