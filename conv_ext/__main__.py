"""`conv-ext bench | explain | demo | summary | visualize | info`, as `python -m conv_ext` too."""

from __future__ import annotations

import argparse
import errno
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import conv_ext

from . import _C, commands, demo, subjects
from .demo import look
from .models import NETWORKS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code (help and wrong usage exit by themselves, the latter with 2).

    Where the output cannot be written: 1, and 141 where what reads it has gone (`conv-ext summary vgg16 | head`), as
    of a program that SIGPIPE ends.
    """
    try:
        code = _run(arguments)
        print(end="", flush=True)
        return code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at Python's end fails once more
        if error.errno == errno.EPIPE:
            return 141
        print(f"conv_ext: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1


def _run(arguments: list[str] | None) -> int:
    text = "2-D convolution for PyTorch by three kernels of its own."
    called = "conv-ext" if Path(sys.argv[0]).stem == "conv-ext" else "python -m conv_ext"
    parser = argparse.ArgumentParser(prog=called, description=text)
    parser.add_argument("--version", action="version", version=conv_ext.__version__)
    parsers = parser.add_subparsers(dest="command", metavar="command")
    text = "measure whether a model is faster with our convolutions, and say what to do"
    commands.add_bench(parsers.add_parser("bench", help=text, description=_sentence(text)))
    text = "print which algorithm computes each convolution of a model, its work and its estimated cycles"
    commands.add_explain(parsers.add_parser("explain", help=text, description=_sentence(text)))
    text = "train a small network on real images with torch's convolution and with ours; or transfer one to new classes"
    demo.add_arguments(parsers.add_parser("demo", help=text, description=_sentence(text)))
    text = "print the layers of a network: parameters, operations, volumes, receptive fields, memory"
    _add_summary(parsers.add_parser("summary", help=text, description=_sentence(text)))
    text = "draw what a network has learned, what its units look for, or the kernel of a convolution on its way"
    look.add_arguments(parsers.add_parser("visualize", help=text, description=_sentence(text)))
    text = "print what this build is made of and what it runs on"
    parsers.add_parser("info", help=text, description=_sentence(text))

    options = parser.parse_args(arguments)
    if options.command == "bench":
        return commands.run_bench(options)
    if options.command == "explain":
        return commands.run_explain(options)
    if options.command == "demo":
        return demo.run(options)
    if options.command == "summary":
        return print_summary(options)
    if options.command == "visualize":
        return look.run(options)
    if options.command == "info":
        return info()
    parser.print_help()
    return 0


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _add_summary(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, commands.forms()
    add("model", metavar="MODEL", help="built-in name, timm:NAME or module:factory (see below)")
    text = "sizes of an image, behind their number where it is not one; CxL of a sequence"
    add("--input", type=_image, metavar="[Nx]CxHxW", help=f"{text} (default: what the network is made for)")
    text = "classes, of built-in networks and timm's (default: their own)"
    add("--classes", type=commands.size, metavar="N", help=text)
    add("--expand", action="store_true", help="a row for each layer inside an inception module")
    add("--markdown", action="store_true", help="a table in Markdown")


def _image(text: str) -> tuple[int, ...]:
    return commands.sizes(text, most=4, example="3x224x224")


def print_summary(options: argparse.Namespace) -> int:
    """Print the table of a network; 2 where there is none of that name, or it does not take such images."""
    given: tuple[int, ...] | None = options.input
    batch, image = (given[0], given[1:]) if given is not None and len(given) == 4 else (1, given)
    chosen = {} if options.classes is None else {"num_classes": options.classes}
    if image is not None and (options.model in NETWORKS or options.model.startswith("timm:")):
        chosen["in_channels"] = image[0]
    try:
        subject = subjects.load(options.model, device="meta", **chosen)
        image = image or subject.image
        if image is None:
            raise ValueError(f"what {options.model} is called with is not known: give --input, as 3x224x224")
        if not isinstance(subject.model, torch.nn.Module):
            raise ValueError(f"{options.model} is an exported program, in which there are no layers")
        found = conv_ext.summary(subject.model, image, batch=batch, expand=options.expand)
    except (RuntimeError, ValueError) as error:
        print(f"conv_ext summary: {str(error).removeprefix('summary: ')}", file=sys.stderr)
        return 2
    print(found.to_markdown() if options.markdown else found)
    return 0


def info() -> int:
    """Print the build information, one line for each entry."""
    running = {"conv_ext": conv_ext.__version__, "python": platform.python_version(), "torch": torch.__version__}
    print("running")
    _print_entries(running, 2)
    print("built")
    built = conv_ext.build_info()
    shown = dict(built)
    if not built["fast_road"]:
        shown["fast_road"] = f"no: {_C.WHY_NO_FAST_ROAD}"
    if not built["cuda"]:
        why = "" if torch.version.cuda else f", and torch {torch.__version__} is no CUDA build"
        shown["cuda"] = f"no{why}: docs/gpu.md says how to build with it"
        if built["cuda_version"]:
            theirs = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA build"
            shown["cuda"] = f"not loaded: for CUDA {built['cuda_version']}, and torch {torch.__version__} is {theirs}"
        shown["cuda_architectures"] = shown["cuda_architectures"] or "none"
    _print_entries(shown, 2)
    print("GPUs")
    _print_entries(gpus(built) or {"none": "torch sees no CUDA device"}, 2)
    return 0


def gpus(built: dict[str, Any]) -> dict[str, Any]:
    """What conv_ext does on each GPU: whether its kernels run there, and which algorithms a usual layer gets."""
    found = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(index)
        entries: dict[str, Any] = {"name": torch.cuda.get_device_name(index), "compute capability": f"{major}.{minor}"}
        if not built["cuda"]:
            theirs = built.get("cuda_version")
            entries["kernels"] = f"none: conv_ext was built {f'for CUDA {theirs}' if theirs else 'without CUDA'}"
        elif not runs_on(built["cuda_architectures"], major, minor):
            entries["kernels"] = f"none: build again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
        else:
            entries["kernels"] = "run here"
            entries["a layer of 64 channels, 56x56, 3x3"] = _algorithms(10 * major + minor)
        found[f"cuda:{index}"] = entries
    return found


def runs_on(architectures: list[str], major: int, minor: int) -> bool:
    """Whether code for those architectures (sm_80, sm_90a, compute_90) runs on a device of that capability.

    Machine code runs on its own major version from its minor one on, with an "a" on exactly its own; PTX on all later.
    """
    for architecture in architectures:
        kind, number = architecture.split("_")
        own = int(number.rstrip("af")[:-1]), int(number.rstrip("af")[-1])
        if number.endswith("a"):
            fits = own == (major, minor)
        elif kind == "compute":
            fits = own <= (major, minor)
        else:
            fits = own[0] == major and own[1] <= minor
        if fits:
            return True
    return False


def _algorithms(capability: int) -> dict[str, Any]:
    """What the plan chooses for each dtype: forward, input_grad, weight_grad."""
    found = {}
    geometry = (8, 64, 56, 56), (64, 64, 3, 3), (8, 64, 56, 56), (1, 1), (1, 1, 1, 1), (1, 1), 1
    for dtype, precision in (("float32", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee"), ("float64", "ieee")):
        plans = (
            _C.plan(name, dtype, *geometry, "auto", precision, False, capability)
            for name in ("forward", "input_grad", "weight_grad")
        )
        label = f"{dtype} {precision}" if dtype == "float32" else dtype
        found[label] = [plan["algorithm"] for plan in plans]
    return found


def _print_entries(entries: dict[str, Any], indent: int) -> None:
    width = max((len(str(key)) for key in entries), default=0)
    for key, value in entries.items():
        if isinstance(value, dict):
            print(f"{'':{indent}}{key}")
            _print_entries(value, indent + 2)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{'':{indent}}{key!s:<{width}}  {shown}")


if __name__ == "__main__":
    sys.exit(main())
