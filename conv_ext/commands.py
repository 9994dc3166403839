"""The commands that take a model by name: `conv-ext bench` and `conv-ext explain`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from . import subjects
from .benchmark import SECONDS, benchmark
from .convert import convert
from .explain import explain
from .fuse import fuse
from .model_plans import ModelExplanation
from .subjects import Subject, SubjectError

__all__ = ["add_bench", "add_explain", "forms", "run_bench", "run_explain", "sizes"]

_MOST = 2**31 - 1  # of any size
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def size(text: str) -> int:
    """A size as an option gives it."""
    if not text.isdecimal() or len(text) > 10 or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {_MOST}, got {text[:40]!r}")
    return int(text)


def sizes(text: str, most: int = 8, example: str = "1x3x224x224") -> tuple[int, ...]:
    """Sizes with an x between them, two of them at least."""
    try:
        found = tuple(map(size, text.lower().replace("×", "x").split("x")))
    except argparse.ArgumentTypeError:
        found = ()
    if not 2 <= len(found) <= most:
        raise argparse.ArgumentTypeError(
            f"must be sizes with an x between them, as {example}, each from 1 to {_MOST}, got {text[:40]!r}"
        )
    return found


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at most a day, got {text[:40]!r}")
    return value


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}" if not path.is_dir() else f"{path} is one")
    return path


def forms() -> str:
    """What may stand for MODEL, for a command's help."""
    return textwrap.fill(f"MODEL is {subjects.FORMS}.", 100)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = forms()
    add("model", metavar="MODEL", help="built-in name, timm:NAME, module:factory, or a .pt2 file (see below)")
    add("--input", type=sizes, metavar="NxCxHxW", help="sizes of the images, with their number (default: one image of "
        "the size that the network is made for; what the program was exported with)")  # fmt: skip
    add("--dtype", choices=_DTYPES, help="of the model and the images (default: float32)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--eval", action="store_true", help="inference: a forward in eval mode (default)")
    mode.add_argument("--train", action="store_true", help="a training step: forward and backward in training mode")
    add("--json", type=_file, metavar="FILE", help="write what was found there, too")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """The options of `conv-ext bench`."""
    _add_common(parser)
    add = parser.add_argument
    add("--compile", action="store_true", help="measure torch.compile, too, of torch's layers and of ours")
    add("--threads", type=size, metavar="N", help="threads of both sides (default: torch's own number)")
    add("--seconds", type=_seconds, default=SECONDS, metavar="S",
        help="for the whole model, and as long again for its layers (default: %(default)g)")  # fmt: skip
    add("--no-layers", action="store_true", help="leave the single layers out")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """The options of `conv-ext explain`."""
    _add_common(parser)
    parser.add_argument("--fuse", action="store_true", help="of the model that conv_ext.fuse makes, weights packed")


def _loaded(options: argparse.Namespace) -> tuple[Subject, tuple[Any, ...]]:
    """The model, in the mode and dtype that are wanted, and what it is called with."""
    subject = subjects.load(options.model)
    model = subject.model
    if isinstance(model, ExportedProgram):
        if options.dtype or options.train:
            raise SubjectError(f"{options.model} is an exported program: --dtype and --train are for models")
        if options.input:
            return subject, (torch.randn(options.input),)
        if not (subject.example and subject.example[0]):
            raise SubjectError(f"{options.model} has no example of its inputs: give --input")
        return subject, subject.example[0]
    if options.input is None and subject.image is None:
        raise SubjectError(f"what {options.model} is called with is not known: give --input, as 1x3x224x224")
    wanted: tuple[int, ...] = options.input or (1, *(subject.image or ()))
    if subject.image is not None and len(wanted) != 1 + len(subject.image):
        example = "x".join(map(str, (1, *subject.image)))
        raise SubjectError(
            f"{options.model} takes images, N x C x H x W: --input must be four sizes, as {example}, got "
            f"{'x'.join(map(str, wanted))}"
        )
    torch.manual_seed(0)
    images = torch.randn(wanted)
    made_here = subject.image is not None  # with random weights
    try:
        if made_here and not options.train:
            _settle(model, wanted, images)
        model.train(options.train)
        dtype = getattr(torch, options.dtype or "float32")
        model.to(dtype)
        return subject, (images.to(dtype),)
    except (RuntimeError, ValueError, TypeError) as error:
        raise SubjectError(_of_the_call(options.model, wanted, error)) from error


def _settle(model: nn.Module, wanted: tuple[int, ...], images: Tensor) -> None:
    """Running statistics by a trial with four images at least; what fails there fails with the wanted ones first."""
    try:
        subjects.settled(model, torch.randn(max(4, wanted[0]), *wanted[1:]))
    except (RuntimeError, ValueError, TypeError):
        with torch.no_grad():
            model.eval()(images)
        raise


def _of_the_call(name: str, shape: tuple[int, ...], error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{name} does not run with an input of {'x'.join(map(str, shape))}: {text}"


def run_bench(options: argparse.Namespace) -> int:
    """Measure a model; 2 where it cannot be made or called, 1 where results of ours are wrong."""
    try:
        subject, inputs = _loaded(options)
        found = benchmark(
            subject.model, inputs, train=options.train, compile=options.compile, threads=options.threads,
            seconds=options.seconds, layers=not options.no_layers, bar=True,
        )  # fmt: skip
    except SubjectError as error:
        return _refused("bench", str(error))
    except (RuntimeError, ValueError, TypeError) as error:
        shape = tuple(inputs[0].shape) if isinstance(inputs[0], Tensor) else ()
        return _refused("bench", _of_the_call(options.model, shape, error))
    except KeyboardInterrupt:
        print("\nconv_ext bench: stopped by Ctrl-C", file=sys.stderr)
        return 130
    print(found)
    if options.json and (status := _write("bench", options.json, {"name": subject.name, **found.to_dict()})):
        return status
    return int(any(row.ours and row.left.startswith("WRONG") for row in found.sides))


def _refused(command: str, text: str) -> int:
    print(f"conv_ext {command}: {text}", file=sys.stderr)
    return 2


def _write(command: str, path: Path, content: dict[str, Any]) -> int:
    try:
        path.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        return _refused(command, f"{path} cannot be written: {error.strerror}")
    return 0


def run_explain(options: argparse.Namespace) -> int:
    """Print the plans of a model's convolutions; 2 where it cannot be made or called."""
    try:
        subject, inputs = _loaded(options)
        model = subject.model
        if options.fuse and options.train:
            raise SubjectError("--fuse is for inference: leave --train out")
        if options.fuse or isinstance(model, ExportedProgram):  # whose convolutions are functions
            model = fuse(model, *inputs)
        assert isinstance(model, nn.Module)
        found = explain(convert(model), inputs)
    except SubjectError as error:
        return _refused("explain", str(error))
    except (RuntimeError, ValueError, TypeError) as error:
        return _refused("explain", _of_the_call(options.model, tuple(inputs[0].shape), error))
    print(found)
    return _write("explain", options.json, _plans(subject.name, found)) if options.json else 0


def _plans(name: str, found: object) -> dict[str, Any]:
    """An explanation as what JSON has."""
    assert isinstance(found, ModelExplanation)
    return {
        "name": name,
        "model": found.model,
        "cycles": found.cycles,
        "packed_bytes": found.packed_bytes,
        "left": dict(found.left),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "op": layer.op,
                "input": layer.input,
                "flops": layer.flops,
                "cycles": layer.cycles,
                "packed_bytes": layer.packed_bytes,
                **{which: layer.algorithms(which) for which in ("forward", "input_grad", "weight_grad")},
            }
            for layer in found.layers
        ],
    }
