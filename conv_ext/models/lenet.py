"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, 1998), as in the paper or in the form that is usual today."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from conv_ext import ConnectionTable, Conv2d, MappedConv2d

from .layers import Dense, Device, Flatten, count, full_connection, make, one_of, takes_full_connections
from .pooling import TrainablePool2d

__all__ = ["C3_TABLE", "RBF", "LeNet5", "digit_codes", "lenet5"]

Connections = Literal["table", "full"]
Pooling = Literal["trainable", "average", "max"]
Head = Literal["linear", "rbf"]
Squashing = Literal["tanh", "relu"]

# Table I of the paper: which maps of S2 (columns) each map of C3 (rows) sees: three or four neighbours, four in two
# pairs, all.
C3_TABLE = ConnectionTable([
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6) for i in range(3)),
    range(6),
])  # fmt: skip

# Ten digits on 7 x 12 dots, a row of text for each row of dots.
_DIGITS = """
..###.. ...#... ..###.. .#####. .....#. ####### ..####. ####### ..###.. ..###..
.#...#. ..##... .#...#. #.....# ....##. #...... .#..... ......# .#...#. .#...#.
#.....# .#.#... #.....# ......# ...#.#. #...... #...... ......# #.....# #.....#
#.....# ...#... ......# ......# ..#..#. #...... #...... .....#. #.....# #.....#
#.....# ...#... ......# .....#. .#...#. #...... #...... .....#. .#...#. #.....#
#.....# ...#... .....#. ..###.. #....#. #####.. #.###.. ....#.. ..###.. .#...##
#.....# ...#... ....#.. .....#. ####### .....#. ##...#. ....#.. .#...#. ..###.#
#.....# ...#... ...#... ......# .....#. ......# #.....# ...#... #.....# ......#
#.....# ...#... ..#.... ......# .....#. ......# #.....# ...#... #.....# ......#
#.....# ...#... .#..... ......# .....#. ......# #.....# ..#.... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# .#...#. ..#.... .#...#. .....#.
..###.. .#####. ####### .#####. .....#. .#####. ..###.. ..#.... ..###.. .####..
"""


def digit_codes() -> Tensor:
    """The codes of the ten digits: (10, 84), each a picture of 12 rows of 7 dots, +1 where there is ink, else -1."""
    rows = [line.split() for line in _DIGITS.split("\n") if line]
    dots = [[1.0 if dot == "#" else -1.0 for row in rows for dot in row[digit]] for digit in range(10)]
    return torch.tensor(dots)


class RBF(nn.Module):
    """Radial basis functions: scores by the distances to fixed codes, x (N, 84, …) -> (N, num_classes, …).

    LeCun et al. 1998, section II.B: the output of class i is the squared distance of F6's outputs to the picture of
    character i, a penalty. Here it is minus one half of that, the logarithm of a normal density up to a constant, so
    that the highest score wins and cross entropy applies. The codes are a buffer `codes`, no parameters.
    """

    codes: Tensor

    def __init__(self, num_classes: int = 10, flat: bool = True) -> None:
        super().__init__()
        self.flat = flat  # whether x is a vector, and not maps
        codes = digit_codes()
        if num_classes > len(codes):
            raise ValueError(f"head='rbf' has codes for ten digits: num_classes must be up to 10, got {num_classes}")
        self.register_buffer("codes", codes[:num_classes])

    @property
    def op(self) -> str:
        """The name in `conv_ext.summary`."""
        return f"RBF({len(self.codes)})"

    @property
    def operations_per_output(self) -> int:
        """For `conv_ext.summary`: as a full connection with a bias."""
        return self.codes.shape[1] + 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, 84) -> (N, num_classes), or at every position of maps: (N, 84, P, Q) -> (N, num_classes, P, Q)."""
        codes = self.codes if self.flat else self.codes[:, :, None, None]
        return -0.5 * (x[:, None] - codes).square().sum(2)


class ScaledTanh(nn.Module):
    """1.7159 tanh(2 x / 3): near the identity at 1 and -1, where its curvature is largest (appendix A of the paper)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, the same shape."""
        return 1.7159 * torch.tanh(x * (2 / 3))


class LeNet5(nn.Module):
    """LeNet-5 for images of 32 x 32: x (N, in_channels, 32, 32) -> scores (N, num_classes); see `lenet5`."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, connections: Connections = "table",
        pooling: Pooling = "trainable", head: Head = "linear", activation: Squashing = "tanh", dense: Dense = "linear",
    ) -> None:  # fmt: skip
        super().__init__()
        num_classes, in_channels = count("num_classes", num_classes), count("in_channels", in_channels)
        one_of("connections", connections, ("table", "full"))
        one_of("pooling", pooling, ("trainable", "average", "max"))
        one_of("head", head, ("linear", "rbf"))
        one_of("activation", activation, ("tanh", "relu"))
        one_of("dense", dense, ("linear", "conv"))
        trainable, squash = pooling == "trainable", ScaledTanh if activation == "tanh" else nn.ReLU
        plain = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
        self.c1 = Conv2d(in_channels, 6, kernel_size=5)
        self.s2 = TrainablePool2d(6) if trainable else plain(2)
        self.c3 = MappedConv2d(C3_TABLE, kernel_size=5) if connections == "table" else Conv2d(6, 16, kernel_size=5)
        self.s4 = TrainablePool2d(16) if trainable else plain(2)
        self.c5 = Conv2d(16, 120, kernel_size=5)
        linear = dense == "linear"
        self.flatten = Flatten((120, 1, 1), "32 x 32") if linear else nn.Identity()
        self.f6 = full_connection(dense, (120, 1, 1), 84)
        self.output = RBF(num_classes, linear) if head == "rbf" else full_connection(dense, (84, 1, 1), num_classes)
        self.squash = squash()
        self.squash_pooled = squash() if trainable else nn.Identity()
        if not linear:
            takes_full_connections(self)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, 32, 32) -> (N, num_classes).

        With dense="conv" a map of scores: (N, in_channels, H, W) -> (N, num_classes, P, Q).
        """
        x = self.squash(self.c1(x))  # (N, 6, 28, 28)
        x = self.squash_pooled(self.s2(x))  # (N, 6, 14, 14)
        x = self.squash(self.c3(x))  # (N, 16, 10, 10)
        x = self.squash_pooled(self.s4(x))  # (N, 16, 5, 5)
        x = self.squash(self.c5(x))  # (N, 120, 1, 1): a convolution that is a full connection at this size
        x = self.squash(self.f6(self.flatten(x)))  # (N, 84)
        y: Tensor = self.output(x)
        return y


def lenet5(
    num_classes: int = 10, in_channels: int = 1, *, connections: Connections = "table", pooling: Pooling = "trainable",
    head: Head = "linear", activation: Squashing = "tanh", dense: Dense = "linear", device: Device = None,
    dtype: torch.dtype | None = None,
) -> LeNet5:  # fmt: skip
    """LeNet-5 with fresh weights: images (N, in_channels, 32, 32) -> scores (N, num_classes).

    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", Proceedings
    of the IEEE 86 (11), 1998, section II.B and figure 2, whose names the layers bear.

    Args:
        connections: "table", each map of C3 sees those maps of S2 that the paper's table I gives it (1,516 parameters
            in C3), or "full", every map sees all (2,416).
        pooling: "trainable", sums with a gain and a bias for each map, then the squashing function, as in the paper;
            or "average" or "max", without parameters.
        head: "linear", a full connection, or "rbf", distances to fixed pictures of the ten digits (see `RBF`).
        activation: "tanh", the paper's squashing function 1.7159 tanh(2 x / 3), or "relu".
        dense: "linear", full connections, or "conv", the same as convolutions of 1 x 1: the network then takes images
            of any size from 32 x 32 on and gives a map of scores (N, num_classes, P, Q), that of every window of
            32 x 32 with a step of 4, so that P = floor((H - 32) / 4) + 1 (section VII of the paper: space displacement
            neural networks). `load_state_dict` takes the weights of either form.
        device, dtype: where the parameters are and what they are.

    `lenet5(connections="full", pooling="average")` has 61,706 parameters; with `activation="relu", pooling="max"` it is
    what is often called LeNet-5 today. Errors: ValueError for any other word, a
    count below 1 and an "rbf" head with more than ten classes; RuntimeError for images of another size.
    """
    words = connections, pooling, head, activation, dense
    return make(LeNet5, num_classes, in_channels, *words, device=device, dtype=dtype)
