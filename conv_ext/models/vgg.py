"""VGG (Simonyan and Zisserman, 2015): configurations A, A-LRN, B, C, D and E."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import (
    Dense,
    Device,
    Flatten,
    count,
    full_connection,
    he_start,
    make,
    narrowed,
    one_of,
    takes_full_connections,
)
from .pretrained import load

__all__ = ["VGG", "vgg", "vgg16", "vgg19"]

Configuration = Literal["A", "A-LRN", "B", "C", "D", "E"]

MAPS = (64, 128, 256, 512, 512)
# Table 1 of the paper: the kernel sizes of the five stages, which pooling ends.
CONFIGURATIONS: dict[Configuration, tuple[str, ...]] = {
    "A": ("3", "3", "33", "33", "33"),
    "A-LRN": ("3", "3", "33", "33", "33"),  # with a local response normalisation behind the first layer
    "B": ("33", "33", "33", "33", "33"),
    "C": ("33", "33", "331", "331", "331"),
    "D": ("33", "33", "333", "333", "333"),
    "E": ("33", "33", "3333", "3333", "3333"),
}


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions: x (N, in_channels, 224, 224) -> scores (N, num_classes); see `vgg`."""

    def __init__(
        self, configuration: Configuration = "D", num_classes: int = 1000, in_channels: int = 3, width: float = 1.0,
        dense: Dense = "linear",
    ) -> None:  # fmt: skip
        super().__init__()
        one_of("dense", dense, ("linear", "conv"))
        one_of("configuration", configuration, tuple(CONFIGURATIONS))
        num_classes, c = count("num_classes", num_classes), count("in_channels", in_channels)
        layers: list[nn.Module] = []
        for kernels, maps in zip(CONFIGURATIONS[configuration], MAPS):
            k = narrowed(maps, width)
            for r in map(int, kernels):
                layers += [Conv2d(c, k, r, padding=r // 2), nn.ReLU()]
                if configuration == "A-LRN" and len(layers) == 2:
                    layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # torch divides alpha by 5
                c = k
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Identity() if dense == "conv" else Flatten((c, 7, 7), "224 x 224")
        hidden = narrowed(4096, width)
        self.classifier = nn.Sequential(
            full_connection(dense, (c, 7, 7), hidden), nn.ReLU(), nn.Dropout(),
            full_connection(dense, (hidden, 1, 1), hidden), nn.ReLU(), nn.Dropout(),
            full_connection(dense, (hidden, 1, 1), num_classes),
        )  # fmt: skip
        if dense == "conv":
            takes_full_connections(self)
        he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, 224, 224) -> (N, num_classes).

        With dense="conv" a map of scores: (N, in_channels, H, W) -> (N, num_classes, H / 32 - 6, W / 32 - 6).
        """
        y: Tensor = self.classifier(self.flatten(self.features(x)))
        return y

    def load_torchvision(self, state_dict: dict[str, Tensor]) -> VGG:
        """Take the weights of torchvision's vgg11 (A), vgg13 (B), vgg16 (D) or vgg19 (E); returns the network.

        Those names fit ours. ValueError where they or a shape differ: another configuration, a variant with batch
        normalisation, another number of classes.
        """
        return load(self, state_dict)


def vgg(
    configuration: Configuration = "D", num_classes: int = 1000, in_channels: int = 3, *, width: float = 1.0,
    dense: Dense = "linear", device: Device=None, dtype: torch.dtype | None=None,
) -> VGG:  # fmt: skip
    """VGG with fresh weights: images (N, in_channels, 224, 224) -> scores (N, num_classes).

    K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1.
    `configuration` is "A", "A-LRN", "B", "C", "D" (VGG-16) or "E" (VGG-19); `width` multiplies the maps and units of
    every layer, for small experiments.

    With dense="conv" the full connections are convolutions of 7 x 7 and 1 x 1 (section 3.2 of the paper), and the
    network takes images of any size from 224 on: scores (N, num_classes, floor(H / 32) - 6, floor(W / 32) - 6), one for
    every window of 224 x 224 with a step of 32, but for the padding within. `load_state_dict` and `load_torchvision`
    take the weights of full connections, too. The paper averages the map over its positions.

    Errors: ValueError for another configuration or word, a count below 1 and a width that is not positive; RuntimeError
    for images of another size.
    """
    return make(VGG, configuration, num_classes, in_channels, width, dense, device=device, dtype=dtype)


def vgg16(num_classes: int = 1000, in_channels: int = 3, **keywords: Any) -> VGG:
    """`vgg("D", …)`: 13 convolutions and three full connections."""
    return vgg("D", num_classes, in_channels, **keywords)


def vgg19(num_classes: int = 1000, in_channels: int = 3, **keywords: Any) -> VGG:
    """`vgg("E", …)`: 16 convolutions and three full connections."""
    return vgg("E", num_classes, in_channels, **keywords)
