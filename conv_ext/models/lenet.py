"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, 1998), the network of the demo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conv_ext import Conv2d

__all__ = ["LeNet5", "lenet5"]


class LeNet5(nn.Module):
    """LeNet-5 for images of 32 x 32: x (N, in_channels, 32, 32) -> scores (N, num_classes).

    After Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86 (11), 1998, section II.B and figure 2, whose names the layers bear. With the default
    arguments it has 61,706 parameters. Three things are simpler than in the paper: every map of C3 sees all six maps
    of S2 (the paper's table I leaves connections out), S2 and S4 average without trainable coefficients, and the
    output is linear (the paper measures distances to fixed codes). The squashing function is tanh, unscaled.

    Any image smaller than 32 x 32 is refused by C5 (a 5 x 5 kernel on S4's maps).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, *, device=None, dtype=None) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.c1 = Conv2d(in_channels, 6, kernel_size=5, **where)
        self.s2 = nn.AvgPool2d(2)
        self.c3 = Conv2d(6, 16, kernel_size=5, **where)
        self.s4 = nn.AvgPool2d(2)
        self.c5 = Conv2d(16, 120, kernel_size=5, **where)
        self.f6 = nn.Linear(120, 84, **where)
        self.output = nn.Linear(84, num_classes, **where)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each class, before any softmax: (N, in_channels, 32, 32) -> (N, num_classes)."""
        x = torch.tanh(self.c1(x))  # (N, 6, 28, 28)
        x = self.s2(x)  # (N, 6, 14, 14)
        x = torch.tanh(self.c3(x))  # (N, 16, 10, 10)
        x = self.s4(x)  # (N, 16, 5, 5)
        x = torch.tanh(self.c5(x))  # (N, 120, 1, 1): a convolution that is a full connection at this size
        x = torch.tanh(self.f6(x.flatten(1)))  # (N, 84)
        return self.output(x)


def lenet5(num_classes: int = 10, in_channels: int = 1, *, device=None, dtype=None) -> LeNet5:
    """A LeNet-5 with fresh weights; see `LeNet5`."""
    return LeNet5(num_classes, in_channels, device=device, dtype=dtype)
