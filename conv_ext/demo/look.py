"""`python -m conv_ext visualize`: a network learns images, and one picture of conv_ext.visualize is drawn of it.

Or the kernel of a convolution goes its way, for which nothing is learned.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import visualize
from ..models import cifar10_convnet, lenet5, mnist_convnet
from .compare import DemoError, Network, _integer, _load, _require
from .data import DataError, Images
from .training import Recipe, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What learns each set of images, and the layer that is looked at unless another is named.
_DIGITS = Network("LeNet-5 with ReLU", partial(lenet5, activation="relu", pooling="max"), 32, Recipe())
_OTHER = Recipe(batch_size=128, learning_rate=1e-2, momentum=0.9)
NETWORKS = {
    "digits": (_DIGITS, "c3"),
    "mnist": (Network("ConvNet", mnist_convnet, 28, _OTHER), "features.3"),
    "cifar10": (Network("ConvNet", cifar10_convnet, 32, _OTHER), "features.3"),
}
OF_UNITS = ("top_patches", "deconvnet", "maximise")
PICTURES = ("filters", "feature_maps", "occlusion", *OF_UNITS)
WORDS = ("valid", "same", "full", "same_strided")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the command's options on `parser`."""
    add = parser.add_argument
    add("what", choices=(*PICTURES, "convolution"), metavar="what",
        help="filters, feature_maps, occlusion; what units look for: top_patches (of images), deconvnet (and what in "
             "them), maximise (images made for them); convolution: the kernel on its way")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="a .png; of convolution also a .gif or .html, the animation, while a "
        ".png is some of its frames (default: <what>.png, convolution.gif)")  # fmt: skip
    add(
        "--seed",
        type=_integer(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of all that is drawn at random (default: 0)",
    )
    group = parser.add_argument_group("a network")
    add = group.add_argument
    add("--data", choices=tuple(NETWORKS), default="digits", help="what it learns (default: digits, with scikit-learn)")
    add("--root", type=Path, metavar="DIR", help="folder with the standard files of mnist or cifar10")
    add("--epochs", type=_integer(1, 10**6), default=5, metavar="N", help="passes over the images (default: 5)")
    add("--weights", type=Path, metavar="FILE", help="a state_dict to begin with in place of learning (torch.save)")
    add("--layer", metavar="NAME", help="of all but occlusion: the layer (default: c3 of LeNet-5, features.3 of the "
        "others; of filters the first)")  # fmt: skip
    add("--channel", type=_channels, metavar="N[,N…]", help="of what units look for: the layer's channels (default: "
        "the first four)")  # fmt: skip
    add("--image", type=_integer(0, 10**6), default=0, metavar="N", help="of feature_maps and occlusion: which test "
        "image (default: 0)")  # fmt: skip
    add("--count", type=_integer(1, 10**4), default=9, metavar="N", help="of top_patches and deconvnet: patches for "
        "each channel (default: 9)")  # fmt: skip
    group = parser.add_argument_group("a convolution of small whole numbers")
    add = group.add_argument
    add("--size", type=_pair, default=(4, 4), metavar="HxW", help="of the input (default: 4x4)")
    add("--kernel", type=_pair, default=(2, 2), metavar="RxS", help="of the kernel (default: 2x2)")
    add("--stride", type=_integer(1, 64), default=1, metavar="N")
    add("--padding", type=_padding, default=0, metavar="N", help=f"a number, or {', '.join(WORDS)} (default: 0)")
    add("--dilation", type=_integer(1, 64), default=1, metavar="N")
    add("--pass", choices=("forward", "input_grad", "weight_grad"), default="forward", dest="of",
        help="which of the three (default: forward)")  # fmt: skip
    add("--seconds", type=_seconds, default=0.6, metavar="S", help="for each frame (default: 0.6)")


def _channels(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers from 0 with commas between them, got {text[:40]!r}")
    return [int(part) for part in parts]


def _pair(text: str) -> tuple[int, int]:
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= len(part) <= 2 and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be rows x columns, as 4x5, each from 1 to 99, got {text[:40]!r}")
    return int(parts[0]), int(parts[1])


def _padding(text: str) -> int | str:
    if text in WORDS:
        return text
    if not text.isdecimal() or len(text) > 2:
        raise argparse.ArgumentTypeError(f"must be from 0 to 99 or one of {', '.join(WORDS)}, got {text[:40]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.02 <= value <= 60:
        raise argparse.ArgumentTypeError(f"must be from 0.02 to 60, got {text[:40]!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Draw; returns the exit code: 0, 2 where it cannot be done, 130 on Ctrl-C."""
    try:
        path = _path(options)
        learns = options.what != "convolution" and options.weights is None
        _require("visualize", *(["tqdm"] if learns else []), "matplotlib")
        torch.manual_seed(options.seed)
        _convolution(options, path) if options.what == "convolution" else _picture(options, path)
    except (DataError, DemoError) as error:
        print(f"conv_ext visualize: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nconv_ext visualize: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        return 130
    print(f"picture: {path.resolve()}")
    return 0


def _path(options: argparse.Namespace) -> Path:
    moving = options.what == "convolution"
    path = options.out or Path(f"{options.what}.{'gif' if moving else 'png'}")
    endings = (".gif", ".html", ".png") if moving else (".png",)
    if path.suffix not in endings:
        raise DemoError(f"--out must name a file of {' or '.join(endings)}, got {path}")
    try:
        fits = path.parent.is_dir() and not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
    except (OSError, ValueError) as error:  # a name that no file can have
        raise DemoError(f"--out: cannot write {path}: {getattr(error, 'strerror', error)}") from None
    if not fits:
        raise DemoError(f"--out: cannot write {path}: no such folder, or no permission")
    return path


def _convolution(options: argparse.Namespace, path: Path) -> None:
    x, w = (torch.randint(-2, 4, size).float() for size in (options.size, options.kernel))
    if len(x) == len(w) == 1:
        x, w = x[0], w[0]  # a row is padded at its ends alone
    try:
        sliding = visualize.convolution(x, w, options.stride, options.padding, options.dilation)
        if options.of != "forward":
            g = torch.randint(-1, 3, sliding.result.shape).float()  # (1, Q) of a row
            geometry = options.stride, options.padding, options.dilation
            sliding = visualize.convolution(x, w, *geometry, of=options.of, g=g)
    except (RuntimeError, ValueError) as error:
        raise DemoError(str(error)) from error
    if path.suffix == ".png":
        _write(path, lambda: path.write_bytes(visualize.png(sliding.strip())))
    else:
        _write(path, lambda: sliding.save(path, options.seconds))


def _picture(options: argparse.Namespace, path: Path) -> None:
    network, layer = NETWORKS[options.data]
    images = _load(
        argparse.Namespace(network=network.title, data=options.data, root=options.root, download=False), network
    )
    net = network.make(len(images.classes), images.train_images.shape[1])
    x, _ = images.test_batch(slice(0, 2000))
    _check(net, x, options, options.layer or layer)  # before the network learns, which takes a while
    _learn(net, images, network, options) if options.weights is None else _weights(net, options.weights)
    try:
        figure = _drawn(net.eval(), x, options, options.layer or layer)
    except (RuntimeError, TypeError, ValueError) as error:  # no such channel, a layer without filters
        raise DemoError(str(error)) from error
    _write(path, lambda: path.write_bytes(visualize.png(figure)))


def _write(path: Path, writing: Callable[[], object]) -> None:
    try:
        writing()
    except OSError as error:
        raise DemoError(f"cannot write {path}: {error.strerror or error}") from error


def _check(net: nn.Module, x: Tensor, options: argparse.Namespace, layer: str) -> None:
    if options.image >= len(x):
        raise DemoError(f"--image must be from 0 to {len(x) - 1}, got {options.image}")
    names = [name for name, _ in net.named_modules() if name]
    if options.layer is not None and options.layer not in names:
        raise DemoError(f"--layer: the model has no layer {options.layer!r}; it has {', '.join(names)}")
    try:  # the same of one image, for what is wrong with layer and channels
        if options.what in OF_UNITS:
            visualize.find_patches(net.eval(), layer, x[:1], _of(options), 1, bar=False)
        else:
            _drawn(net.eval(), x, options, layer)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DemoError(str(error)) from error


def _of(options: argparse.Namespace) -> list[int]:
    """The channels."""
    return options.channel or list(range(4))


def _drawn(net: nn.Module, x: Tensor, options: argparse.Namespace, layer: str) -> Figure:
    image = x[options.image]
    if options.what == "filters":
        return visualize.filters(net if options.layer is None else net.get_submodule(layer))
    if options.what == "feature_maps":
        return visualize.feature_maps(net, layer, image)
    if options.what == "occlusion":
        return visualize.occlusion(net, image, fill=x.min().item())
    channels = _of(options)
    if options.what == "maximise":
        return visualize.maximise(net, layer, channels, tuple(image.shape), seed=options.seed)
    draw = visualize.top_patches if options.what == "top_patches" else visualize.deconvnet
    return draw(net, layer, x, channels, options.count)


def _learn(net: nn.Module, images: Images, network: Network, options: argparse.Namespace) -> None:
    from tqdm import tqdm

    how = {"epochs": options.epochs, "recipe": network.recipe, "seed": options.seed, "device": torch.device("cpu")}
    training = Training(net, images, **how)
    with tqdm(total=training.epochs * training.steps, desc=f"{network.title} learns", dynamic_ncols=True) as bar:
        for _ in range(training.epochs):
            training.run_epoch(bar)
    print(f"{network.title} on {images.title}: test accuracy {100 * training.history.accuracies[-1]:.2f} %")


def _weights(net: nn.Module, path: Path) -> None:
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch has many for files that are none of its
        raise DemoError(f"--weights: {path} has no weights of this network: {str(error).splitlines()[0]}") from error
