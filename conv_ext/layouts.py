"""In which layout a model's convolutions are estimated to be faster: decided from plans, never by timing.

The estimates are those by which the plan chooses an algorithm (csrc/cpu/costs.h), cycles of a core for an image, so
that the layout does not follow from the batch. To them come those of torch's pooling, which with channels_last takes a
tenth of what it takes otherwise, and in some networks as much as a third of all convolutions. Other layers between them
take about as long in either layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .explain import _count
from .model_plans import explain_model

__all__ = ["Layouts", "set_faster_layout", "set_layout"]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Cycles of a core for each element of a window, as `python -m bench pooling` measures them.
POOLING = {"max": {"contiguous": 10.0, "channels_last": 0.8}, "average": {"contiguous": 4.0, "channels_last": 0.5}}
_aten = torch.ops.aten
_KINDS = {_aten.max_pool2d_with_indices.default: "max", _aten.avg_pool2d.default: "average"}


class _Pooling(TorchDispatchMode):
    """Counts the cycles of the pooling that runs within, for one image."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cycles = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _KINDS:
            x, kernel = args[0], args[1] if len(args) > 1 else (kwargs or {})["kernel_size"]
            y = result if isinstance(result, Tensor) else result[0]
            last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
            images = x.shape[0] if x.dim() == 4 else 1
            window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** 2
            each = POOLING[_KINDS[func]]["channels_last" if last else "contiguous"]
            self.cycles += each * window * y.numel() / max(images, 1)
        return result


class Layouts(NamedTuple):
    """What was compared: estimated cycles of an image by the name of a layout.

    calls: of convolution layers that have an estimate in both, among `of` that there are. refused: what a call raises
    in the other layout, "" where both compute.
    """

    chosen: str
    cycles: dict[str, float]
    calls: int
    of: int
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"memory format: {self.chosen} ({self.refused})"
        if not self.calls:
            return f"memory format: {self.chosen} (no convolution has an estimate in both layouts)"
        each = ", ".join(f"{name} {_count(cycles)}cycles an image" for name, cycles in self.cycles.items())
        some = "" if self.calls == self.of else f", over {self.calls} of {self.of} calls"
        return f"memory format: {self.chosen} (estimates: {each}{some})"


def set_layout(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights of 2-D layers, and whatever else has four dimensions, in a layout, in place.

    ``model.to(memory_format=...)`` takes five dimensions for images, too, and fails: torch has a layout of its own for
    them, ``torch.channels_last_3d``.
    """

    def laid(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=memory_format) if tensor.dim() == 4 else tensor

    apply: Callable[..., nn.Module] = model._apply
    apply(laid)


def set_faster_layout(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Layouts:
    """Give the 2-D layers' weights the layout, in place, in which a call of the model is estimated to be the faster.

    What a layer computes lies as its weight does, so that the layers behind the first one get that layout, too. A model
    that cannot be called in one of them, such as one with a `view` across what is apart in channels_last, has the
    other. Raises what the call raises where it can be called in neither.
    """
    found, pools = {}, {}
    errors: dict[str, Exception] = {}
    for name, memory_format in FORMATS.items():
        set_layout(model, memory_format)
        try:
            with _Pooling() as pooling:
                found[name] = [layer.cycles for layer in explain_model(model, inputs, kwargs).layers]
        except Exception as error:  # whatever a model raises where numbers lie otherwise
            errors[name] = error
        pools[name] = pooling.cycles
    if not found:
        raise errors["contiguous"]
    if errors:
        ((chosen, layers),) = found.items()
        ((refused, raised),) = errors.items()
        set_layout(model, FORMATS[chosen])
        why = (str(raised).strip() or type(raised).__name__).splitlines()[0]
        return Layouts(chosen, {}, 0, len(layers), f"in {refused} a call raises: {why}")
    calls = [dict(zip(FORMATS, pair)) for pair in zip(*found.values())]
    known = [call for call in calls if None not in call.values()]
    cycles = {name: sum((call[name] or 0 for call in known), pools[name] if known else 0.0) for name in FORMATS}
    chosen = min(cycles, key=lambda name: cycles[name])  # the first, where they are equal
    set_layout(model, FORMATS[chosen])
    return Layouts(chosen, cycles, len(known), len(calls))
