# %% [markdown]
"""
# Notebook 7: Your own model

What changes when a model's convolutions become these: nothing in its results but rounding, and its speed. Put your
own model and your own input into the second cell, and run the rest.
"""

# %%
import copy

import torch
from torch import nn

import conv_ext

torch.manual_seed(0)
torch.set_num_threads(min(2, torch.get_num_threads()))

# %%
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
x = torch.randn(8, 3, 64, 64)

# %% [markdown]
"""
## Convert

Every convolution layer becomes ours, in place: parameters, hooks and the state_dict stay. The report says what was
changed, and what was left and why.
"""

# %%
ours = conv_ext.convert(copy.deepcopy(model), report=print)
assert list(ours.state_dict()) == list(model.state_dict())

# %% [markdown]
"""
Results and gradients are torch's but for the order of sums. In float64, where rounding is far from what a mistake
would be:
"""


# %%
def outputs(model):
    """The scores, and the gradients of all parameters for the sum of their squares."""
    model = copy.deepcopy(model).double().train()
    y = model(x.double())
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


distances = [((a - b).norm() / b.norm().clamp_min(1e-3)).item() for a, b in zip(outputs(ours), outputs(model))]
print(f"largest relative distance: {max(distances):.1e}")

# %% [markdown]
"""
And they are the same bits each time, for any number of threads, and for an image whatever batch it is in:
"""

# %%
ours.eval()
with torch.no_grad():
    y = ours(x)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    single = ours(x)
    torch.set_num_threads(before)
    convolution = ours[0]
    print(torch.equal(y, single), torch.equal(convolution(x)[3:4], convolution(x[3:4])))

# %% [markdown]
"""
## How fast

`benchmark` runs torch's layers, ours, and the fused model by turns, so that whatever else the machine does meets all of
them alike, compares every result with float64 first, and says what to do. A training step:
"""

# %%
print(conv_ext.benchmark(model, x, train=True, seconds=3, layers=False))

# %% [markdown]
"""
## For inference: pack and fuse

`pack` puts the weights into the kernels' own order once, where every call did it anew: the same bits, sooner. `fuse`
does that as well, folds batch normalisation into the convolution before it, and lets the kernel apply the ReLU as it
writes.
"""

# %%
plain, ours, one = copy.deepcopy(model).eval(), ours.eval(), x[:1]
packed = conv_ext.pack(copy.deepcopy(ours), one)
fused = conv_ext.fuse(copy.deepcopy(ours), one)
with torch.no_grad():
    assert torch.equal(packed(one), ours(one))
    torch.testing.assert_close(fused(one), plain(one), rtol=1e-3, atol=1e-4)
print(fused.report)

# %%
print(conv_ext.benchmark(model, one, seconds=3))

# %% [markdown]
"""
Where it says that other processes wanted the processor, measure again. The same from the command line, for any model
that a function makes: `conv-ext bench my_package.nets:make_net --input 1x3x64x64` ([faster.md](../faster.md)).
"""

# %% [markdown]
"""
## Why, layer by layer

`explain` says for a layer which algorithm computes it. `summary` has the operations of each layer, so that it is
plain where the time can go at all.
"""

# %%
conv_ext.summary(ours, (3, 64, 64))

# %%
print(conv_ext.explain(ours[8], torch.randn(8, 64, 32, 32)))

# %% [markdown]
"""
## Without changing the model

Code that calls `F.conv2d` by itself is reached by a block, and only in it:
"""

# %%
with conv_ext.override(), torch.no_grad():
    y = plain(x)
torch.testing.assert_close(y, ours(x).detach(), rtol=1e-3, atol=1e-4)
type(conv_ext.revert(copy.deepcopy(ours))[0]).__module__

# %% [markdown]
"""
**To try:** your own model; `compile=True` in `benchmark`; bfloat16; `python -m bench network`, which measures the
networks of the literature.
"""
