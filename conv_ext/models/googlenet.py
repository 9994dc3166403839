"""GoogLeNet (Szegedy et al., 2015): inception modules, naive or with dimension reduction, and auxiliary classifiers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

from .layers import Device, Flatten, count, he_start, make, narrowed, one_of

__all__ = ["GoogLeNet", "GoogLeNetScores", "Inception", "googlenet"]

Kind = Literal["reduced", "naive"]

# Table 1 of the paper: maps of 1 x 1; reduction and maps of 3 x 3; reduction and maps of 5 x 5; projection of the
# pooling.
MODULES = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
IMAGE = "224 x 224"


class GoogLeNetScores(NamedTuple):
    """What the network gives in training: its scores, and those of the auxiliary classifiers behind 4a and 4d."""

    scores: Tensor
    auxiliary1: Tensor
    auxiliary2: Tensor


class Inception(nn.Module):
    """Four branches side by side, their maps one after the other: x (N, in_channels, H, W) -> (N, K, H, W).

    The branches are 1 x 1, 3 x 3 and 5 x 5 convolutions and a 3 x 3 pooling with stride 1 (figure 2 of the paper).

    Args:
        k1: the maps of the 1 x 1 branch.
        k3, k5: the maps of 3 x 3 and 5 x 5: a pair (reduced, maps) puts a 1 x 1 convolution to `reduced` maps in front
            (figure 2b), an int does not (figure 2a, the naive module).
        pool: the maps of the 1 x 1 convolution behind the pooling; None: the pooled maps themselves.

    `out_channels` is K. In `conv_ext.summary` it is one row, or its branches where that is told to expand.
    """

    def __init__(self, in_channels: int, k1: int, k3: Any, k5: Any, pool: int | None = None) -> None:
        super().__init__()
        words = [str(k1), *("({},{})".format(*k) if isinstance(k, tuple) else str(k) for k in (k3, k5))]
        self.op = f"inc({','.join(words + ([] if pool is None else [str(pool)]))})"  # the name in conv_ext.summary
        self.branch1 = nn.Sequential(Conv2d(in_channels, k1, 1), nn.ReLU())
        self.branch3, maps3 = self._branch(in_channels, k3, 3)
        self.branch5, maps5 = self._branch(in_channels, k5, 5)
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1))
        if pool is not None:
            self.branch_pool.extend([Conv2d(in_channels, pool, 1), nn.ReLU()])
        self.out_channels = k1 + maps3 + maps5 + (in_channels if pool is None else pool)

    @staticmethod
    def _branch(c: int, k: Any, r: int) -> tuple[nn.Sequential, int]:
        layers: list[nn.Module] = []
        if isinstance(k, tuple):
            reduced, k = k
            layers += [Conv2d(c, reduced, 1), nn.ReLU()]
            c = reduced
        return nn.Sequential(*layers, Conv2d(c, k, r, padding=r // 2), nn.ReLU()), k

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, K, H, W)."""
        return torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)], dim=1)


class Auxiliary(nn.Sequential):
    """A classifier on maps of 14 x 14 in the middle of the network (section 5): (N, C, 14, 14) -> (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int, width: float) -> None:
        k, hidden = narrowed(128, width), narrowed(1024, width)
        flatten = Flatten((k, 4, 4), IMAGE)
        super().__init__(
            nn.AvgPool2d(5, 3), Conv2d(in_channels, k, 1), nn.ReLU(),
            flatten, nn.Linear(flatten.features, hidden), nn.ReLU(), nn.Dropout(0.7), nn.Linear(hidden, num_classes),
        )  # fmt: skip


class GoogLeNet(nn.Module):
    """Nine inception modules: x (N, in_channels, 224, 224) -> scores (N, num_classes), or three; see `googlenet`."""

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, inception: Kind = "reduced", auxiliary: bool = True,
        local_response_norm: bool = False, width: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        one_of("inception", inception, ("reduced", "naive"))
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        self.auxiliary = auxiliary

        def norm() -> list[nn.Module]:
            return [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)] if local_response_norm else []

        a, b = narrowed(64, width), narrowed(192, width)
        self.stem = nn.Sequential(
            Conv2d(in_channels, a, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), *norm(),
            Conv2d(a, a, 1), nn.ReLU(), Conv2d(a, b, 3, padding=1), nn.ReLU(), *norm(), nn.MaxPool2d(3, 2, padding=1),
        )  # fmt: skip
        c, modules = b, {}
        auxiliaries: list[nn.Module] = []
        for name, maps in MODULES.items():
            narrow: list[Any] = [
                narrowed(k, width) if isinstance(k, int) else tuple(narrowed(each, width) for each in k) for k in maps
            ]
            k1, k3, k5, pool = narrow
            reduced = inception == "reduced"
            modules[name] = Inception(c, k1, k3, k5, pool) if reduced else Inception(c, k1, k3[1], k5[1])
            c = modules[name].out_channels
            if auxiliary and name in ("4a", "4d"):
                auxiliaries.append(Auxiliary(c, num_classes, width))
        names = list(modules)
        self.stage3 = nn.Sequential(*(modules[name] for name in names[:2]))
        self.pool3 = nn.MaxPool2d(3, 2, padding=1)
        self.inception4a = modules["4a"]
        self.stage4 = nn.Sequential(*(modules[name] for name in names[3:6]))
        self.inception4e = modules["4e"]
        self.pool4 = nn.MaxPool2d(3, 2, padding=1)
        self.stage5 = nn.Sequential(*(modules[name] for name in names[7:]))
        self.auxiliary1: nn.Module | None = auxiliaries[0] if auxiliaries else None
        self.auxiliary2: nn.Module | None = auxiliaries[1] if auxiliaries else None
        self.pool5 = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(c, num_classes)
        he_start(self)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetScores:
        """(N, in_channels, 224, 224) -> scores (N, num_classes); with the auxiliary ones in training."""
        x = self.inception4a(self.pool3(self.stage3(self.stem(x))))  # (N, 512, 14, 14)
        middle = self.stage4(x)  # (N, 528, 14, 14)
        y = self.stage5(self.pool4(self.inception4e(middle)))  # (N, 1024, 7, 7)
        scores: Tensor = self.fc(self.dropout(self.pool5(y).flatten(1)))
        if self.training and self.auxiliary and self.auxiliary1 is not None and self.auxiliary2 is not None:
            return GoogLeNetScores(scores, self.auxiliary1(x), self.auxiliary2(middle))
        return scores


def googlenet(
    num_classes: int = 1000, in_channels: int = 3, *, inception: Kind = "reduced", auxiliary: bool = True,
    local_response_norm: bool = False, width: float = 1.0, device: Device=None, dtype: torch.dtype | None=None,
) -> GoogLeNet:  # fmt: skip
    """GoogLeNet with fresh weights: images (N, in_channels, 224, 224) -> scores (N, num_classes).

    C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, table 1. torchvision's model of that name is
    another one (batch normalisation, 3 x 3 in place of 5 x 5): `conv_ext.convert` makes that one ours.

    Args:
        inception: "reduced", modules with 1 x 1 convolutions before the large ones, or "naive", without: every module
            then passes all its input maps on, and the maps grow.
        auxiliary: two more classifiers, behind 4a and 4d. In training mode the result is a `GoogLeNetScores`, and the
            paper's loss is that of `scores` plus 0.3 times that of each of the others; in eval mode they do not run.
        local_response_norm: the normalisations that figure 3 has in the stem and table 1 has not.
        width: multiplies the maps of every layer, for small experiments.

    Errors: ValueError for another word, a count below 1 and a width that is not positive; RuntimeError for images of
    another size in training mode with auxiliary classifiers, which are made for maps of 14 x 14.
    """
    options = {"inception": inception, "auxiliary": auxiliary, "local_response_norm": local_response_norm}
    return make(GoogLeNet, num_classes, in_channels, **options, width=width, device=device, dtype=dtype)
