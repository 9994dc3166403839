# %% [markdown]
"""
# Notebook 5: From AlexNet to ResNet, in numbers

Between 2012 and 2015 the error of networks on ImageNet fell from 16 % to below 4 %. What changed can be counted:
layers, parameters, operations, how much of the image a unit sees. Nothing is trained here, and no weights are needed.
"""

# %%
import torch

import conv_ext
from conv_ext import models, visualize

NAMES = ["alexnet", "zfnet", "vgg16", "vgg19", "googlenet", "resnet18", "resnet50", "resnet152"]


def summary_of(name):
    """The table of a network, which is made without memory for its weights."""
    entry = models.NETWORKS[name]
    return conv_ext.summary(entry.make(in_channels=entry.image[0], device="meta"), entry.image)


found = {name: summary_of(name) for name in NAMES}
print("network       year  layers  M parameters  G operations  MiB  top-5 error, %")
for name, table in found.items():
    entry = models.NETWORKS[name]
    year = next(word.strip(",") for word in entry.paper.split() if word.strip(",").isdigit())
    millions, billions, mib = table.parameters / 1e6, table.operations / 1e9, table.bytes / 2**20
    error = "" if entry.top5 is None else entry.top5
    print(f"{name:<12}{year:>6}{table.weight_layers:>8}{millions:>14.1f}{billions:>14.2f}{mib:>5.0f}{error:>16}")

# %% [markdown]
"""
(An operation is a multiplication with an addition. The year is the paper's; the error the published one of what its
authors entered in the challenge, which is the mean of several such networks.)

Parameters and operations are not the same thing: VGG has the most of both, ResNet-50 a fifth of VGG-16's parameters
with a quarter of its operations, and more than three times as many layers.
"""

# %%
figure = visualize.new_figure(8, 4)
axes = figure.subplots()
for name, table in found.items():
    axes.scatter(table.parameters / 1e6, table.operations / 1e9, s=12 * table.weight_layers**0.8, alpha=0.6)
    axes.annotate(f"{name}, {table.weight_layers} layers", (table.parameters / 1e6, table.operations / 1e9),
                  xytext=(6, -13 if name == "googlenet" else 6), textcoords="offset points", fontsize=8)  # fmt: skip
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlim(5, 500)
axes.set_ylim(0.9, 40)
axes.set_xlabel("million parameters")
axes.set_ylabel("billion operations")
axes.grid(alpha=0.3)
figure

# %% [markdown]
"""
## Where they are

In AlexNet the parameters are in the full connections and the operations in the convolutions. Networks after it did
away with full connections.
"""


# %%
def shares(table):
    """Parameters and operations in full connections, of all."""
    rows = [row for row in table.rows if row.op.startswith("fc")]
    parameters, operations = (sum(getattr(row, what) for row in rows) for what in ("parameters", "operations"))
    return parameters / table.parameters, operations / table.operations


for name, table in found.items():
    parameters, operations = shares(table)
    print(f"{name:<12} full connections have {parameters:4.0%} of the parameters, {operations:4.0%} of the operations")

# %% [markdown]
"""
## Small kernels

Two layers of 3 × 3 see as much as one of 5 × 5, three as much as one of 7 × 7: with fewer parameters, and with
nonlinearities between them. That is VGG's idea.
"""

# %%
c = 256
for layers, size in ((1, 3), (2, 5), (3, 7)):
    print(f"{layers} × (3 × 3): {layers * 9 * c * c:>9,} weights    1 × ({size} × {size}): {size * size * c * c:>9,}")

# %% [markdown]
"""
How much of the image a unit sees, layer by layer. A stride multiplies what every later layer adds.
"""

# %%
figure = visualize.new_figure(8, 3.8)
axes = figure.subplots()
for name in ("alexnet", "vgg16", "googlenet", "resnet50"):
    fields = [row.receptive_field[0] for row in found[name].rows if row.receptive_field and row.volume]
    axes.plot(range(1, len(fields) + 1), fields, marker=".", label=name)
axes.axhline(224, color="#a8a29e", linestyle="--", linewidth=1)
axes.annotate("the image", (1, 224), xytext=(0, 4), textcoords="offset points", fontsize=8)
axes.set_xlabel("row of the table")
axes.set_ylabel("receptive field, pixels")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
figure

# %% [markdown]
"""
## 1 × 1 before 3 × 3

An inception module of GoogLeNet has branches of 1 × 1, 3 × 3 and 5 × 5. Its trick is to make the maps fewer, by a
layer of 1 × 1, before the large kernels come. Without that, the naive form:
"""

# %%
for inception in ("naive", "reduced"):
    table = conv_ext.summary(models.googlenet(inception=inception, device="meta"), (3, 224, 224))
    millions, billions = table.parameters / 1e6, table.operations / 1e9
    print(f"{inception}: {millions:.1f} million parameters, {billions:.2f} billion operations")

# %% [markdown]
"""
The bottleneck of ResNet-50 is the same thought: 256 → 64 by 1 × 1, 64 → 64 by 3 × 3, 64 → 256 by 1 × 1.
"""

# %%
bottleneck, plain = 256 * 64 + 9 * 64 * 64 + 64 * 256, 2 * 9 * 256 * 256
print(f"bottleneck {bottleneck:,} weights, two layers of 3 × 3 on 256 maps {plain:,}: {plain / bottleneck:.0f} times")

# %% [markdown]
"""
## Why depth needed a shortcut

A gradient goes back through every layer, and each multiplies it. In a plain stack of fifty layers, with weights as
torch makes them, next to nothing of it arrives at the first; with a shortcut around every layer there is a way back
that nothing multiplies. (There it grows, by what each layer adds; normalisation keeps that in bounds. Better first
weights and normalisation help the plain stack, too; [He et al.](https://arxiv.org/abs/1512.03385) found that it is
still harder to train.)
"""


# %%
def gradient_sizes(depth, shortcut):
    """The norm of the gradient at each layer's output, as a share of that at the last."""
    torch.manual_seed(0)
    layers = [conv_ext.Conv2d(16, 16, 3, padding=1, bias=False, dtype=torch.float64) for _ in range(depth)]
    x = torch.randn(4, 16, 16, 16, dtype=torch.float64)
    outputs = []
    for layer in layers:
        x = x + layer(x).relu() if shortcut else layer(x).relu()
        x.retain_grad()
        outputs.append(x)
    x.square().mean().backward()
    return [(y.grad.norm() / x.grad.norm()).item() for y in outputs]


figure = visualize.new_figure(7, 3.2)
axes = figure.subplots()
for shortcut, label in ((False, "plain"), (True, "with shortcuts")):
    axes.semilogy(range(1, 51), gradient_sizes(50, shortcut), label=label)
axes.set_xlabel("layer")
axes.set_ylabel("size of the gradient at its output")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
figure

# %% [markdown]
"""
## The whole table of one network
"""

# %%
found["resnet18"]

# %% [markdown]
"""
**To try:** `models.mobilenet_v2` and `models.resnext` in the table; the memory of `vgg16` for 448 × 448 pixels; which
layer of AlexNet has the most parameters. [networks.md](../networks.md) has all tables.
"""
