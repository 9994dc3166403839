"""Two small networks for MNIST and CIFAR-10: two convolutions, each with pooling, and two full connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import Device, Flatten, count, make

__all__ = ["ConvNet", "cifar10_convnet", "mnist_convnet"]


class ConvNet(nn.Module):
    """Two 5 x 5 convolutions and two full connections: x (N, in_channels, side, side) -> scores (N, num_classes).

    After Y. Avrithis' lecture "convolution and network architectures", 2018. Its start: normal weights of 0.1, biases
    of zero.
    """

    def __init__(self, side: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        last = ((side - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            Conv2d(in_channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
            Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            Flatten((64, last, last), f"{side} x {side}"), nn.Linear(64 * last * last, 100), nn.ReLU(),
            nn.Linear(100, num_classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, (Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, side, side) -> (N, num_classes)."""
        y: Tensor = self.classifier(self.features(x))
        return y


def mnist_convnet(
    num_classes: int = 10, in_channels: int = 1, *, device: Device = None, dtype: torch.dtype | None = None
) -> ConvNet:
    """The network for MNIST, images (N, in_channels, 28, 28) -> scores (N, num_classes); see `ConvNet`.

    Errors: ValueError for a count below 1, RuntimeError for images of another size.
    """
    return make(ConvNet, 28, num_classes, in_channels, device=device, dtype=dtype)


def cifar10_convnet(
    num_classes: int = 10, in_channels: int = 3, *, device: Device = None, dtype: torch.dtype | None = None
) -> ConvNet:
    """The network for CIFAR-10, images (N, in_channels, 32, 32) -> scores (N, num_classes); see `ConvNet`.

    Errors: ValueError for a count below 1, RuntimeError for images of another size.
    """
    return make(ConvNet, 32, num_classes, in_channels, device=device, dtype=dtype)
