"""Convolution layers: torch.nn's own, with the convolution itself replaced by ours.

Each class changes the one method that calls the convolution; two of them also take an activation. All else,
parameters, state_dict, padding modes, pickling and every error of the constructor, is inherited, so that the layers
can be exchanged for torch's (and back, see `conv_ext.convert`) at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from . import ops
from .arguments import (
    PADDINGS,
    Activation,
    Padding,
    PaddingMode,
    Sides,
    check_activation,
    check_operands,
    normalize,
    padding_of,
    shown_activation,
)
from .functional import conv1d, conv2d, conv_transpose1d, conv_transpose2d

__all__ = ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"]

_LARGE = 2**60  # no input can be padded by more; far from where sums of sizes overflow


class Unscriptable:
    """A layer whose convolution is Python down to the kernels, which TorchScript's compiler cannot read."""

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks for what it is to compile: here is the place to say that it cannot."""
        raise RuntimeError(
            f"torch.jit.script cannot compile conv_ext.{type(self).__name__}: trace the model (torch.jit.trace) or "
            "export it (torch.export), or script it with torch's layers, conv_ext.revert(model)"
        )


class _Extended(Unscriptable, _ConvNd):
    """What our layers have beyond torch's: padding strings, and an epilogue behind the bias.

    The class has the attribute `activation` too: a layer that `convert` made ours, or an old pickle, has none of its
    own.
    """

    activation: Activation = "none"
    padding: Any  # ints, or a string

    def _extend(self, padding: Any, activation: Activation) -> None:
        """What a constructor does behind torch's."""
        if _is_beyond(padding):
            self.padding = padding
        self.activation = activation

    def _fuses(self, input: Tensor, weight: Tensor, residual: Any) -> bool:
        """Whether a residual is one for the epilogue: of the size and the dtype that the result will have."""
        if not isinstance(residual, Tensor) or residual.dim() != input.dim():
            return False
        x, padding = _padded(self, input)
        length = len(self.kernel_size)
        stride, zeros, dilation, _ = normalize(
            f"conv{length}d", x, weight, self.stride, padding, self.dilation, self.groups, length
        )
        size = [*x.shape[: -length - 1], self.out_channels]
        for i, (s, d, taps) in enumerate(zip(stride, dilation, self.kernel_size)):
            size.append((x.shape[i - length] + zeros[2 * i] + zeros[2 * i + 1] - d * (taps - 1) - 1) // s + 1)
        return list(residual.shape) == size and residual.dtype == ops.autocast_dtype(weight)

    def _behind(self, y: Tensor, residual: Any) -> Tensor:
        """A residual and the activation behind a convolution, as torch computes them."""
        activate, bounds = torchs_activation(self.activation)
        return activate(y + residual, *bounds)

    def extra_repr(self) -> str:
        of_torch: Callable[[], str] = super().extra_repr
        shown = of_torch()
        return shown if self.activation == "none" else f"{shown}, activation={shown_activation(self.activation)}"


_BEHIND: dict[str, Callable[..., Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": F.hardtanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def torchs_activation(activation: Activation) -> tuple[Callable[..., Tensor], tuple[float, ...]]:
    """torch's function for an activation, and the bounds that it takes behind the tensor."""
    name, bounds = (activation, ()) if isinstance(activation, str) else (activation[0], activation[1:])
    return _BEHIND[name], bounds


def _is_beyond(padding: object) -> bool:
    """Whether it is a string that torch's constructor refuses. An array would be compared element by element."""
    return isinstance(padding, str) and padding in ("full", "same_strided")


def _for_torch(padding: Any, activation: Activation) -> Any:
    """The padding as torch's constructor takes it; ValueError where one of the strings is none."""
    check_activation(activation)
    if isinstance(padding, str) and padding not in PADDINGS:
        raise ValueError(f"Invalid padding string {padding!r}, should be one of {', '.join(map(repr, PADDINGS))}")
    return "valid" if _is_beyond(padding) else padding


class Conv1d(_Extended, nn.Conv1d):
    """`torch.nn.Conv1d`, computed by `conv_ext.conv1d`: same constructor, same state_dict, same padding modes.

    One keyword more, `activation`, and two more padding strings, as in `Conv2d`.

    Shapes: input (N, C, L) or (C, L); weight (K, C / groups, S); bias (K,); output (N, K, Q) or (K, Q) with
    Q = floor((L + 2 * padding - dilation * (S - 1) - 1) / stride) + 1.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor as in torch.nn; otherwise those of `conv_ext.conv1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: Padding | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = "none",
    ) -> None:
        zeros = _for_torch(padding, activation)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, zeros, dilation, groups, bias, padding_mode, device, dtype
        )
        self._extend(padding, activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The convolution of `input`, to which a `residual` is added before the activation: in one pass where it has
        the size and the dtype of the result, else as torch adds it.
        """
        if residual is None:
            return super().forward(input)
        if self._fuses(input, self.weight, residual):
            return self._conv_forward(input, self.weight, self.bias, residual)
        x, padding = _padded(self, input)
        y = conv1d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return self._behind(y, residual)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        input, padding = _padded(self, input)
        geometry = self.stride, padding, self.dilation, self.groups
        return conv1d(input, weight, bias, *geometry, activation=self.activation, residual=residual)


class Conv2d(_Extended, nn.Conv2d):
    """`torch.nn.Conv2d`, computed by `conv_ext.conv2d`: same constructor, same state_dict, same padding modes.

    One keyword more: ``activation="relu"`` (or another one of `conv_ext.conv2d`'s) computes what an ``nn.ReLU()``
    behind the layer would, with the same bits and without its pass over memory. It may be set later as well
    (``layer.activation = "relu"``), is no part of the state_dict, and must be "none" again before `conv_ext.revert`.
    A call takes one tensor more, ``layer(x, residual)``, which is added before the activation.

    Two padding strings more, in every padding mode: ``"full"`` (dilation * (R - 1) on each side) and
    ``"same_strided"`` (P = ceil(H / stride), TensorFlow's rule), see `conv_ext.conv2d`.

    Shapes: input (N, C, H, W) or (C, H, W); weight (K, C / groups, R, S); bias (K,); output (N, K, P, Q) or
    (K, P, Q) with P = floor((H + 2 * padding - dilation * (R - 1) - 1) / stride) + 1, Q likewise from W and S.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor as in torch.nn; otherwise those of `conv_ext.conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Padding | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = "none",
    ) -> None:
        zeros = _for_torch(padding, activation)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, zeros, dilation, groups, bias, padding_mode, device, dtype
        )
        self._extend(padding, activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The convolution of `input`, to which a `residual` is added before the activation: in one pass where it has
        the size and the dtype of the result, else as torch adds it.
        """
        if residual is None:
            return super().forward(input)
        if self._fuses(input, self.weight, residual):
            return self._conv_forward(input, self.weight, self.bias, residual)
        x, padding = _padded(self, input)
        y = conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return self._behind(y, residual)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        input, padding = _padded(self, input)
        geometry = self.stride, padding, self.dilation, self.groups
        return conv2d(input, weight, bias, *geometry, activation=self.activation, residual=residual)


class ConvTranspose2d(Unscriptable, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by `conv_ext.conv_transpose2d`: same constructor, same state_dict.

    Shapes: input (N, C, H, W) or (C, H, W); weight (C, K / groups, R, S); bias (K,); output (N, K, P, Q) or
    (K, P, Q) with P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1, Q likewise.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor and for an impossible `output_size` as in torch.nn; otherwise those of
    `conv_ext.conv_transpose2d`.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size` (P, Q) settles what a stride leaves open."""
        padding: Any = self.padding
        sizes = list(self.stride), padding, list(self.kernel_size), 2, list(self.dilation)
        output_padding = self._output_padding(input, output_size, *sizes)
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )


class ConvTranspose1d(Unscriptable, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, computed by `conv_ext.conv_transpose1d`: same constructor, same state_dict.

    Shapes: input (N, C, L) or (C, L); weight (C, K / groups, S); bias (K,); output (N, K, Q) or (K, Q) with
    Q = (L - 1) * stride - 2 * padding + dilation * (S - 1) + output_padding + 1.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor and for an impossible `output_size` as in torch.nn; otherwise those of
    `conv_ext.conv_transpose1d`.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size` (Q,) settles what a stride leaves open."""
        padding: Any = self.padding
        sizes = list(self.stride), padding, list(self.kernel_size), 1, list(self.dilation)
        output_padding = self._output_padding(input, output_size, *sizes)
        return conv_transpose1d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups, self.dilation
        )


def set_sides(layer: nn.Conv1d | nn.Conv2d, zeros: list[int]) -> None:
    """Give a layer these zeros before and after each dimension, as plain numbers where that can be said with them."""
    sides = Sides(zeros)
    layer.padding = tuple(sides[::2]) if sides[::2] == sides[1::2] else sides
    layer._reversed_padding_repeated_twice = sides.last_first()


def _padded(layer: _ConvNd, input: Tensor) -> tuple[Tensor, Any]:
    """The input and the padding that is left to the convolution: none where a mode other than zeros filled it in."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    if not hasattr(input, "shape"):  # a stand-in of torch.fx has one
        raise TypeError(f"{type(layer).__name__}(): argument 'input' must be Tensor, not {type(input).__name__}")
    amounts: Sequence[int] = layer._reversed_padding_repeated_twice
    if layer.padding in ("full", "same_strided"):  # F.pad wants the last pair first
        length = len(layer.kernel_size)
        if isinstance(input, Tensor):
            check_operands(f"conv{length}d", length + 2, input, layer.weight, layer.bias)
        image = input.shape[-length:]
        pairs = padding_of(layer.padding, image, layer.kernel_size, layer.stride, layer.dilation)
        amounts = pairs[-2:] + pairs[:-2]
    # torch's own padding adds these without a look at overflow, and reads foreign memory then.
    if any(type(amount) is int and abs(amount) > _LARGE for amount in amounts):
        size = list(input.shape[-len(layer.kernel_size) :])
        raise RuntimeError(
            f"padding by more than {_LARGE} is not possible: input size {size}, padding {tuple(amounts)} "
            "(before and after, last dimension first)"
        )
    return F.pad(input, amounts, mode=layer.padding_mode), 0
