"""Every network by a name, with the size of its images: what the command line, the benchmark and the documents list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from .alexnet import alexnet, zfnet
from .convnet import cifar10_convnet, mnist_convnet
from .googlenet import googlenet
from .lenet import lenet5
from .mobilenet import mobilenet_v2
from .nin import nin
from .resnet import STAGES, resnet, resnext
from .vgg import Configuration, vgg

__all__ = ["NETWORKS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """A network: how it is made, and the images (C, H, W) that it is published for.

    `make` takes num_classes, in_channels, device and dtype. top5: the published top-5 error on ImageNet in per cent, of
    what its authors entered in the yearly challenge (the mean of several networks, on the test set), None where they
    entered another one. From O. Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 115 (3),
    2015 (entries that learned from no other images), and for ResNet from its paper.
    """

    make: Callable[..., nn.Module]
    image: tuple[int, int, int]
    paper: str
    top5: float | None = None


_VGG = "Simonyan and Zisserman, 2015"
_VGG_NAMES: dict[Configuration, str] = {
    "A": "vgg11",
    "A-LRN": "vgg11_lrn",
    "B": "vgg13",
    "C": "vgg16_c",
    "D": "vgg16",
    "E": "vgg19",
}

NETWORKS: dict[str, Entry] = {
    "lenet5": Entry(lenet5, (1, 32, 32), "LeCun, Bottou, Bengio and Haffner, 1998"),
    "mnist_convnet": Entry(mnist_convnet, (1, 28, 28), "Avrithis, 2018"),
    "cifar10_convnet": Entry(cifar10_convnet, (3, 32, 32), "Avrithis, 2018"),
    "alexnet": Entry(alexnet, (3, 227, 227), "Krizhevsky, Sutskever and Hinton, 2012, as CaffeNet", 16.4),
    "alexnet_groups": Entry(partial(alexnet, groups=2), (3, 227, 227), "the same in two groups"),
    "zfnet": Entry(zfnet, (3, 224, 224), "Zeiler and Fergus, 2014", 11.7),
    **{name: Entry(partial(vgg, configuration), (3, 224, 224), f"{_VGG}, {configuration}",
                   7.3 if configuration == "E" else None)
       for configuration, name in _VGG_NAMES.items()},
    "nin": Entry(nin, (3, 32, 32), "Lin, Chen and Yan, 2014"),
    "nin_imagenet": Entry(partial(nin, images="imagenet"), (3, 224, 224), "its authors' network for ImageNet"),
    "googlenet": Entry(googlenet, (3, 224, 224), "Szegedy et al., 2015", 6.7),
    **{f"resnet{n}": Entry(partial(resnet, n), (3, 224, 224), "He, Zhang, Ren and Sun, 2016",
                           3.57 if n == 152 else None) for n in STAGES},
    "resnext50_32x4d": Entry(resnext, (3, 224, 224), "Xie, Girshick, Dollár, Tu and He, 2017"),
    "mobilenet_v2": Entry(mobilenet_v2, (3, 224, 224), "Sandler, Howard, Zhu, Zhmoginov and Chen, 2018"),
}  # fmt: skip
