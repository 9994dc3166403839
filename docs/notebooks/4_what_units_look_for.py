# %% [markdown]
"""
# Notebook 4: What units look for

A network's first kernels can be looked at. Deeper ones cannot: they see other maps, no pixels. But a unit can be
asked: which images excite you most, what in them does, and what would you like to see?
"""

# %%
import torch

from conv_ext import models, visualize
from conv_ext.demo import transfer
from conv_ext.demo.data import load_digits

torch.manual_seed(0)
images = load_digits()
net = models.lenet5(activation="relu", pooling="max")
accuracy, _ = transfer.learn(net, images, steps=20 * 45, seed=0, device=torch.device("cpu"))
net.eval()
x, labels = images.test_batch(slice(0, None))
print(f"{100 * accuracy:.1f} % of the test images right")

# %% [markdown]
"""
## Kernels and maps

The first layer's kernels, and what they make of one image: strokes of one direction, edges of one side.
"""

# %%
visualize.filters(net)

# %%
visualize.feature_maps(net, "c1", x[5])

# %% [markdown]
"""
## The patches that excite a unit most

A unit of C3 sees 14 × 14 pixels, and nothing outside of them. For each of eight channels, the nine images with the
strongest answer, cut to the place that gave it (Zeiler and Fergus, 2014):
"""

# %%
visualize.top_patches(net, "c3", x, range(8))

# %% [markdown]
"""
## What in them does it

Everything but that one unit's activation is set to zero, and the way is gone back to the image: a convolution by its
input gradient, max pooling by the places where the maxima were, a ReLU by keeping what is positive.
"""

# %%
visualize.deconvnet(net, "c3", x, [0, 4, 6, 11])

# %% [markdown]
"""
## What would excite it more than any image

Start from noise and climb: the gradient of the unit by the *image*. Without some smoothing this finds noise that
excites the unit; the picture then says more about the network's weakness than about what it has learned.
"""

# %%
visualize.maximise(net, "c3", range(8), (1, 32, 32), bar=False)

# %%
limits = (x.min().item(), x.max().item())
visualize.maximise(net, "output", range(10), (1, 32, 32), blur=0.7, limits=limits, bar=False)

# %% [markdown]
"""
These ten get high scores, and no person would write them so. The network was asked to tell ten classes apart, not to
draw them.

## Where it looks

Cover a square of the image and see what the probability of the right class does: dark where the network needs what is
there.
"""

# %%
place = int((labels == 4).nonzero()[0])
visualize.occlusion(net, x[place], target=4, patch=7, stride=1, fill=float(x.min()))

# %% [markdown]
"""
**To try:** the same of an untrained network, whose patches are alike by chance; `"c1"`, `"c5"`; images of your own,
as a tensor (N, 1, 32, 32).
"""
