"""`conv-ext demo | summary | visualize | info`, as `python -m conv_ext` too: demos, tables, pictures, this build."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import conv_ext

from . import _C, demo
from .demo import look
from .models import NETWORKS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code (help and wrong usage exit by themselves, the latter with 2)."""
    text = "2-D convolution for PyTorch by three kernels of its own."
    called = "conv-ext" if Path(sys.argv[0]).stem == "conv-ext" else "python -m conv_ext"
    parser = argparse.ArgumentParser(prog=called, description=text)
    parser.add_argument("--version", action="version", version=conv_ext.__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    text = "train a small network on real images with torch's convolution and with ours; or transfer one to new classes"
    demo.add_arguments(commands.add_parser("demo", help=text, description=_sentence(text)))
    text = "print the layers of a network: parameters, operations, volumes, receptive fields, memory"
    _add_summary(commands.add_parser("summary", help=text, description=_sentence(text)))
    text = "draw what a network has learned, what its units look for, or the kernel of a convolution on its way"
    look.add_arguments(commands.add_parser("visualize", help=text, description=_sentence(text)))
    text = "print what this build is made of and what it runs on"
    commands.add_parser("info", help=text, description=_sentence(text))

    options = parser.parse_args(arguments)
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
    add("network", choices=tuple(NETWORKS), metavar="network", help=", ".join(NETWORKS))
    add("--input", type=_sizes, metavar="CxHxW", help="channels, height and width of an image (default: the paper's)")
    add("--classes", type=_size, metavar="N", help="classes (default: the network's own)")
    add("--expand", action="store_true", help="a row for each layer inside an inception module")
    add("--markdown", action="store_true", help="a table in Markdown")


_MOST = 2**31 - 1  # of any size: tables of larger networks have no meaning


def _size(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {_MOST}, got {text[:40]!r}")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().replace("×", "x").split("x")
    try:
        channels, height, width = map(_size, sizes)
        return channels, height, width
    except (ValueError, argparse.ArgumentTypeError):  # more or fewer than three, or no size
        raise argparse.ArgumentTypeError(
            f"must be channels x height x width, as 3x224x224, each from 1 to {_MOST}, got {text[:40]!r}"
        ) from None


def print_summary(options: argparse.Namespace) -> int:
    """Print the table of a network; 2 where it does not take such images."""
    entry = NETWORKS[options.network]
    image = options.input or entry.image
    classes = {} if options.classes is None else {"num_classes": options.classes}
    try:
        model = entry.make(in_channels=image[0], device="meta", **classes)
        found = conv_ext.summary(model, image, expand=options.expand)
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


def gpus(built: dict) -> dict:
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


def _algorithms(capability: int) -> dict:
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


def _print_entries(entries: dict, indent: int) -> None:
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
