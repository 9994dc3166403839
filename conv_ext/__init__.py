"""conv_ext: 2-D convolution for PyTorch as three kernels of its own, forward, input_grad and weight_grad.

``conv2d``, ``conv1d``, ``conv_transpose2d`` and ``conv_transpose1d`` stand in for those of ``torch.nn.functional``;
``Conv2d``, ``Conv1d``, ``ConvTranspose2d`` and ``ConvTranspose1d`` for the layers; ``convert(model)`` makes the layers
of an existing model ours.
"""

import importlib as _importlib

from . import library as _library  # first: checks the build and loads the kernels

# isort: split
from . import flops as _flops
from . import ops as _ops
from . import visualize
from ._version import __version__
from .convert import convert, override, revert
from .explain import explain
from .functional import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from .fuse import fuse
from .library import build_info
from .mapped import ConnectionTable, MappedConv2d
from .modules import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from .packed import PackedConv2d, pack, unpack
from .settings import algorithm, precision
from .summary import Summary, summary

__all__ = [
    "ConnectionTable",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "MappedConv2d",
    "PackedConv2d",
    "Summary",
    "__version__",
    "algorithm",
    "build_info",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "convert",
    "explain",
    "fuse",
    "override",
    "pack",
    "precision",
    "revert",
    "summary",
    "unpack",
    "visualize",
]


def __getattr__(name: str):
    if name in ("inductor", "models"):  # loaded when they are asked for: an import of conv_ext is not to pay for them
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "inductor", "models"})
