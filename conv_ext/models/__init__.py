"""Networks of the literature, built from conv_ext's layers; docs/networks.md shows them."""

from .accuracy import topk
from .alexnet import AlexNet, ZFNet, alexnet, zfnet
from .catalogue import NETWORKS
from .convnet import ConvNet, cifar10_convnet, mnist_convnet
from .googlenet import GoogLeNet, GoogLeNetScores, Inception, googlenet
from .lenet import LeNet5, lenet5
from .mobilenet import InvertedResidual, MobileNetV2, mobilenet_v2
from .nin import NiN, nin
from .pooling import L2Pool, Maxout, TrainablePool2d
from .resnet import ResNet, resnet, resnext
from .vgg import VGG, vgg, vgg16, vgg19

__all__ = [
    "AlexNet",
    "ConvNet",
    "GoogLeNet",
    "GoogLeNetScores",
    "Inception",
    "InvertedResidual",
    "L2Pool",
    "LeNet5",
    "Maxout",
    "MobileNetV2",
    "NETWORKS",
    "NiN",
    "ResNet",
    "TrainablePool2d",
    "VGG",
    "ZFNet",
    "alexnet",
    "cifar10_convnet",
    "googlenet",
    "lenet5",
    "mnist_convnet",
    "mobilenet_v2",
    "nin",
    "resnet",
    "resnext",
    "topk",
    "vgg",
    "vgg16",
    "vgg19",
    "zfnet",
]
