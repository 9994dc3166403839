# %% [markdown]
"""
# Notebook 1: Convolution by hand

A convolution lays a small kernel over an image, multiplies, adds up, and moves on. This notebook writes that down as
four loops, holds it beside the library's result, and looks at what kernels do to a picture. The chapter that goes
with it is [mathematics.md](../mathematics.md).
"""

# %%
import itertools
import tempfile

import numpy as np
import torch
from IPython.display import Image

import conv_ext
from conv_ext import visualize
from conv_ext.demo.data import load_digits

# %% [markdown]
"""
## One map, one kernel

An output is as large as there are places for the kernel: 3 − 2 + 1 = 2 in each direction.
"""


# %%
def by_hand(x, w):
    """The correlation of one map (H, W) with one kernel (R, S), from the definition."""
    (height, width), (taps_down, taps_across) = x.shape, w.shape
    y = torch.zeros(height - taps_down + 1, width - taps_across + 1)
    for p, q in itertools.product(range(y.shape[0]), range(y.shape[1])):
        for r, s in itertools.product(range(taps_down), range(taps_across)):
            y[p, q] += w[r, s] * x[p + r, q + s]
    return y


x = torch.tensor([[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]])
w = torch.tensor([[1.0, -2], [3, 4]])
by_hand(x, w)

# %% [markdown]
"""
The library takes a batch of images with several maps each, (N, C, H, W), and a kernel for each pair of an output map
and an input map, (K, C, R, S). Here all of that is 1.
"""

# %%
y = conv_ext.conv2d(x[None, None], w[None, None])
assert torch.equal(y[0, 0], by_hand(x, w))
y

# %% [markdown]
"""
To watch it: an animation has a frame for each number of the output. `strip` shows some of them.
"""

# %%
with tempfile.TemporaryDirectory() as folder:
    animation = Image(filename=str(visualize.convolution(x, w).save(f"{folder}/convolution.gif", bar=False)))
animation

# %% [markdown]
"""
## Convolution and correlation

What torch calls a convolution is the correlation: the kernel is not rotated. The true convolution rotates it by 180°
first, and unlike the correlation it does not care which of the two slides.
"""


# %%
def full(a, b):
    """The true convolution, wherever the two touch."""
    return conv_ext.conv2d(a[None, None], b.flip(0, 1)[None, None], padding=(b.shape[0] - 1, b.shape[1] - 1))[0, 0]


assert torch.equal(full(x, w), full(w, x))
full(x, w)

# %% [markdown]
"""
It is the product of two polynomials: coefficients are multiplied in the same way.
"""

# %%
f, g = torch.tensor([[0.0, 1, 2, -1, 3]]), torch.tensor([[1.0, 1, 0]])
full(f, g)[0].tolist(), np.polymul(f[0], g[0]).tolist()

# %% [markdown]
"""
(`polymul` drops the leading zero.)

## What kernels do to a picture

Taps that add up to 1 smooth. Taps that add up to 0 answer to change, and to nothing where all is even.
"""

# %%
digit = load_digits().test_images[3, 0].float() / 255
kernels = {
    "box": torch.full((3, 3), 1 / 9),
    "from left to right": torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]),
    "from top to bottom": torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]),
    "sharper": torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
}
figure = visualize.new_figure(11, 2.6)
panels = figure.subplots(1, 5)
panels[0].imshow(digit, cmap="gray")
panels[0].set_title("the image", fontsize=9)
for axes, (name, kernel) in zip(panels[1:], kernels.items()):
    result = conv_ext.conv2d(digit[None, None], kernel[None, None], padding=1)[0, 0]
    limit = result.abs().max()
    axes.imshow(result, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(name, fontsize=9)
for axes in panels:
    visualize.bare(axes)
figure

# %% [markdown]
"""
## Stride, padding, dilation

The stride is how far the kernel moves, the dilation how far its taps are apart, the padding how many zeros stand
around. A formula tells the size of the output. We try it for every combination of a few:
"""

# %%
tried = 0
for size, taps, stride, padding, dilation in itertools.product((7, 12), (1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2)):
    expected = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    y = conv_ext.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, taps), None, stride, padding, dilation)
    assert y.shape[2] == expected
    tried += 1
tried

# %%
visualize.convolution(torch.arange(25.0).reshape(5, 5) % 4, w, stride=2, padding=1, dilation=2).strip(2)

# %% [markdown]
"""
## Several maps

An output map adds up what its kernels make of all input maps. Seven loops now, and the bias:
"""


# %%
def layer_by_hand(x, w, b):
    """(N, C, H, W), (K, C, R, S), (K,) -> (N, K, P, Q), stride 1, no padding."""
    n, c, height, width = x.shape
    k, _, taps_down, taps_across = w.shape
    y = b.reshape(1, k, 1, 1).repeat(n, 1, height - taps_down + 1, width - taps_across + 1)
    for image, out, into in itertools.product(range(n), range(k), range(c)):
        y[image, out] += by_hand(x[image, into], w[out, into])
    return y


x4, w4, b4 = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 2), torch.randn(4)
torch.testing.assert_close(conv_ext.conv2d(x4, w4, b4), layer_by_hand(x4, w4, b4))

# %% [markdown]
"""
A kernel of 1 × 1 sees no neighbours: the layer is a product of two matrices.
"""

# %%
w1 = torch.randn(4, 3, 1, 1)
product = w1[:, :, 0, 0] @ x4.flatten(2)
torch.testing.assert_close(conv_ext.conv2d(x4, w1).flatten(2), product)
product.shape

# %% [markdown]
"""
## What moves in the image moves in the output

The kernel is the same everywhere. So a layer need not learn a stroke anew for every place where it may be.
"""

# %%
edge = kernels["from left to right"][None, None]
image = torch.zeros(1, 1, 32, 32)
image[..., 4:20, 6:16] = digit[8:24, 11:21]
moved = image.roll((7, 9), (2, 3))
first, second = conv_ext.conv2d(image, edge), conv_ext.conv2d(moved, edge)
assert torch.equal(second, first.roll((7, 9), (2, 3)))

# %% [markdown]
"""
**To try:** a kernel that answers to corners; a stride of 2 and a move by 1 (it is no longer the same output, moved);
a kernel of your own in `visualize.convolution`.
"""
