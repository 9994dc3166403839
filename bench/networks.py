"""Whole networks: those of conv_ext.models on torch's own layers, which `python -m bench network` converts and times.

Without dropout, whose random choices would differ between the two sides.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conv_ext import models, revert


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    image: tuple[int, int, int]  # (C, H, W)
    classes: int
    batch: int  # of a training step


def _plain(make: Callable[..., nn.Module], **keywords) -> nn.Module:
    return _without_dropout(revert(make(**keywords)))


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _network(name: str, batch: int, **keywords) -> Network:
    entry = models.NETWORKS[name]
    classes = 10 if name in ("lenet5", "mnist_convnet", "cifar10_convnet", "nin") else 1000
    return Network(partial(_plain, entry.make, num_classes=classes, **keywords), entry.image, classes, batch)


NETWORKS = {
    "lenet5": _network("lenet5", 64, connections="full", pooling="average"),  # torch has no layer for the paper's table
    **{name: _network(name, batch) for name, batch in {
        "mnist_convnet": 64, "cifar10_convnet": 64, "alexnet": 16, "alexnet_groups": 16, "zfnet": 8, "vgg11": 4,
        "vgg11_lrn": 4, "vgg13": 4, "vgg16_c": 4, "vgg16": 4, "vgg19": 4, "nin": 32, "nin_imagenet": 16, "googlenet": 8,
        "resnet18": 8, "resnet34": 8, "resnet50": 8, "resnet101": 4, "resnet152": 4, "mobilenet_v2": 8,
    }.items()},
}


def _foreign(package: str, name: str, **keywords) -> nn.Module:
    """A network of another package, with random weights."""
    if package == "torchvision":
        return _without_dropout(getattr(importlib.import_module("torchvision.models"), name)(weights=None, **keywords))
    return _without_dropout(importlib.import_module("timm").create_model(name, pretrained=False, **keywords))


# Other people's networks, where their packages are installed.
FOREIGN = {
    f"{package}/{name}": Network(partial(_foreign, package, name), (3, 224, 224), 1000, 8)
    for package, names in {
        "torchvision": ("alexnet", "vgg16", "resnet50"),
        "timm": ("mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny", "convnext_atto", "resnext50_32x4d"),
    }.items()
    for name in names
}
GPU_IMAGES = 8  # a training step there has so many times the images


def missing(name: str) -> str | None:
    """The package that a network needs and this Python lacks."""
    package = name.split("/")[0] if name in FOREIGN else None
    return package if package and importlib.util.find_spec(package) is None else None


def present(names: list[str]) -> list[str]:
    """Those of the networks whose packages are installed; of the others standard error has a word."""
    for name in names:
        if package := missing(name):
            print(f"{name} is left out: {package} is not installed", file=sys.stderr)
    return [name for name in names if not missing(name)]


DEFAULT = ["lenet5", "mnist_convnet", "cifar10_convnet", "alexnet", "zfnet", "vgg16", "nin", "googlenet", "resnet50"]
GPU_DEFAULT = ["lenet5", "alexnet", "vgg16", "resnet50", *FOREIGN]


def made(name: str) -> nn.Module:
    """The network with the same weights at every call, in training mode."""
    torch.manual_seed(5)
    return network(name).make()


def network(name: str) -> Network:
    return NETWORKS[name] if name in NETWORKS else FOREIGN[name]


def data(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """x: (N, C, H, W) normally distributed, and the classes: (N); the same at every call."""
    wanted, generator = network(name), torch.Generator().manual_seed(6)
    x = torch.randn(batch, *wanted.image, generator=generator)
    return x, torch.randint(wanted.classes, (batch,), generator=generator)


def loss(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy; that of auxiliary classifiers counts 0.3 (Szegedy et al., 2015)."""
    found = model(x)
    if isinstance(found, Tensor):
        return F.cross_entropy(found, classes)
    return F.cross_entropy(found[0], classes) + 0.3 * sum(F.cross_entropy(each, classes) for each in found[1:])
