"""Whole networks of plain torch.nn layers, written compactly: what `python -m bench network` converts and times.

Without dropout, whose random choices would differ between the two sides, and without AlexNet's local response
normalisation, which its successors dropped; a ReLU follows every layer that has no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def lenet5() -> nn.Module:
    """LeCun et al., 1998: (N, 1, 32, 32) -> (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(16, 120, 5), nn.Tanh(), nn.Flatten(),
        nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10))


def classifier(features: int) -> list[nn.Module]:
    """AlexNet's and VGG's three full connections."""
    return [nn.Flatten(), nn.Linear(features, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]


def alexnet() -> nn.Module:
    """Krizhevsky et al., 2012, as one tower: (N, 3, 224, 224) -> (N, 1000)."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        *classifier(256 * 6 * 6))


def vgg16() -> nn.Module:
    """Simonyan and Zisserman, 2014: (N, 3, 224, 224) -> (N, 1000)."""
    layers, c = [], 3
    for k, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(c, k, 3, padding=1), nn.ReLU()]
            c = k
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *classifier(512 * 7 * 7))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and around them a shortcut, which is a 1x1 layer where the size changes."""

    def __init__(self, c: int, width: int, stride: int) -> None:
        super().__init__()
        k = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, k, 1, bias=False), nn.BatchNorm2d(k))
        changes = stride > 1 or c != k
        self.shortcut = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + (x if self.shortcut is None else self.shortcut(x)))


def resnet50() -> nn.Module:
    """He et al., 2016, a stage's stride in its first 3x3 layer: (N, 3, 224, 224) -> (N, 1000)."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            layers.append(Bottleneck(c, width, 1 if index else stride))
            c = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 1000))


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    image: tuple[int, int, int]  # (C, H, W)
    classes: int
    batch: int  # of a training step


NETWORKS = {
    "lenet5": Network(lenet5, (1, 32, 32), 10, 64),
    "alexnet": Network(alexnet, (3, 224, 224), 1000, 16),
    "vgg16": Network(vgg16, (3, 224, 224), 1000, 4),
    "resnet50": Network(resnet50, (3, 224, 224), 1000, 8),
}


def made(name: str) -> nn.Module:
    """The network with the same weights at every call, its layers started as their activations want it (He, 2015).

    With torch's own start the signal dies away in the deep ones, and with it what a comparison of gradients says.
    """
    torch.manual_seed(5)
    model = NETWORKS[name].make()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name != "lenet5":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def data(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """x: (N, C, H, W) normally distributed, and the classes: (N); the same at every call."""
    network, generator = NETWORKS[name], torch.Generator().manual_seed(6)
    x = torch.randn(batch, *network.image, generator=generator)
    return x, torch.randint(network.classes, (batch,), generator=generator)
