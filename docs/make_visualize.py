"""Makes the pictures of docs/visualize.md: `python docs/make_visualize.py`, a minute or two."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from conv_ext import models, visualize  # noqa: E402
from conv_ext.demo import transfer  # noqa: E402
from conv_ext.demo.data import load_digits  # noqa: E402

PICTURES = HERE / "visualize"
# The example of docs/mathematics.md.
X = torch.tensor([[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]])
W = torch.tensor([[1.0, -2], [3, 4]])
G = torch.tensor([[2.0, 1], [-1, 3]])
WIDE = torch.tensor([[1.0, 0, 2, -1, 1], [0, 3, 1, 0, 2], [2, 1, -2, 1, 0], [1, 0, 1, 2, -1], [0, 2, 0, 1, 1]])


def convolutions() -> None:
    """The kernel on its way: an animation and a strip for each pass."""
    drawn = {
        "forward": visualize.convolution(X, W, padding=1),
        "input_grad": visualize.convolution(X, W, of="input_grad", g=G),
        "weight_grad": visualize.convolution(X, W, of="weight_grad", g=G),
        "strided": visualize.convolution(WIDE, W, stride=2, padding=1, dilation=2),
        "strided_input_grad": visualize.convolution(WIDE, W, stride=2, of="input_grad"),
    }
    for name, sliding in drawn.items():
        sliding.save(PICTURES / f"{name}.gif", bar=False)
        (PICTURES / f"{name}.png").write_bytes(visualize.png(sliding.strip(2)))


def units() -> None:
    """What the units of a LeNet-5 with ReLU and max pooling look for, after 20 epochs on scikit-learn's digits."""
    torch.manual_seed(0)
    images = load_digits()
    net = models.lenet5(activation="relu", pooling="max")
    accuracy, _ = transfer.learn(net, images, 20 * 45, 0, torch.device("cpu"))
    print(f"LeNet-5 with ReLU: test accuracy {100 * accuracy:.2f} %")
    net.eval()
    x, _ = images.test_batch(slice(0, 360))
    chosen = [0, 4, 6, 11]
    size, limits = (1, 32, 32), (x.min().item(), x.max().item())
    drawn = {
        "top_patches": visualize.top_patches(net, "c3", x, range(8)),
        "deconvnet": visualize.deconvnet(net, "c3", x, chosen),
        "maximise": visualize.maximise(net, "c3", range(8), size, bar=False),
        "classes": visualize.maximise(net, "output", range(10), size, blur=0.7, limits=limits, bar=False),
        "table": visualize.filters(net.c3, columns=2),
    }
    for name, figure in drawn.items():
        (PICTURES / f"{name}.png").write_bytes(visualize.png(figure))


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    convolutions()
    units()
