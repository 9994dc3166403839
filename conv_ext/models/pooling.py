"""Pooling that torch.nn lacks: over feature maps (L2 and maxout), and LeNet-5's with a gain and a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import count

__all__ = ["L2Pool", "Maxout", "TrainablePool2d"]


class _OverMaps(nn.Module):
    """What `L2Pool` and `Maxout` share: groups of `maps` neighbouring feature maps, of which each becomes one."""

    word: str

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.maps = count("maps", maps)

    @property
    def op(self) -> str:
        """The name in `conv_ext.summary`."""
        return f"{self.word}({self.maps})"

    def groups(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, C / maps, maps, …); RuntimeError unless `maps` divides C."""
        if isinstance(x, Tensor) and (x.dim() < 2 or x.shape[1] % self.maps):
            raise RuntimeError(f"{type(self).__name__}: {self.maps} maps must divide C, got input {list(x.shape)}")
        y: Tensor = x.unflatten(1, (-1, self.maps))
        return y

    def extra_repr(self) -> str:
        """The number of maps."""
        return f"maps={self.maps}"


class L2Pool(_OverMaps):
    """L2 pooling over feature maps: (N, C, H, W) -> (N, C / maps, H, W), the root of each group's sum of squares.

    The pooling of independent subspace analysis: what a group of filters finds, whatever their share in it. A.
    Hyvärinen, P. Hoyer, "Emergence of phase- and shift-invariant features", Neural Computation 12 (7), 2000. Where a
    whole group is zero the gradient is zero, too. Any floating dtype; RuntimeError unless `maps` divides C.
    """

    word = "l2"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, C / maps, …)."""
        y: Tensor = torch.linalg.vector_norm(self.groups(x), dim=2)
        return y


class Maxout(_OverMaps):
    """Maxout: (N, C, H, W) -> (N, C / maps, H, W), the largest of each group of maps. It takes vectors (N, C), too.

    I. Goodfellow, D. Warde-Farley, M. Mirza, A. Courville, Y. Bengio, "Maxout networks", ICML 2013: behind a layer
    without another activation, a learned convex one. Where values tie, the first one gets the gradient. Any real
    dtype; RuntimeError unless `maps` divides C.
    """

    word = "maxout"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, C / maps, …)."""
        return self.groups(x).max(dim=2).values


class TrainablePool2d(nn.Module):
    """LeNet-5's subsampling: the sum of each square, times its map's gain, plus its map's bias.

    x: (N, C, H, W) -> (N, C, floor(H / size), floor(W / size)); `gain`, `bias`: (C,). LeCun et al. 1998, section
    II.B, layers S2 and S4; the squashing function follows in the network. It starts as the average.
    """

    def __init__(self, maps: int, size: int = 2) -> None:
        super().__init__()
        self.kernel_size = self.stride = count("size", size)
        self.gain = nn.Parameter(torch.full((count("maps", maps),), 1 / size**2))
        self.bias = nn.Parameter(torch.zeros(maps))

    @property
    def op(self) -> str:
        """The name in `conv_ext.summary`."""
        return f"avg({self.kernel_size})"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, floor(H / size), floor(W / size))."""
        gain = self.kernel_size**2 * self.gain  # of the sum; the mean is what torch computes
        return F.avg_pool2d(x, self.kernel_size) * gain[:, None, None] + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """Maps and size."""
        return f"{len(self.gain)}, size={self.kernel_size}"
