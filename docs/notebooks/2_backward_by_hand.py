# %% [markdown]
"""
# Notebook 2: Backward by hand

A network learns because it can be told how its loss changes with every weight. For a convolution both gradients are
convolutions again. This notebook finds them with a pencil, as loops, as matrices, and by the numerical check that any
layer should have to pass.
"""

# %%
import itertools

import torch
from torch.autograd.functional import jacobian

import conv_ext
from conv_ext import visualize

# %% [markdown]
"""
## The chain rule, once

T is a number that depends on all outputs, g its derivatives by them. Every product w[r, s] · x[p + r, q + s] stands
in the output y[p, q]. So g[p, q] · w[r, s] goes to that input's gradient, and g[p, q] · x[p + r, q + s] to that
tap's.
"""


# %%
def gradients_by_hand(x, w, g):
    """(dx, dw) of one map and one kernel."""
    dx, dw = torch.zeros_like(x), torch.zeros_like(w)
    for p, q in itertools.product(range(g.shape[0]), range(g.shape[1])):
        for r, s in itertools.product(range(w.shape[0]), range(w.shape[1])):
            dx[p + r, q + s] += g[p, q] * w[r, s]
            dw[r, s] += g[p, q] * x[p + r, q + s]
    return dx, dw


x = torch.tensor([[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]])
w = torch.tensor([[1.0, -2], [3, 4]])
g = torch.tensor([[2.0, 1], [-1, 3]])
dx, dw = gradients_by_hand(x, w, g)
dx, dw

# %% [markdown]
"""
The same by autograd through the library's kernels:
"""

# %%
x4, w4 = x[None, None].requires_grad_(), w[None, None].requires_grad_()
y = conv_ext.conv2d(x4, w4)
found = torch.autograd.grad(y, (x4, w4), g[None, None])
assert torch.equal(found[0][0, 0], dx) and torch.equal(found[1][0, 0], dw)

# %% [markdown]
"""
## They are convolutions

The gradient of the input is the full *convolution* of g with the kernel: the rotated kernel over g, with zeros around
it.
"""

# %%
visualize.convolution(x, w, of="input_grad", g=g).strip([0, 4, 8])

# %% [markdown]
"""
The gradient of the kernel is the *correlation* of the input with g, which takes the kernel's place:
"""

# %%
visualize.convolution(x, w, of="weight_grad", g=g).strip([0, 3])

# %%
assert torch.equal(conv_ext.conv2d(g[None, None], w.flip(0, 1)[None, None], padding=1)[0, 0], dx)
assert torch.equal(conv_ext.conv2d(x[None, None], g[None, None])[0, 0], dw)

# %% [markdown]
"""
And three inner products are the same number, T: linear in each of x, w and g.
"""

# %%
y = conv_ext.conv2d(x[None, None], w[None, None])[0, 0]
[(a * b).sum().item() for a, b in ((y, g), (x, dx), (w, dw))]

# %% [markdown]
"""
## As matrices

Write x and y as rows of numbers: a linear map is a matrix, and the way back is its transpose. A stride leaves rows
out, a dilation moves the diagonals apart.
"""


# %%
def matrix(w, size, **options):
    """The matrix of a convolution of `size` positions."""
    return jacobian(lambda x: conv_ext.conv1d(x[None, None], w[None, None], **options)[0, 0], torch.zeros(size))


taps = torch.tensor([1.0, 2, 3])
kinds = {"plain": {}, "padding 1": {"padding": 1}, "stride 2": {"stride": 2}, "dilation 2": {"dilation": 2}}
figure = visualize.new_figure(10, 2.6)
for axes, (name, options) in zip(figure.subplots(1, 4), kinds.items()):
    axes.imshow(matrix(taps, 9, **options), cmap="OrRd")
    axes.set_title(name, fontsize=9)
    visualize.bare(axes)
figure

# %%
for options in kinds.values():
    W = matrix(taps, 9, **options)
    row = torch.randn(1, 1, 9, requires_grad=True)
    y = conv_ext.conv1d(row, taps[None, None], **options)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, row, upstream)
    torch.testing.assert_close(W @ row[0, 0], y[0, 0])
    torch.testing.assert_close(W.T @ upstream[0, 0], gradient[0, 0])

# %% [markdown]
"""
## The numerical check

Change a number by h and see what the result does. −0.8 · 0.5 + 0.3 · (−0.2) = −0.46; with w0 = −0.8 + h it is
−0.46 + 0.5 h, so the derivative is 0.5, the input that the tap lies on.
"""

# %%
inputs = torch.tensor([[[0.5, -0.2]]], dtype=torch.float64)
two = torch.tensor([[[-0.8, 0.3]]], dtype=torch.float64)
h = 1e-6
for i in range(2):
    step = torch.zeros_like(two)
    step[..., i] = h
    change = conv_ext.conv1d(inputs, two + step) - conv_ext.conv1d(inputs, two - step)
    print(f"dT/dw{i} = {change.item() / (2 * h):.6f}")

# %% [markdown]
"""
How small should h be? Too large, and the curve's bend counts; too small, and the difference of two nearly equal
numbers has no digits left. The same in float32 never gets far.
"""

# %%
exact = 3 * 0.46**2 * 0.5  # of the cube of that output, by w0


def cube(w0, dtype):
    return (torch.tensor([w0, 0.3], dtype=torch.float64).to(dtype) * inputs[0, 0].to(dtype)).sum() ** 3


steps = [10 ** (-n / 4) for n in range(4, 53)]
figure = visualize.new_figure(6.5, 3.6)
axes = figure.subplots()
for dtype in (torch.float64, torch.float32):
    both = [(cube(-0.8 + h, dtype) - cube(-0.8 - h, dtype)).item() / (2 * h) for h in steps]
    axes.loglog(steps, [max(abs(value - exact), 1e-14) for value in both], label=str(dtype).removeprefix("torch."))
axes.set_xlabel("h")
axes.set_ylabel("error of the derivative")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
figure

# %% [markdown]
"""
`torch.autograd.gradcheck` does it for every number of every argument; `gradgradcheck` for the gradients of the
gradients, which are the same three kernels again.
"""

# %%
a = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
k = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)


def layer(a, k):
    return conv_ext.conv2d(a, k, stride=2, padding=1)


torch.autograd.gradcheck(layer, (a, k)), torch.autograd.gradgradcheck(layer, (a, k))

# %% [markdown]
"""
A gradient that is wrong is found. Here one forgets to rotate the kernel:
"""


# %%
class Unrotated(torch.autograd.Function):
    """A convolution whose input gradient is a correlation, by mistake."""

    @staticmethod
    def forward(context, x, w):
        context.save_for_backward(w)
        return conv_ext.conv2d(x, w)

    @staticmethod
    def backward(context, g):
        (w,) = context.saved_tensors
        return conv_ext.conv2d(g, w.transpose(0, 1), padding=w.shape[2] - 1), None


x = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
w = torch.randn(1, 1, 3, 3, dtype=torch.float64)
try:
    torch.autograd.gradcheck(Unrotated.apply, (x, w))
except RuntimeError as error:
    print(str(error).splitlines()[0])

# %% [markdown]
"""
## Pooling

The maximum sends the whole gradient to where it was, the average spreads it.
"""

# %%
pooled = torch.tensor([[[[1.0, 3, 2, 0], [4, 2, 1, 5], [0, 1, 3, 2], [2, 1, 0, 1]]]], requires_grad=True)
upstream = torch.tensor([[[[8.0, 4], [-4, 12]]]])
for pool in (torch.nn.functional.max_pool2d, torch.nn.functional.avg_pool2d):
    print(torch.autograd.grad(pool(pooled, 2), pooled, upstream)[0][0, 0])

# %% [markdown]
"""
**To try:** the gradients of a strided convolution by hand (where do zeros come into g?); `gradcheck` of max pooling
on an image of equal numbers, and why it fails.
"""
