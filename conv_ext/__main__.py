"""`python -m conv_ext demo | info`: the demo, and what this build is."""

from __future__ import annotations

import argparse
import platform
import sys

import torch

import conv_ext

from . import demo


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code (help and wrong usage exit by themselves, the latter with 2)."""
    text = "2-D convolution for PyTorch by three kernels of its own."
    parser = argparse.ArgumentParser(prog="python -m conv_ext", description=text)
    parser.add_argument("--version", action="version", version=conv_ext.__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    text = "train LeNet-5 on real images, once with torch's convolution and once with ours, and compare"
    demo.add_arguments(commands.add_parser("demo", help=text, description=_sentence(text)))
    text = "print what this build is made of and what it runs on"
    commands.add_parser("info", help=text, description=_sentence(text))

    options = parser.parse_args(arguments)
    if options.command == "demo":
        return demo.run(options)
    if options.command == "info":
        return info()
    parser.print_help()
    return 0


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def info() -> int:
    """Print the build information, one line for each entry."""
    running = {"conv_ext": conv_ext.__version__, "python": platform.python_version(), "torch": torch.__version__}
    print("running")
    _print_entries(running, 2)
    print("built")
    _print_entries(conv_ext.build_info(), 2)
    return 0


def _print_entries(entries: dict, indent: int) -> None:
    width = max((len(str(key)) for key in entries), default=0)
    for key, value in entries.items():
        if isinstance(value, dict):
            print(f"{'':{indent}}{key}")
            _print_entries(value, indent + 2)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{'':{indent}}{str(key):<{width}}  {shown}")


if __name__ == "__main__":
    sys.exit(main())
