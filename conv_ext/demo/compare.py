"""The demo: a small network learns real images twice from the same weights, by torch's convolution and by ours.

Start reading at `run`. Both networks go through the one class `Training`; only their convolution layers differ.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import conv_ext

from ..models import cifar10_convnet, lenet5, mnist_convnet
from .data import SIDE, DataError, Images, download, load_cifar10, load_digits, load_mnist
from .training import COMPARED_STEPS, Recipe, Training, accuracy, evaluate, largest_difference, same_bits

EPOCHS = {"digits": 20, "mnist": 5, "cifar10": 12}


@dataclass(frozen=True)
class Network:
    """What is trained: its title, how it is made of (classes, channels), the side of its images, and how it learns.

    compared_steps: how many of the first losses are held to DIFFERENCE_LIMIT.
    """

    title: str
    make: Callable[[int, int], nn.Module]
    side: int
    recipe: Recipe
    compared_steps: int = COMPARED_STEPS


# Batches, rate and decay of the two ConvNets are those of the lecture that they are from, which reports test errors of
# 1.2 % and 28 % for them; `--plain` has the rest of its recipe.
# Their large first weights magnify any rounding: torch's own losses move by 1e-3 within 14 steps when the weights are
# changed by one unit in the last place. In the first 4 steps it is 3e-7, and a gradient that is 1 % off moves them by
# 4e-4 or more.
_LECTURE = Recipe(batch_size=128, learning_rate=1e-2, momentum=0.0, weight_decay=1e-2)
NETWORKS = {
    "lenet5": Network("LeNet-5", partial(lenet5, connections="full", pooling="average"), 32, Recipe()),
    "mnist_convnet": Network("ConvNet", mnist_convnet, 28, _LECTURE, 4),
    "cifar10_convnet": Network("ConvNet", cifar10_convnet, 32, _LECTURE, 4),
}
DEFAULT_NETWORK = {"digits": "lenet5", "mnist": "mnist_convnet", "cifar10": "cifar10_convnet"}
# On the digits float32 rounding moves the first losses by 1e-7; a gradient 1 % off in one layer by 3e-4 or more.
DIFFERENCE_LIMIT = 1e-4
ACCURACY_GOAL = 0.98


class DemoError(Exception):
    """Why the demo cannot start or go on; the message is written for the user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the demo's options on `parser`."""
    defaults = ", ".join(f"{epochs} for {name}" for name, epochs in EPOCHS.items())
    cores = os.cpu_count() or 1
    add = parser.add_argument
    add(
        "what", nargs="?", choices=("compare", "transfer"), default="compare",
        help="compare: one network by both convolutions (the default); transfer: LeNet-5 goes on from the digits 0 to "
        "4 to 5 to 9, by feature extraction, by fine-tuning, and from scratch",
    )  # fmt: skip
    add("--data", choices=tuple(EPOCHS), default="digits", help="what to learn (default: digits, with scikit-learn)")
    text = ", ".join(f"{network} for {name}" for name, network in DEFAULT_NETWORK.items())
    add("--network", choices=tuple(NETWORKS), help=f"what learns (default: {text})")
    add("--root", type=Path, metavar="DIR", help="folder with the standard files of mnist or cifar10")
    add(
        "--download", action="store_true",
        help="fetch what is missing of them into --root first, with torchvision, which compares checksums",
    )  # fmt: skip
    add(
        "--plain", action="store_true",
        help="learn from the images as they are, at a fixed rate, with biases that do not decay (default: distorted "
        "images, a rate that falls to zero, decay of all parameters)",
    )  # fmt: skip
    add(
        "--validate", type=_integer(1, 10**6), metavar="N",
        help="hold N training images out: accuracies on the way are those of them, the test set's is found at the end",
    )  # fmt: skip
    add("--epochs", type=_integer(1, 10**6), metavar="N", help=f"passes over the training images (default: {defaults})")
    text = ", ".join(f"{network.recipe.batch_size} for {name}" for name, network in NETWORKS.items())
    add("--batch-size", type=_integer(1, 10**6), metavar="N", help=f"images per step (default: {text})")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--threads", type=_integer(1, 4 * cores), metavar="N", help="CPU threads (default: torch's own choice)")
    add(
        "--precision", choices=("ieee", "tf32", "bf16"), default="ieee",
        help="what both convolutions may do to float32; the losses are held to the limit with ieee (default: ieee)",
    )  # fmt: skip
    add("--seed", type=_integer(0, 2**63 - 1), default=0, metavar="N", help="weights and order of images (default: 0)")
    add("--out", type=Path, metavar="FILE", help="the picture, a .png (default: <network>_<data>.png in this folder)")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {value}")
        return value

    return parse


def run(options: argparse.Namespace) -> int:
    """The whole demo; returns the exit code: 0, 1 where a promise is not kept, 2 where it cannot run, 130 on Ctrl-C."""
    try:
        return _run(options)
    except (DataError, DemoError) as error:
        print(f"conv_ext demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nconv_ext demo: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.what == "transfer":
        return _transfer(options)
    options.network = options.network or DEFAULT_NETWORK[options.data]
    network = NETWORKS[options.network]
    device = _device(options.device)
    picture = _picture_path(options, f"{options.network}_{options.data}.png")
    _require("the demo", "tqdm", "matplotlib")
    if options.threads:
        torch.set_num_threads(options.threads)
    images = tested = _load(options, network)
    if options.validate is not None:
        if options.validate >= len(images.train_labels):
            most = len(images.train_labels) - 1  # of which one is left to learn from
            raise DemoError(f"--validate must be from 1 to {most:,} training images, got {options.validate:,}")
        images, tested = images.split(options.validate)
    epochs = options.epochs or EPOCHS[options.data]
    options.batch_size = options.batch_size or network.recipe.batch_size
    recipe = replace(network.recipe, batch_size=options.batch_size)
    if options.plain:
        recipe = recipe.plain()

    torch.manual_seed(options.seed)
    ours = network.make(len(images.classes), images.train_images.shape[1]).to(device)
    nets = {"torch": conv_ext.revert(copy.deepcopy(ours)), "conv_ext": ours}
    _check_kernels(ours, images, device)
    _announce(options, images, tested, ours, epochs, recipe, device)

    with _float32_precision(options.precision, device):
        how = {"epochs": epochs, "recipe": recipe, "seed": options.seed, "device": device}
        repeats = {name: Training(copy.deepcopy(net), images, **how) for name, net in nets.items()}
        trainings = {name: Training(net, images, **how) for name, net in nets.items()}
        _run_side_by_side(trainings)
        for repeat in repeats.values():
            while len(repeat.history.losses) < min(COMPARED_STEPS, epochs * repeat.steps):
                repeat.run_epoch(stop_after=COMPARED_STEPS)
        scores = evaluate(ours, tested, device)
        accuracies = {name: accuracy(scores if net is ours else evaluate(net, tested, device), tested)
                      for name, net in nets.items()}  # fmt: skip
    histories = {name: training.history for name, training in trainings.items()}
    repeated = {name: same_bits(histories[name], repeats[name].history) for name in nets}
    difference = largest_difference(*(histories[name].losses for name in nets), steps=network.compared_steps)
    kept = _report(options, histories, accuracies, repeated, difference)

    from .picture import draw

    _write(
        picture, draw(network.title, tested, ours, scores, histories, accuracies, difference, network.compared_steps)
    )
    return 0 if kept else 1


def _transfer(options: argparse.Namespace) -> int:
    """The other demo: from five classes to the other five."""
    if options.data == "cifar10" or options.network not in (None, "lenet5"):
        raise DemoError("transfer goes from digits to digits with LeNet-5: --data digits or --data mnist")
    if options.plain or options.validate is not None:
        raise DemoError("--plain and --validate go with the comparison, not with transfer")
    if options.batch_size is not None:
        raise DemoError(f"transfer takes {Recipe.batch_size} images per step: leave --batch-size out")
    device = _device(options.device)
    picture = _picture_path(options, f"transfer_{options.data}.png")
    _require("the demo", "tqdm", "matplotlib")
    if options.threads:
        torch.set_num_threads(options.threads)
    images = _load(options, NETWORKS["lenet5"])
    options.epochs = options.epochs or EPOCHS[options.data]
    _check_kernels(NETWORKS["lenet5"].make(10, 1).to(device), images, device)

    from . import transfer

    with _float32_precision(options.precision, device):
        found = transfer.run(options, images, device)
    _write(picture, transfer.draw(found))
    return 0


def _write(picture: Path, content: bytes) -> None:
    try:
        picture.write_bytes(content)
    except OSError as error:
        raise DemoError(f"cannot write {picture}: {error.strerror}") from error
    print(f"picture: {picture.resolve()}", flush=True)


def _report(
    options: argparse.Namespace, histories: dict[str, Any], accuracies: dict[str, float], repeated: dict[str, bool],
    difference: float,
) -> bool:  # fmt: skip
    """Print both runs side by side and what was promised of them; returns whether all of it was kept."""
    runs = list(histories.values())

    def row(label: str, values: list[str]) -> None:
        print(f"  {label:<26}" + "".join(f"{value:>14}" for value in values))

    print()
    row("", list(histories))
    if options.validate is not None:
        row("validation accuracy", [f"{100 * run.accuracies[-1]:.2f} %" for run in runs])
    row("test accuracy", [f"{100 * value:.2f} %" for value in accuracies.values()])
    row("last loss", [f"{run.losses[-1]:.5f}" for run in runs])
    row("time per epoch", [f"{run.seconds_per_epoch():.3f} s" for run in runs])
    row("same bits on repeating", ["yes" if same else "no" for same in repeated.values()])
    print()

    steps = min(NETWORKS[options.network].compared_steps, len(runs[0].losses))
    text = f"losses of the first {steps} steps: largest relative difference {difference:.1e}"
    kept = True
    if options.precision == "ieee":
        kept = difference < DIFFERENCE_LIMIT  # False for NaN
        verdict = "below" if kept else "NOT BELOW"
        print(f"{text}, {verdict} the limit of {DIFFERENCE_LIMIT:.0e}")
    else:
        print(f"{text} (no limit with --precision {options.precision})")

    found = accuracies["conv_ext"]
    promised = (options.data, options.network) == ("digits", "lenet5") and options.epochs in (None, EPOCHS["digits"])
    promised = promised and not options.plain and options.validate is None
    if promised and options.batch_size == Recipe.batch_size and found < ACCURACY_GOAL:
        kept = False
        print(f"test accuracy {100 * found:.2f} % is BELOW the goal of {100 * ACCURACY_GOAL:.0f} %")
    return kept


def _announce(
    options: argparse.Namespace, images: Images, tested: Images, net: nn.Module, epochs: int, recipe: Recipe,
    device: torch.device,
) -> None:  # fmt: skip
    parameters = sum(parameter.numel() for parameter in net.parameters())
    steps = math.ceil(len(images.train_labels) / options.batch_size)
    held = "" if options.validate is None else f"{options.validate:,} to validate, "
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(
        f"{NETWORKS[options.network].title} ({parameters:,} parameters) learns {images.title}, twice from the same "
        "weights\n"
        f"  {len(images.train_labels):,} images to train, {held}{len(tested.test_labels):,} to test; "
        f"{epochs} epochs of {steps:,} steps, {options.batch_size} images each; seed {options.seed}\n"
        f"  {recipe}\n"
        f"  {device}, {where}; float32 as {options.precision}; "
        f"torch {torch.__version__}, conv_ext {conv_ext.__version__}\n",
        flush=True,
    )


def _run_side_by_side(trainings: dict[str, Training]) -> None:
    """Run all trainings, taking turns after each epoch, so that a change in the machine's load meets both alike."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with contextlib.ExitStack() as bars:
        runs = []
        for position, (name, training) in enumerate(trainings.items()):
            bar = tqdm(
                total=training.epochs * training.steps,
                desc=f"{name:>8}",
                position=position if terminal else 0,  # a second line takes cursor movements, no good in a log file
                dynamic_ncols=True,
                mininterval=0.1 if terminal else 5,
                bar_format="{desc} |{bar}| {percentage:3.0f} % [{elapsed}<{remaining}]{postfix}",
            )
            runs.append((training, bars.enter_context(bar)))
        for _ in range(runs[0][0].epochs):
            for training, bar in runs:
                training.run_epoch(bar)


def _load(options: argparse.Namespace, network: Network) -> Images:
    if network.side != SIDE and options.data != "mnist":
        raise DemoError(f"--network {options.network} takes images of {network.side} x {network.side}: --data mnist")
    if options.data == "digits":
        given = [name for name in ("root", "download") if getattr(options, name)]
        if given:
            raise DemoError(f"--{given[0]} goes with --data mnist or --data cifar10; the digits come with scikit-learn")
        return load_digits()
    if options.root is not None and options.download:
        download(options.data, options.root)
    if options.root is None:
        raise DemoError(f"--data {options.data} needs --root DIR, the folder with its standard files")
    return load_mnist(options.root, network.side) if options.data == "mnist" else load_cifar10(options.root)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DemoError(f"--device must be cpu, cuda or cuda:N, got {text}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DemoError(f"--device {text}: torch {torch.__version__} finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DemoError(f"--device {text}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def _check_kernels(net: nn.Module, images: Images, device: torch.device) -> None:
    """One forward pass, before anything is printed: a build without kernels for the device says so here."""
    try:
        with torch.no_grad():
            net(images.test_batch(slice(0, 1))[0].to(device))
    except NotImplementedError as error:
        raise DemoError(f"--device {device}: {error}") from error


def _picture_path(options: argparse.Namespace, name: str) -> Path:
    path = options.out or Path(name)
    if path.suffix != ".png":
        raise DemoError(f"--out must name a .png file, got {path}")
    folder = path.parent
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise DemoError(f"--out: cannot write {path}: {getattr(error, 'strerror', error)}") from None
    if not folder.is_dir() or path.is_dir() or not os.access(path if exists else folder, os.W_OK):
        raise DemoError(f"--out: cannot write {path}: no such folder, or no permission")
    return path


def _require(what: str, *modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoError(f"{what} needs {' and '.join(missing)}: pip install 'conv_ext[demo]'")


@contextlib.contextmanager
def _float32_precision(value: str, device: torch.device) -> Iterator[None]:
    """Let both convolutions treat float32 as `value` says: ours by its own setting, torch's by its backend's."""
    backend = torch.backends.cudnn if device.type == "cuda" else torch.backends.mkldnn
    before = backend.conv.fp32_precision
    # cudnn knows no bf16; tf32 is the next it has.
    backend.conv.fp32_precision = "tf32" if device.type == "cuda" and value == "bf16" else value
    try:
        with conv_ext.precision(value):
            yield
    finally:
        backend.conv.fp32_precision = before
