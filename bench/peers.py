"""What runs a network's forward pass: torch, torch compiled, onnxruntime, openvino, and ours, each in its own form.

A side is made of a model on torch's layers and an image batch, and is a function without arguments that computes the
scores; `Skipped` says why there is none. Peers are the extra `peers` of the package.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.cases import MEMORY_FORMATS

Forward = Callable[[], Tensor]


class Skipped(Exception):
    """Why a side is left out."""


@dataclass(frozen=True)
class Subject:
    """What every side computes: a model in float32 and eval mode on torch's layers, its images, and the threads.

    dtype: of the sides that compute with torch; the others get float32. folder: for what a side has to write.
    """

    model: nn.Module
    x: Tensor
    dtype: str
    threads: int
    folder: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    def in_layout(self, layout: str) -> tuple[nn.Module, Tensor]:
        """A copy of the model in the dtype and layout, and the images."""
        memory_format, dtype = MEMORY_FORMATS[layout], getattr(torch, self.dtype)
        return (copy.deepcopy(self.model).to(dtype=dtype, memory_format=memory_format),
                self.x.to(dtype).contiguous(memory_format=memory_format))


@dataclass(frozen=True)
class Side:
    """name: as tables have it. ours: one of conv_ext's. counts: whether aims compare ours with it."""

    name: str
    layout: str
    make: Callable[[Subject, str], Forward]
    ours: bool = False
    counts: bool = False
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    @property
    def label(self) -> str:
        return f"{self.name}, {self.layout}"


def _called(model: Callable, x: Tensor) -> Forward:
    return lambda: model(x)


def _eager(subject: Subject, layout: str) -> Forward:
    return _called(*subject.in_layout(layout))


def _frozen(model: nn.Module, x: Tensor) -> Forward:
    """Compiled by torch with its weights as constants, which lets it fold and pack them."""
    import torch._inductor.config as inductor

    # The setting itself and not an option of torch.compile, which is not set yet while Dynamo looks at parameters.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), inductor.patch(freezing=True):
        warnings.simplefilter("ignore")
        compiled = torch.compile(model)
        compiled(x)
    return _called(compiled, x)


def _compiled(subject: Subject, layout: str) -> Forward:
    return _frozen(*subject.in_layout(layout))


def _converted(subject: Subject, layout: str) -> Forward:
    import conv_ext

    model, x = subject.in_layout(layout)
    return _called(conv_ext.convert(model), x)


def _fused_model(subject: Subject, layout: str) -> tuple[nn.Module, Tensor]:
    import conv_ext

    _, x = subject.in_layout(layout)
    # Folded before it is rounded: a weight is rounded once.
    model = conv_ext.fuse(subject.model, memory_format=MEMORY_FORMATS[layout]).to(x.dtype)
    model(x)  # which packs the weights: compiled code packs none
    return model, x


def _fused(subject: Subject, layout: str) -> Forward:
    return _called(*_fused_model(subject, layout))


def _fused_compiled(subject: Subject, layout: str) -> Forward:
    return _frozen(*_fused_model(subject, layout))


def _need(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Skipped(f"{', '.join(missing)} not installed: pip install conv_ext[peers]")


def _exported(subject: Subject) -> str:
    """The path of the network as an ONNX file, which is made once and lives as long as the subject."""
    _need("onnx", "onnxscript")
    path = Path(subject.folder.name) / "network.onnx"
    if not path.exists():
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(subject.model, (subject.x,), path, dynamo=True, external_data=True, verbose=False)
    return str(path)


def _onnxruntime(subject: Subject, layout: str) -> Forward:
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = subject.threads
    # Threads that spin on after a call would take the cores from the side that is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(_exported(subject), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: subject.x.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def _openvino(precision: str) -> Callable[[Subject, str], Forward]:
    def make(subject: Subject, layout: str) -> Forward:
        _need("openvino")
        import openvino

        compiled = openvino.Core().compile_model(_exported(subject), "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": subject.threads})
        image = subject.x.numpy()
        return lambda: torch.from_numpy(compiled(image)[0])

    return make


SIDES = (
    *(Side("torch", layout, _eager) for layout in MEMORY_FORMATS),
    *(Side("torch, compiled, frozen", layout, _compiled, counts=True) for layout in MEMORY_FORMATS),
    Side("onnxruntime", "nchw", _onnxruntime, counts=True, dtypes=("float32",)),
    Side("openvino, f32", "nchw", _openvino("f32"), counts=True, dtypes=("float32",)),
    Side("openvino, bf16", "nchw", _openvino("bf16"), counts=True, dtypes=("bfloat16",)),
    *(Side("ours, converted", layout, _converted, ours=True) for layout in MEMORY_FORMATS),
    *(Side("ours, fused", layout, _fused, ours=True) for layout in MEMORY_FORMATS),
    *(Side("ours, fused, compiled", layout, _fused_compiled, ours=True) for layout in MEMORY_FORMATS),
)
GROUPS = {  # what an option names
    "torch": ("torch",), "compiled": ("torch, compiled, frozen", "ours, fused, compiled"),
    "onnxruntime": ("onnxruntime",), "openvino": ("openvino, f32", "openvino, bf16"),
    "ours": ("ours, converted", "ours, fused"),
}


def versions() -> dict[str, str]:
    """Of the peers that are there, for the head of a result."""
    found = {}
    for package in ("onnxruntime", "openvino", "timm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
