"""What the networks share: how they are made, started and narrowed, and the step from maps to full connections."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Flatten", "count", "he_start", "make", "narrowed", "one_of"]


def count(name: str, value) -> int:
    """`value` as an int of at least 1; TypeError or ValueError name it otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return number


def one_of(name: str, value, choices: tuple) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def make(network: Callable[..., nn.Module], *arguments, device=None, dtype: torch.dtype | None = None, **keywords):
    """``network(*arguments, **keywords)``, made on `device` and of `dtype` (None: torch's defaults)."""
    with contextlib.nullcontext() if device is None else torch.device(device):
        model = network(*arguments, **keywords)
    return model if dtype is None else model.to(dtype)


def narrowed(maps: int, width: float) -> int:
    """`maps` times `width`, rounded to an even number of at least 2 (so that two groups divide it)."""
    if not width > 0:
        raise ValueError(f"width must be above 0, got {width}")
    return maps if width == 1 else max(2, 2 * round(maps * width / 2))


def he_start(model: nn.Module) -> None:
    """Start every layer's weights as ReLU networks want it, biases at zero.

    K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", ICCV 2015, equation 10. The older papers drew from
    a normal distribution of 0.01, with which the deep ones did not start to learn without help.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Flatten(nn.Module):
    """Maps as one vector, for a full connection: (N, C, H, W) -> (N, C H W).

    Raises RuntimeError where the maps have another size than the network was made for; the message names `image`.
    """

    def __init__(self, maps: tuple[int, int, int], image: str) -> None:
        super().__init__()
        self.maps, self.image = maps, image
        self.features = maps[0] * maps[1] * maps[2]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C H W)."""
        if isinstance(x, Tensor) and tuple(x.shape[1:]) != self.maps:  # a symbolic trace has proxies here
            raise RuntimeError(
                f"the network takes images of {self.image}: expected maps of {list(self.maps)} before the full "
                f"connections, but got {list(x.shape[1:])}"
            )
        return x.flatten(1)

    def extra_repr(self) -> str:
        """The maps."""
        return f"{self.maps}"
