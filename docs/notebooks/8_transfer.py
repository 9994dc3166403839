# %% [markdown]
"""
# Notebook 8: Transfer

A network that has learned something brings it along to something else: its weights are loaded, its last layer is
replaced, what shall stay is frozen, the rest learns. Here a LeNet-5 that knows the digits 0 to 4 goes on to 5 to 9.
[transfer.md](../transfer.md) has the same for networks with torchvision's weights.
"""

# %%
import copy
import io
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from conv_ext import models, visualize
from conv_ext.demo.data import load_digits

images = load_digits()
known, new = images.of_classes((0, 1, 2, 3, 4)), images.of_classes((5, 6, 7, 8, 9))
len(known.train_labels), len(new.train_labels), len(new.test_labels)


# %%
def learn(net, images, steps, rate=0.05, seed=0):
    """Train what is not frozen for so many steps of 32 images; returns the share of test images that it gets right."""
    free = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(free, rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(steps):
        chosen = torch.randint(len(images.train_labels), (32,), generator=generator)
        x, labels = images.training_batch(chosen, generator)
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
        schedule.step()
    x, labels = images.test_batch(slice(0, None))
    net.eval()
    with torch.no_grad():
        return (net(x).argmax(1) == labels).double().mean().item()


torch.manual_seed(0)
base = models.lenet5(5, activation="relu", pooling="max")
print(f"digits 0 to 4: {100 * learn(base, known, 400):.1f} % right")

# %% [markdown]
"""
## Save and load

A state_dict is a dictionary of tensors. A file in its place, here in memory:
"""

# %%
file = io.BytesIO()
torch.save(base.state_dict(), file)
file.seek(0)
loaded = models.lenet5(5, activation="relu", pooling="max")
loaded.load_state_dict(torch.load(file))

# %% [markdown]
"""
## Replace the last layer, freeze the others

Everything but the last layer stays as it is: *feature extraction*. If the last three layers are free, it is
*fine-tuning*. And a third network starts with fresh weights.
"""


# %%
def started(free):
    """A copy of the loaded network with a fresh last layer, in which only these layers learn."""
    torch.manual_seed(1)
    net = copy.deepcopy(loaded)
    net.output = nn.Linear(net.output.in_features, 5)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in free)
    return net


def fresh():
    """A network that knows nothing."""
    torch.manual_seed(1)
    return models.lenet5(5, activation="relu", pooling="max")


ways = {
    "feature extraction": lambda: started(["output"]),
    "fine-tuning": lambda: started(["c5", "f6", "output"]),
    "from scratch": fresh,
}
sizes = [10, 25, 50, 100, 250]
found = {way: [learn(make(), new.first(size, seed=0), 60) for size in sizes] for way, make in ways.items()}
print("training images   " + "".join(f"{size:>8}" for size in sizes))
for way, accuracies in found.items():
    print(f"{way:<18}" + "".join(f"{100 * accuracy:7.1f}%" for accuracy in accuracies))

# %%
figure = visualize.new_figure(6.5, 3.4)
axes = figure.subplots()
for way, accuracies in found.items():
    axes.plot(sizes, [100 * accuracy for accuracy in accuracies], "o-", label=way)
axes.set_xscale("log")
axes.set_xticks(sizes, map(str, sizes))
axes.minorticks_off()
axes.set_xlabel("training images of the digits 5 to 9")
axes.set_ylabel("test accuracy, %")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
figure

# %% [markdown]
"""
One run each: several percent mean nothing (`python -m conv_ext demo transfer` takes the mean of three). Five digits
of 8 × 8 pixels teach little that five others could not, and the last layers have learned to tell 0 to 4 apart:
frozen, they are in the way. What transfer is for are features of a million photographs. What is saved is plain even
here:

## Kernels that do not run

Where weights are frozen their gradient is not computed, and where nothing below them learns, neither is the gradient
of the input. The profiler counts the kernels of one training step:
"""


# %%
def kernels(net):
    """How often each of the three kernels runs in one training step."""
    x, labels = new.test_batch(slice(0, 32))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.cross_entropy(net(x), labels).backward()
    counts = Counter()
    for event in profile.key_averages():
        if event.key.startswith("conv_ext::"):  # conv_ext::forward[direct]: the pass, and the algorithm
            counts[event.key.removeprefix("conv_ext::").split("[")[0]] += event.count
    return {name: counts[name] for name in ("forward", "input_grad", "weight_grad")}


for way, make in ways.items():
    print(f"{way:<18}", kernels(make()))

# %% [markdown]
"""
From scratch: three convolutions forward, three weight gradients, and two input gradients, since nobody asks for the
gradient of the image. With everything frozen but the last layer no gradient kernel runs at all.

## Features for another learner

If nothing before the last layer learns, each image needs to go through it once. What comes out are numbers that any
other method can take, of whichever layer: here scikit-learn's logistic regression and nearest neighbours, on 50
images.
"""

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier


def features(net, layer, x):
    """What a layer makes of images, a row of numbers for each."""
    kept = []
    handle = net.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        net.eval()(x)
    handle.remove()
    return kept[0].flatten(1).numpy()


few = new.first(50, seed=0)
x_train, x_test = few.standardised(few.train_images.float() / 255), new.test_batch(slice(0, None))[0]
numbers = {layer: (features(loaded, layer, x_train), features(loaded, layer, x_test)) for layer in ("s2", "s4", "f6")}
numbers = {"pixels": (x_train.flatten(1).numpy(), x_test.flatten(1).numpy()), **numbers}
print("                numbers  logistic regression  nearest neighbour")
for name, (train, test) in numbers.items():
    scores = []
    for method in (LogisticRegression(max_iter=2000), KNeighborsClassifier(1)):
        scores.append(100 * method.fit(train, few.train_labels.numpy()).score(test, new.test_labels.numpy()))
    print(f"{name:<12}{train.shape[1]:>11}{scores[0]:>19.1f} %{scores[1]:>17.1f} %")

# %% [markdown]
"""
The deeper the layer, the more it belongs to the old task.
"""

# %% [markdown]
"""
**To try:** more steps, and more images; the other way round, from 5 to 9 to 0 to 4.
"""
