"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov and Chen, 2018): inverted residuals with linear bottlenecks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import Device, count, he_start, make
from .pretrained import load

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# Table 2 of the paper: how many times a block widens its maps, the maps that it gives, how many such blocks there are,
# the stride of the first of them.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280  # maps of the layer before these stages, and of the one behind them


def _of_eight(maps: float) -> int:
    """`maps` as a multiple of 8: the nearest one, at least 8, but the next where that would take more than a tenth."""
    nearest = max(8, 8 * math.floor(maps / 8 + 0.5))
    return nearest if nearest >= 0.9 * maps else nearest + 8


def _layer(c: int, k: int, r: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6: (N, c, H, W) -> (N, k, H / stride, W / stride)."""
    convolution = Conv2d(c, k, r, stride, padding=r // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(k), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1 x 1 to more maps, a 3 x 3 kernel for each of them, 1 x 1 to few: x (N, C, H, W) -> (N, K, H / s, W / s).

    The last layer has no activation (a linear bottleneck). Where input and output have one size, they are added.

    Args:
        c, k: the maps of the input and of the output.
        stride: s, that of the 3 x 3 kernels.
        expansion: how many times as many maps these have; 1 leaves the first 1 x 1 layer out.
    """

    def __init__(self, c: int, k: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and c == k
        inner = c * expansion
        widen = [] if expansion == 1 else [_layer(c, inner)]
        depthwise = _layer(inner, inner, 3, stride, groups=inner)
        self.conv = nn.Sequential(*widen, depthwise, Conv2d(inner, k, 1, bias=False), nn.BatchNorm2d(k))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        y: Tensor = x + self.conv(x) if self.residual else self.conv(x)
        return y


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals: x (N, in_channels, H, W) -> scores (N, num_classes); see `mobilenet_v2`."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, width_mult: float = 1.0) -> None:
        super().__init__()
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        if not 0 < width_mult < math.inf:
            raise ValueError(f"width_mult must be above 0 and finite, got {width_mult}")
        c = _of_eight(FIRST * width_mult)
        layers: list[nn.Module] = [_layer(in_channels, c, 3, 2)]
        for expansion, maps, blocks, stride in STAGES:
            k = _of_eight(maps * width_mult)
            for index in range(blocks):
                layers.append(InvertedResidual(c, k, 1 if index else stride, expansion))
                c = k
        last = _of_eight(LAST * max(1.0, width_mult))  # section 4.1: a narrow network keeps its last layer wide
        self.features = nn.Sequential(*layers, _layer(c, last))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, H, W) -> (N, num_classes)."""
        y: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return y

    def load_torchvision(self, state_dict: dict[str, Tensor]) -> MobileNetV2:
        """Take the weights of torchvision's mobilenet_v2; returns the network.

        ValueError where names or shapes differ: another width, another number of classes.
        """
        return load(self, state_dict)


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width_mult: float = 1.0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> MobileNetV2:
    """MobileNetV2 with fresh weights: images (N, in_channels, H, W) -> scores (N, num_classes); 224 x 224 in the paper.

    M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted residuals and linear bottlenecks",
    CVPR 2018, table 2. `width_mult` is the paper's multiplier: the maps of every layer, rounded to multiples of 8 (the
    last layer is never narrower than at 1), as torchvision does it.

    Errors: ValueError for a count below 1 and a width_mult that is not positive and finite.
    """
    return make(MobileNetV2, num_classes, in_channels, width_mult, device=device, dtype=dtype)
