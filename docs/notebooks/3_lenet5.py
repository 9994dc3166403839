# %% [markdown]
"""
# Notebook 3: LeNet-5, with its table of connections

The network of LeCun, Bottou, Bengio and Haffner (1998), in the paper's form: 60 of the 96 possible connections
between its second and third layer, pooling that learns a gain and a bias. It learns handwritten digits here, in a
plain loop.
"""

# %%
import torch
import torch.nn.functional as F

import conv_ext
from conv_ext import models, visualize
from conv_ext.demo.data import load_digits

torch.manual_seed(0)
net = models.lenet5()
conv_ext.summary(net, (1, 32, 32))

# %% [markdown]
"""
Where do 156 parameters come from? Six kernels of 5 × 5, each with a bias. And 1,516 in C3: the table has 60
connections of 25 taps, and 16 biases. A full table would have 2,416.
"""

# %%
table = net.c3.table
print(table)
for c in range(table.in_channels):
    print(f"input map {c}: " + " ".join("X" if c in row else "." for row in table.sources))
6 * 25 + 6, table.connections * 25 + 16, 96 * 25 + 16

# %% [markdown]
"""
The first six output maps see three neighbouring inputs, the next six four neighbours, three more four that are not
neighbours, the last one all. The paper's reasons: fewer connections, and outputs that are forced to be different,
since they see different things.

A layer with a table can be computed by groups of maps that see the same, or as a dense convolution with zeros where
nothing connects. What is less work need not be less time: for this table the layer takes the dense way.
"""

# %%
net.c3

# %% [markdown]
"""
## Learning

scikit-learn carries 1,797 digits of 8 × 8, here scaled to 32 × 32. Stochastic gradient descent with momentum and a
little weight decay, a rate that falls along a cosine, images that are distorted by a few pixels.
"""

# %%
images = load_digits()
generator = torch.Generator().manual_seed(0)
epochs, batch = 12, 32
steps = epochs * -(-len(images.train_labels) // batch)
optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
losses = []
for _ in range(epochs):
    for indices in torch.randperm(len(images.train_labels), generator=generator).split(batch):
        x, labels = images.training_batch(indices, generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())

# %%
figure = visualize.new_figure(7, 2.8)
axes = figure.subplots()
axes.semilogy(losses, color="#d4d4d4", linewidth=0.8)
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(1)
axes.semilogy(range(19, len(losses)), smooth, color="#c2410c")
axes.set_xlabel("step")
axes.set_ylabel("loss")
figure

# %%
net.eval()
x, labels = images.test_batch(slice(0, None))
with torch.no_grad():
    scores = net(x)
found = scores.argmax(1)
print(f"{100 * (found == labels).double().mean():.2f} % of {len(labels)} test images")

# %% [markdown]
"""
The ones that it gets wrong are worth a look:
"""

# %%
wrong = (found != labels).nonzero().flatten().tolist()[:10]
figure = visualize.new_figure(1.2 * max(len(wrong), 1), 1.6)
for axes, index in zip(figure.subplots(1, max(len(wrong), 1), squeeze=False)[0], wrong):
    axes.imshow(images.test_images[index, 0], cmap="gray")
    axes.set_title(f"{labels[index]}, read as {found[index]}", fontsize=8)
    visualize.bare(axes)
figure

# %% [markdown]
"""
## What it has learned

The six kernels of the first layer, and those of C3, with gaps where the table has no connection:
"""

# %%
visualize.filters(net)

# %%
visualize.filters(net.c3, columns=2)

# %% [markdown]
"""
## Images of any size

The full connections of a network are convolutions whose kernels cover their input. Written so, the network slides
over a larger image and gives a map of scores: every window of 32 × 32, four positions apart, in one pass, and its
inner layers computed once for all of them.
"""

# %%
sliding = models.lenet5(dense="conv")
sliding.load_state_dict(net.state_dict())  # the weights of full connections take their new shape by themselves
sliding.eval()
row = images.test_images[[0, 1, 2, 4]][:, 0]
wide = images.standardised(torch.cat(list(row), dim=1)[None, None].float() / 255)
with torch.no_grad():
    scores = sliding(wide)
scores.shape

# %%
figure = visualize.new_figure(9, 3.4)
top, below = figure.subplots(2, 1)
top.imshow(wide[0, 0], cmap="gray")
visualize.bare(top)
below.imshow(scores[0, :, 0].softmax(0), cmap="OrRd", aspect="auto")
below.set_yticks(range(10))
below.set_xlabel("window")
below.set_ylabel("class")
figure

# %% [markdown]
"""
At windows 0, 8, 16 and 24 the four digits are in the middle, and the network says which they are. Between them it
sees halves of two digits, which it has never been shown.

**To try:** `lenet5(connections="full")` and its accuracy; `activation="relu", pooling="max"`; other seeds.
"""
