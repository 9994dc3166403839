"""ResNet (He, Zhang, Ren and Sun, 2016) with 18, 34, 50, 101 or 152 layers, and ResNeXt (Xie et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import Device, count, he_start, make, narrowed, one_of
from .pretrained import load

__all__ = ["Basic", "Bottleneck", "ResNet", "resnet", "resnext"]


class _Residual(nn.Module):
    """What both blocks share: the sum of a body and of a shortcut, which is a 1 x 1 layer where the size changes."""

    expansion: int
    relu: nn.ReLU

    def body(self, x: Tensor) -> Tensor:
        """What a block computes beside the shortcut."""
        raise NotImplementedError

    def _shortcut(self, c: int, k: int, stride: int) -> None:
        self.downsample = None
        if stride > 1 or c != k:
            self.downsample = nn.Sequential(Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.body(x) + shortcut)
        return y


class Basic(_Residual):
    """Two 3 x 3 convolutions, of `width` maps each: the block of 18 and 34 layers."""

    expansion = 1

    def __init__(self, c: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(c, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self._shortcut(c, width, stride)

    def body(self, x: Tensor) -> Tensor:
        """The residual: (N, C, H, W) -> (N, K, H / stride, W / stride)."""
        y: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return y


class Bottleneck(_Residual):
    """1 x 1 to `inner` maps (None: `width`), 3 x 3, and 1 x 1 to 4 `width`: the block of 50 layers and more.

    The stride is that of the 3 x 3 convolution, as in torchvision and most since; the paper has it in the first 1 x 1.
    groups: of the 3 x 3 convolution; more than one is the block of ResNeXt.
    """

    expansion = 4

    def __init__(self, c: int, width: int, stride: int, groups: int = 1, inner: int | None = None) -> None:
        super().__init__()
        inner = width if inner is None else inner
        self.conv1 = Conv2d(c, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self._shortcut(c, 4 * width, stride)

    def body(self, x: Tensor) -> Tensor:
        """The residual: (N, C, H, W) -> (N, K, H / stride, W / stride)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        y: Tensor = self.bn3(self.conv3(x))
        return y


# Table 1 of the paper: the block, and how many of them each stage has.
STAGES: dict[int, tuple[type[_Residual], tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """Four stages of residual blocks: x (N, in_channels, H, W) -> scores (N, num_classes); see `resnet`, `resnext`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self, layers: int = 50, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, groups: int = 1,
        group_width: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        one_of("layers", layers, tuple(STAGES))
        groups, group_width = count("groups", groups), count("group_width", group_width)
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        block, counts = STAGES[layers]
        c = narrowed(64, width)
        self.conv1 = Conv2d(in_channels, c, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for stage, blocks in enumerate(counts):
            maps = narrowed(64 * 2**stage, width)
            inside = {}
            if groups > 1:
                inside = {"groups": groups, "inner": groups * max(1, round(group_width * 2**stage * width))}
            made = []
            for index in range(blocks):
                made.append(block(c, maps, 2 if stage and index == 0 else 1, **inside))
                c = block.expansion * maps
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c, num_classes)
        he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, H, W) -> (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H / 4, W / 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 512 or 2048, H / 32, W / 32)
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y

    def load_torchvision(self, state_dict: dict[str, Tensor]) -> ResNet:
        """Take the weights of torchvision's resnet18, 34, 50, 101, 152 or of its ResNeXt; returns the network.

        ValueError where names or shapes differ: another depth, another cardinality, another number of classes.
        """
        return load(self, state_dict)


def resnet(
    layers: int = 50,
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> ResNet:
    """ResNet with fresh weights: images (N, in_channels, H, W) -> scores (N, num_classes); 224 x 224 in the paper.

    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016, table 1, with
    projections where the size changes (option B). `layers` is 18, 34, 50, 101 or 152; `width` multiplies the maps of
    every layer, for small experiments.

    Errors: ValueError for another depth, a count below 1 and a width that is not positive.
    """
    return make(ResNet, layers, num_classes, in_channels, width, device=device, dtype=dtype)


def resnext(
    layers: int = 50, num_classes: int = 1000, in_channels: int = 3, *, groups: int = 32, group_width: int = 4,
    width: float = 1.0, device: Device=None, dtype: torch.dtype | None=None,
) -> ResNet:  # fmt: skip
    """ResNeXt with fresh weights: images (N, in_channels, H, W) -> scores (N, num_classes); 224 x 224 in the paper.

    S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He, "Aggregated residual transformations for deep neural networks", CVPR
    2017, table 1 and figure 3(c): a ResNet whose 3 x 3 convolutions are grouped, `groups` of `group_width` maps each in
    the first stage and of twice as many in each further one. The defaults are ResNeXt-50 (32 x 4d), torchvision's
    resnext50_32x4d; `resnext(101, groups=32, group_width=8)` and `resnext(101, groups=64)` are its others.

    `layers` is 50, 101 or 152; `width` multiplies the maps of every layer, for small experiments.

    Errors: ValueError for another depth, a count below 1 and a width that is not positive.
    """
    one_of("layers", layers, tuple(n for n, (block, _) in STAGES.items() if block is Bottleneck))
    return make(ResNet, layers, num_classes, in_channels, width, groups, group_width, device=device, dtype=dtype)
