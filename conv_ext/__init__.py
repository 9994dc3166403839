"""conv_ext: 2-D convolution for PyTorch as three kernels of its own, forward, input_grad and weight_grad.

``conv2d``, ``conv1d``, ``conv_transpose2d`` and ``conv_transpose1d`` stand in for those of ``torch.nn.functional``;
``Conv2d``, ``Conv1d``, ``ConvTranspose2d`` and ``ConvTranspose1d`` for the layers; ``convert(model)`` makes the layers
of an existing model ours.
"""

import importlib as _importlib
from typing import TYPE_CHECKING

from . import library as _library  # first: checks the build and loads the kernels

# isort: split
from . import flops as _flops
from . import ops as _ops
from . import sharding as _sharding
from ._version import __version__
from .benchmark import Benchmark, benchmark
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

if TYPE_CHECKING:
    from . import inductor, models, onnx, visualize

__all__ = [
    "Benchmark",
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
    "benchmark",
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

_LATER = ("inductor", "models", "onnx", "visualize")  # loaded when asked for: an import is not to pay for them

if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> object:
        if name in _LATER:
            return _importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
