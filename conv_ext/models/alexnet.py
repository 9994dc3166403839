"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012), in the form of CaffeNet, and ZFNet, which follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import Device, Flatten, count, he_start, make, narrowed, one_of

__all__ = ["AlexNet", "ZFNet", "alexnet", "zfnet"]


def _norm() -> nn.Module:
    """Local response normalisation over five maps, with CaffeNet's constants (torch, as Caffe, divides alpha by 5)."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def _classifier(maps: int, hidden: int, num_classes: int, image: str) -> nn.Sequential:
    """Three full connections on maps of 6 x 6, with dropout before the first two."""
    flatten = Flatten((maps, 6, 6), image)
    return nn.Sequential(
        flatten, nn.Dropout(), nn.Linear(flatten.features, hidden), nn.ReLU(),
        nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip


class AlexNet(nn.Module):
    """Five convolutions and three full connections: x (N, in_channels, 227, 227) -> (N, num_classes); see `alexnet`."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, groups: int = 1, width: float = 1.0) -> None:
        super().__init__()
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        one_of("groups", groups, (1, 2))
        a, b, c, hidden = (narrowed(maps, width) for maps in (96, 256, 384, 4096))
        self.features = nn.Sequential(
            Conv2d(in_channels, a, 11, stride=4), nn.ReLU(), nn.MaxPool2d(3, 2), _norm(),
            Conv2d(a, b, 5, padding=2, groups=groups), nn.ReLU(), nn.MaxPool2d(3, 2), _norm(),
            Conv2d(b, c, 3, padding=1), nn.ReLU(),
            Conv2d(c, c, 3, padding=1, groups=groups), nn.ReLU(),
            Conv2d(c, b, 3, padding=1, groups=groups), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = _classifier(b, hidden, num_classes, "227 x 227")
        he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, 227, 227) -> (N, num_classes)."""
        y: Tensor = self.classifier(self.features(x))
        return y


class ZFNet(nn.Module):
    """AlexNet with a finer first layer: x (N, in_channels, 224, 224) -> scores (N, num_classes); see `zfnet`."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        a, b, c, d, hidden = (narrowed(maps, width) for maps in (96, 256, 512, 1024, 4096))
        self.features = nn.Sequential(
            Conv2d(in_channels, a, 7, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), _norm(),
            Conv2d(a, b, 5, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), _norm(),
            Conv2d(b, c, 3, padding=1), nn.ReLU(),
            Conv2d(c, d, 3, padding=1), nn.ReLU(),
            Conv2d(d, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = _classifier(c, hidden, num_classes, "224 x 224")
        he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, 224, 224) -> (N, num_classes)."""
        y: Tensor = self.classifier(self.features(x))
        return y


def alexnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    groups: int = 1,
    width: float = 1.0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> AlexNet:
    """AlexNet with fresh weights: images (N, in_channels, 227, 227) -> scores (N, num_classes).

    A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional neural networks", NIPS
    2012, in the form of CaffeNet: pooling stands before normalisation. torchvision's model of that name is another
    one (Krizhevsky's later "one weird trick", fewer maps, no normalisation): `conv_ext.convert` makes that one ours.

    Args:
        groups: 2 splits layers two, four and five into two groups, as on the paper's two GPUs; 1 does not.
        width: multiplies the maps and units of every layer, for small experiments.

    Errors: ValueError for other groups, a count below 1 and a width that is not positive; RuntimeError for images of
    another size.
    """
    return make(AlexNet, num_classes, in_channels, groups, width, device=device, dtype=dtype)


def zfnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> ZFNet:
    """ZFNet with fresh weights: images (N, in_channels, 224, 224) -> scores (N, num_classes).

    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, with the wider layers
    three to five of its larger model; its contrast normalisation is the local response normalisation of AlexNet.
    `width` multiplies the maps and units of every layer, for small experiments.

    Errors: ValueError for a count below 1 and a width that is not positive; RuntimeError for images of another size.
    """
    return make(ZFNet, num_classes, in_channels, width, device=device, dtype=dtype)
