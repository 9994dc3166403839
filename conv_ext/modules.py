"""Convolution layers: torch.nn's own, with the convolution itself replaced by ours.

Each class changes the one method that calls the convolution. Constructor, parameters, state_dict, padding modes,
repr, pickling and every error of the constructor are inherited, so that the layers can be exchanged for torch's
(and back, see `conv_ext.convert`) at any time.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .functional import conv1d, conv2d, conv_transpose2d

__all__ = ["Conv1d", "Conv2d", "ConvTranspose2d"]


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d`, computed by `conv_ext.conv1d`: same constructor, same state_dict, same padding modes.

    Shapes: input (N, C, L) or (C, L); weight (K, C / groups, S); bias (K,); output (N, K, Q) or (K, Q) with
    Q = floor((L + 2 * padding - dilation * (S - 1) - 1) / stride) + 1.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor as in torch.nn; otherwise those of `conv_ext.conv1d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return conv1d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, computed by `conv_ext.conv2d`: same constructor, same state_dict, same padding modes.

    Shapes: input (N, C, H, W) or (C, H, W); weight (K, C / groups, R, S); bias (K,); output (N, K, P, Q) or
    (K, P, Q) with P = floor((H + 2 * padding - dilation * (R - 1) - 1) / stride) + 1, Q likewise from W and S.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor as in torch.nn; otherwise those of `conv_ext.conv2d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by `conv_ext.conv_transpose2d`: same constructor, same state_dict.

    Shapes: input (N, C, H, W) or (C, H, W); weight (C, K / groups, R, S); bias (K,); output (N, K, P, Q) or
    (K, P, Q) with P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1, Q likewise.
    Dtypes: float32, float64, bfloat16, float16, complex64, complex128; input and parameters share one.
    Errors: ValueError by the constructor and for an impossible `output_size` as in torch.nn; otherwise those of
    `conv_ext.conv_transpose2d`.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of `input`; `output_size` (P, Q) settles what a stride leaves open."""
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


def _padded(layer: nn.Conv1d | nn.Conv2d, input: Tensor) -> tuple[Tensor, str | int | tuple[int, ...]]:
    """The input and the padding that is left to the convolution: none where a mode other than zeros filled it in."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
