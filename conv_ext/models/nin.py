"""Network in network (Lin, Chen and Yan, 2014): 1 x 1 convolutions between the others, a mean of maps at the end."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import Device, count, he_start, make, narrowed, one_of

__all__ = ["NiN", "nin"]

Images = Literal["cifar10", "imagenet"]

# Of each block: the kernel, stride and padding of its first layer, and the maps of all three. The last block's last
# maps are the classes.
BLOCKS = {
    "cifar10": (((5, 1, 2), (192, 160, 96)), ((5, 1, 2), (192, 192, 192)), ((3, 1, 1), (192, 192))),
    "imagenet": (
        ((11, 4, 0), (96, 96, 96)), ((5, 1, 2), (256, 256, 256)), ((3, 1, 1), (384, 384, 384)),
        ((3, 1, 1), (1024, 1024)),
    ),
}  # fmt: skip


class NiN(nn.Module):
    """Blocks of a large and two 1 x 1 convolutions: x (N, in_channels, H, W) -> scores (N, num_classes); see `nin`."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, images: Images = "cifar10", width: float = 1.0
    ) -> None:
        super().__init__()
        one_of("images", images, tuple(BLOCKS))
        num_classes, c = count("num_classes", num_classes), count("in_channels", in_channels)
        layers: list[nn.Module] = []
        for index, ((r, stride, padding), maps) in enumerate(BLOCKS[images]):
            last = index == len(BLOCKS[images]) - 1
            sizes = [narrowed(k, width) for k in maps] + [num_classes] * last
            for position, k in enumerate(sizes):
                first = (r, stride, padding) if position == 0 else (1, 1, 0)
                layers += [Conv2d(c, k, *first), nn.ReLU()]
                c = k
            if not last:
                averages = images == "cifar10" and index == 1
                layers.append(nn.AvgPool2d(3, 2, padding=1) if averages else nn.MaxPool2d(3, 2, ceil_mode=True))
                if images == "cifar10" or index == 2:
                    layers.append(nn.Dropout())
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        he_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each class's map: (N, in_channels, H, W) -> (N, num_classes)."""
        y: Tensor = self.pool(self.features(x)).flatten(1)
        return y


def nin(
    num_classes: int = 10, in_channels: int = 3, *, images: Images = "cifar10", width: float = 1.0, device: Device=None,
    dtype: torch.dtype | None=None,
) -> NiN:  # fmt: skip
    """Network in network with fresh weights: images (N, in_channels, H, W) -> scores (N, num_classes).

    M. Lin, Q. Chen, S. Yan, "Network in network", ICLR 2014: instead of full connections the last convolution has a
    map for each class, and global average pooling makes scores of them, so that images of nearly any size pass.

    Args:
        images: "cifar10", the paper's own network for 32 x 32, or "imagenet", the larger one for 224 x 224 that the
            authors published later (take num_classes=1000).
        width: multiplies the maps of every layer but the last, for small experiments.

    Errors: ValueError for another word, a count below 1 and a width that is not positive.
    """
    return make(NiN, num_classes, in_channels, images, width, device=device, dtype=dtype)
