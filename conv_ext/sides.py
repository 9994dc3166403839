"""Who is measured in a benchmark of a model: torch's layers and ours, each as a person would run them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

from .convert import convert, revert
from .fuse import fuse
from .layouts import set_layout

__all__ = ["FORMATS", "Case", "Left", "Side", "sides"]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Call = Callable[[], object]


class Left(Exception):
    """Why a side is left out."""


@dataclass(frozen=True)
class Side:
    """One way to run the model: `make(case, layout)` gives the model. code: what a person writes for it.

    ours: whether its convolutions are this package's. compiled: whether its first call compiles.
    """

    name: str
    make: Callable[[Case, str], nn.Module]
    code: str
    ours: bool = False
    compiled: bool = False


class Case:
    """A model, ours or torch's, and what it is called with.

    model: an nn.Module or an ExportedProgram, which stays as it is. inputs: the arguments of a call. train: whether a
    step is forward and backward in training mode, or a forward in eval mode.
    """

    def __init__(self, model: nn.Module | ExportedProgram, inputs: tuple[Any, ...], train: bool) -> None:
        self.program = model if isinstance(model, ExportedProgram) else None
        self.inputs, self.train = inputs, train
        if self.program is not None:
            self.torchs: nn.Module = self.program.module()
            return
        assert isinstance(model, nn.Module)
        # A training step changes statistics and gradients, which are to stay.
        self.torchs = revert(copy.deepcopy(model) if train else twin(model)).train(train)
        if train:
            for module in self.torchs.modules():  # it would draw other numbers in another layout
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.p = 0.0

    def layouts(self) -> list[str]:
        """The layouts that make a difference: both where an input is an image and a weight a 2-D kernel."""
        images = any(isinstance(leaf, Tensor) and leaf.dim() == 4 for leaf in tree_leaves(self.inputs))
        kernels = any(p.dim() == 4 for p in self.torchs.parameters())
        return list(FORMATS) if images and kernels else ["contiguous"]

    def given(self, layout: str) -> tuple[Any, ...]:
        """The arguments of a call, images in a layout."""

        def laid(tensor: Tensor) -> Tensor:
            return tensor.contiguous(memory_format=FORMATS[layout]) if tensor.dim() == 4 else tensor

        return cast(tuple[Any, ...], tree_map_only(Tensor, laid, self.inputs))

    def call(self, model: nn.Module, layout: str) -> Call:
        """What is timed: a forward, or a forward and a backward."""
        given = self.given(layout)
        if not self.train:
            return lambda: model(*given)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            loss_of(model(*given)).backward()

        return step

    def results(self, model: nn.Module, given: tuple[Any, ...]) -> list[Tensor]:
        """What sides are compared by: the results of a forward, in training also the gradients of the parameters."""
        torch.manual_seed(0)
        with torch.set_grad_enabled(self.train):
            y = model(*given)
        found = [leaf for leaf in tree_leaves(y) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not found:
            raise Left("the model gives no tensor of floating-point numbers")
        if not self.train:
            return found
        model.zero_grad(set_to_none=True)
        loss_of(y).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return [leaf.detach() for leaf in found] + [grad for grad in grads if grad is not None]


def loss_of(y: object) -> Tensor:
    """The mean square of every number that a model gives: any model has it."""
    floating = [leaf.float() for leaf in tree_leaves(y) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.square().mean() for leaf in floating]).sum()


def twin(model: nn.Module) -> nn.Module:
    """A copy with the same parameters and buffers: layers' classes can be exchanged in it."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def in_layout(model: nn.Module, layout: str) -> nn.Module:
    """The model itself, its 2-D weights in a layout."""
    set_layout(model, FORMATS[layout])
    return model


# ---- the sides


def _torchs(case: Case, layout: str) -> nn.Module:
    if layout == "contiguous":
        return case.torchs
    return in_layout(copy.deepcopy(case.torchs), layout)


def _converted(case: Case, layout: str) -> nn.Module:
    if case.program is not None:
        raise Left("a program of torch.export has no layers to be converted")
    return convert(twin(_torchs(case, layout)))


def _fused(case: Case, layout: str) -> nn.Module:
    if case.train:
        raise Left("fuse is for inference")
    given = case.given(layout)
    return fuse(case.program or case.torchs, *given, memory_format=FORMATS[layout])


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled; for inference with its parameters frozen when it is first called (see `compiling`)."""
    return cast(nn.Module, torch.compile(model))


@contextlib.contextmanager
def compiling(train: bool) -> Iterator[None]:
    """What the first call of a compiled model has to be in."""
    if train:
        yield
        return
    from . import inductor  # which loads the compiler

    with inductor.fusing():
        yield


_LAST = ".to(memory_format=torch.channels_last)"

TORCH = Side("torch", _torchs, "model")
TORCH_COMPILED = Side("torch, compiled", _torchs, "torch.compile(model)", compiled=True)
CONVERTED = Side("converted", _converted, "conv_ext.convert(model)", ours=True)
CONVERTED_COMPILED = Side(
    "converted, compiled", _converted, "torch.compile(conv_ext.convert(model))", ours=True, compiled=True
)
FUSED = Side("fused", _fused, "conv_ext.fuse(model, x)", ours=True)
FUSED_COMPILED = Side("fused, compiled", _fused, "torch.compile(conv_ext.fuse(model, x))", ours=True, compiled=True)


def sides(train: bool, compile: bool) -> list[Side]:
    """The sides of a benchmark, torch's first."""
    eager = [TORCH, CONVERTED] + ([] if train else [FUSED])
    more = [TORCH_COMPILED, CONVERTED_COMPILED if train else FUSED_COMPILED] if compile else []
    return sorted([*eager, *more], key=lambda side: side.ours)


def code_of(side: Side, layout: str) -> str:
    """What a person writes to run the model so; "" for torch's own model as it is."""
    if layout == "contiguous":
        return "" if side is TORCH else side.code
    if side in (FUSED, FUSED_COMPILED):
        return side.code.replace("(model, x)", "(model, x, memory_format=torch.channels_last)")
    return side.code.replace("model", f"model{_LAST}", 1)
