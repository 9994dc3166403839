"""In which layout a model's convolutions are estimated to be faster: decided from plans, never by timing.

The estimates are those by which the plan chooses an algorithm (csrc/cpu/costs.h), cycles of a core for an image, so
that the layout does not follow from the batch. They know of the convolutions alone: what torch's own layers between
them take in either layout is not in them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .explain import _count
from .model_plans import explain_model

__all__ = ["Layouts", "set_faster_layout"]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Layouts(NamedTuple):
    """What was compared: estimated cycles of an image by the name of a layout, over `calls` calls of `of` layers'."""

    chosen: str
    cycles: dict[str, float]
    calls: int
    of: int

    def __str__(self) -> str:
        if not self.calls:
            return f"memory format: {self.chosen} (no convolution has an estimate in both layouts)"
        each = ", ".join(f"{name} {_count(cycles)}cycles an image" for name, cycles in self.cycles.items())
        some = "" if self.calls == self.of else f", over {self.calls} of {self.of} calls"
        return f"memory format: {self.chosen} (estimates: {each}{some})"


def set_faster_layout(model: nn.Module, inputs: tuple, kwargs: dict) -> Layouts:
    """Give the 2-D layers' weights the layout, in place, in which a call of the model is estimated to be the faster.

    What a layer computes lies as its weight does, so that the layers behind the first one get that layout, too. Raises
    what the call raises.
    """
    found = {}
    for name, memory_format in FORMATS.items():
        model.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub lacks it
        found[name] = [layer.cycles for layer in explain_model(model, inputs, kwargs).layers]
    calls = [dict(zip(FORMATS, pair)) for pair in zip(*found.values())]
    known = [call for call in calls if None not in call.values()]
    cycles = {name: float(sum(call[name] or 0 for call in known)) for name in FORMATS}
    chosen = min(cycles, key=lambda name: cycles[name])  # the first, where they are equal
    model.to(memory_format=FORMATS[chosen])  # type: ignore[call-overload]
    return Layouts(chosen, cycles, len(known), len(calls))
