"""`python -m conv_ext demo transfer`: what a network that knows the digits 0 to 4 brings to learning 5 to 9.

Start reading at `run`. One LeNet-5 learns the first five classes. Then, for growing numbers of images of the other
five, three networks learn those with the same number of steps: with its layers frozen but the last, with its last
layers free, and from scratch.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import LeNet5, lenet5
from .data import Images
from .training import Recipe, Training, accuracy, evaluate

BASE_CLASSES, NEW_CLASSES = tuple(range(5)), tuple(range(5, 10))
COUNTS = (10, 25, 50, 100, 250, None)  # training images; None: all there are
STEPS = 50
REPEATS = 3  # other images, other order
# Of the two ways from a base: the layers that learn. The last one is fresh.
FREE = {"feature extraction": ("output",), "fine-tuning": ("c5", "f6", "output")}
WAYS = (*FREE, "from scratch")
PASSES = ("forward", "input_grad", "weight_grad")


def fresh(images: Images) -> LeNet5:
    """A LeNet-5 for the classes of `images`, its weights new."""
    return lenet5(len(images.classes), images.train_images.shape[1], connections="full", pooling="average")


def started(way: str, base: LeNet5, images: Images) -> LeNet5:
    """The network of one way: a copy of `base` with a fresh last layer and what is frozen frozen, or a fresh one."""
    if way == "from scratch":
        return fresh(images)
    net = copy.deepcopy(base).cpu()
    net.output = nn.Linear(net.output.in_features, len(images.classes))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in FREE[way])
    return net


def passes(net: nn.Module, images: Images, device: torch.device, batch: int = 32) -> dict[str, int]:
    """How often each of our three kernels runs in one training step, from torch.profiler."""
    x, labels = (part[:batch].to(device) for part in images.test_batch(slice(0, batch)))
    return counted(copy.deepcopy(net).to(device).train(), x, labels)


def counted(net: nn.Module, x: Tensor, labels: Tensor) -> dict[str, int]:
    """The same for these images and labels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.cross_entropy(net(x), labels).backward()
    counts: Counter[str] = Counter()
    for event in profile.key_averages():
        if event.key.startswith("conv_ext::"):  # conv_ext::forward[direct]: the pass, and which algorithm it took
            counts[event.key.removeprefix("conv_ext::").split("[")[0]] += event.count
    return {name: counts[name] for name in PASSES}


def learn(net: nn.Module, images: Images, steps: int, seed: int, device: torch.device) -> tuple[float, float]:
    """Train what of `net` is not frozen for `steps` steps; returns test accuracy and seconds."""
    net.to(device)
    free = [parameter for parameter in net.parameters() if parameter.requires_grad]
    recipe = Recipe()
    epochs = math.ceil(steps / math.ceil(len(images.train_labels) / recipe.batch_size))
    training = Training(net, images, epochs=epochs, recipe=recipe, seed=seed, device=device, parameters=free)
    begin = time.perf_counter()
    while len(training.history.losses) < steps:
        training.run_epoch(stop_after=steps, tested=False)
    seconds = time.perf_counter() - begin
    return accuracy(evaluate(net, images, device), images), seconds


def run(options: argparse.Namespace, images: Images, device: torch.device) -> dict[str, Any]:
    """Train, print both tables, and return what the picture shows; `images` are digits 0 to 9."""
    from tqdm import tqdm

    known, new = images.of_classes(BASE_CLASSES), images.of_classes(NEW_CLASSES)
    torch.manual_seed(options.seed)
    base = fresh(known)
    print(
        f"A LeNet-5 learns the digits 0 to 4 of {images.title}: {len(known.train_labels):,} images to train, "
        f"{len(known.test_labels):,} to test; {options.epochs} epochs, seed {options.seed}",
        flush=True,
    )
    steps = options.epochs * math.ceil(len(known.train_labels) / Recipe.batch_size)
    found, _ = learn(base, known, steps, options.seed, device)
    print(f"  test accuracy {100 * found:.2f} %\n", flush=True)

    sizes = sorted({min(count or len(new.train_labels), len(new.train_labels)) for count in COUNTS})
    accuracies: dict[str, dict[int, list[float]]] = {way: {size: [] for size in sizes} for way in WAYS}
    times = dict.fromkeys(WAYS, 0.0)
    jobs = [(size, repeat, way) for size in sizes for repeat in range(REPEATS) for way in WAYS]
    for size, repeat, way in tqdm(jobs, desc="digits 5 to 9", unit="run", dynamic_ncols=True):
        seed = options.seed + repeat
        torch.manual_seed(seed)
        net = started(way, base, new)
        found, seconds = learn(net, new.first(size, seed), STEPS, seed, device)
        accuracies[way][size].append(found)
        times[way] += seconds
    counts = {way: passes(started(way, base, new), new, device) for way in WAYS}
    _print(accuracies, counts, times, sizes, len(new.test_labels))
    return {"accuracies": accuracies, "counts": counts, "title": images.title}


def _print(
    accuracies: dict[str, Any], counts: dict[str, Any], times: dict[str, Any], sizes: list[int], tested: int
) -> None:
    print(f"\nThe digits 5 to 9, {STEPS} steps each: test accuracy on {tested:,} images, mean of {REPEATS} runs\n")

    def row(label: str, cells: list[str]) -> None:
        print(f"  {label:<20}" + "".join(f"{cell:>10}" for cell in cells))

    row("training images", [f"{size:,}" for size in sizes])
    for way in WAYS:
        row(way, [f"{100 * sum(accuracies[way][size]) / REPEATS:.1f} %" for size in sizes])
    print("\nOne training step: how often each kernel runs (by torch.profiler; frozen layers have no gradients)\n")
    print(f"  {'':<20}" + "".join(f"{name:>14}" for name in (*PASSES, "ms")))
    for way in WAYS:
        cells = [str(counts[way][name]) for name in PASSES]
        cells.append(f"{1000 * times[way] / (STEPS * REPEATS * len(sizes)):.2f}")
        print(f"  {way:<20}" + "".join(f"{cell:>14}" for cell in cells))
    print(flush=True)


def draw(found: dict[str, Any]) -> bytes:
    """The picture as a PNG file's bytes: accuracy against the number of training images."""
    from ..visualize import new_figure, png

    figure = new_figure(8, 5)
    axes = figure.subplots()
    colours = ("#c2410c", "#15803d", "#1d4ed8")
    for (way, by_size), colour in zip(found["accuracies"].items(), colours):
        sizes = list(by_size)
        means = [100 * sum(values) / len(values) for values in by_size.values()]
        axes.plot(sizes, means, "o-", color=colour, label=way)
        axes.fill_between(
            sizes, [100 * min(v) for v in by_size.values()], [100 * max(v) for v in by_size.values()], color=colour,
            alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training images of the digits 5 to 9")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"LeNet-5 from the digits 0 to 4 to 5 to 9\n({found['title']}; {STEPS} steps each)", fontsize=11)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
