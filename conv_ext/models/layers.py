"""What the networks share: how they are made, started and narrowed, and the step from maps to full connections."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

__all__ = ["Flatten", "count", "full_connection", "he_start", "make", "narrowed", "one_of", "takes_full_connections"]


Dense = Literal["linear", "conv"]
Device = torch.device | str | int | None
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


def count(name: str, value: SupportsIndex) -> int:
    """`value` as an int of at least 1; TypeError or ValueError name it otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return number


def one_of(name: str, value: object, choices: tuple[Any, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def make(
    network: Callable[..., AnyNetwork],
    *arguments: Any,
    device: Device = None,
    dtype: torch.dtype | None = None,
    **keywords: Any,
) -> AnyNetwork:
    """``network(*arguments, **keywords)``, made on `device` and of `dtype` (None: torch's defaults)."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)):
        raise TypeError(f"dtype must be a floating or complex torch.dtype, got {dtype!r}")
    with contextlib.nullcontext() if device is None else torch.device(device):
        model = network(*arguments, **keywords)
    return model if dtype is None else model.to(dtype)


def narrowed(maps: int, width: float) -> int:
    """`maps` times `width`, rounded to an even number of at least 2 (so that two groups divide it)."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"width must be a number, got {width!r}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be above 0 and finite, got {width}")
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


def full_connection(kind: str, maps: tuple[int, int, int], units: int) -> nn.Module:
    """A full connection from maps (C, H, W) to units: nn.Linear on them as a vector, or with kind "conv" Conv2d.

    A convolution whose kernel is as large as the maps is that full connection; on larger maps it is the same connection
    at every position. Its weight (units, C, H, W) has the numbers of the linear layer's (units, C H W) in the same
    order.
    """
    c, h, w = maps
    return Conv2d(c, units, (h, w)) if kind == "conv" else nn.Linear(c * h * w, units)


def reshaped(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`given` with weights of full connections in the shape of the convolutions in `own` that stand for them."""
    found = dict(given)
    for name, tensor in own.items():
        matrix = given.get(name)
        if matrix is not None and matrix.dim() == 2 and tensor.dim() == 4 and matrix.numel() == tensor.numel():
            found[name] = matrix.reshape(tensor.shape) if len(matrix) == len(tensor) else matrix
    return found


def takes_full_connections(model: nn.Module) -> None:
    """Have `load_state_dict` take the weights of the same network with full connections that are no convolutions."""
    model.register_load_state_dict_pre_hook(_reshape)


def _reshape(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    own = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    state_dict.update(reshaped(own, {name: state_dict[name] for name in own if name in state_dict}))


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
