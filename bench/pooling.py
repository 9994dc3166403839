"""`python -m bench pooling`: torch's own pooling between convolutions, in both layouts."""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn

from bench import environment, report
from bench.fit import CLOCK
from bench.network import MEMORY_FORMATS
from bench.tables import geometric_mean, number, table
from conv_ext import timer

# (C, H and W, kernel, stride, padding): those of ResNet, VGG, AlexNet and GoogLeNet.
LAYERS = [(64, 112, 3, 2, 1), (64, 224, 2, 2, 0), (512, 28, 2, 2, 0), (192, 55, 3, 2, 0), (480, 14, 3, 1, 1)]
KINDS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def measure(item: tuple, seconds: float) -> dict:
    """Cycles of each element of a window, in each layout."""
    kind, (c, size, kernel, stride, padding) = item
    layer = KINDS[kind](kernel, stride, padding)
    images = {name: torch.randn(1, c, size, size).contiguous(memory_format=memory_format)
              for name, memory_format in MEMORY_FORMATS.items()}
    elements = layer(images["nchw"]).numel() * kernel ** 2
    functions = {name: lambda x=x: layer(x) for name, x in images.items()}
    timing = timer.undisturbed(functions, seconds, torch.get_num_threads(), prepare=lambda name: None)
    return {"kind": kind, "layer": f"{kernel}x{kernel} stride {stride}, {c} x {size} x {size}", "rounds": timing.rounds,
            "others": timing.others, "disturbed": timing.disturbed,
            **{name: statistics.median(timing.samples[name]) * CLOCK / elements for name in functions}}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench pooling", allow_abbrev=False, description=__doc__,
                                     epilog=f"One thread. Cycles are seconds at {CLOCK / 1e9} GHz, as those of `fit`.")
    parser.add_argument("--seconds", type=environment.seconds, default=2.0, help="time limit of one layer")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or 1)
    result = {"command": "pooling", "machine": environment.machine()}
    todo = [(kind, layer) for kind in KINDS for layer in LAYERS]
    with torch.no_grad():
        result["cases"] = environment.collect(todo, lambda item: measure(item, options.seconds), str)
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0


def text(result: dict) -> str:
    """A table, and the means of each kind."""
    layouts = list(MEMORY_FORMATS)
    lines = [[f"{row['kind']}, {row['layer']}", *(number(row[name]) for name in layouts)] for row in result["cases"]]
    for kind in KINDS:
        rows = [row for row in result["cases"] if row["kind"] == kind]
        if rows:
            lines.append([f"{kind}, mean", *(number(geometric_mean([row[name] for row in rows])) for name in layouts)])
    told = "Cycles of each element of a window of torch's pooling, which conv_ext/layouts.py counts."
    return "\n\n".join([report.machine_line(result["machine"]), told, table(["layer", *layouts], lines)])
