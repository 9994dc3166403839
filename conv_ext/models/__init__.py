"""Networks built from conv_ext's layers."""

from .lenet import LeNet5, lenet5

__all__ = ["LeNet5", "lenet5"]
