"""`python -m bench parts`: where the time of a fused network goes: convolutions, pooling, the classifier, the rest."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from bench import environment, report
from bench.cases import MEMORY_FORMATS
from bench.networks import FOREIGN, NETWORKS, data, made, present
from bench.tables import number, table
from conv_ext import patterns, timer
from conv_ext.subjects import settled

CONVOLUTION, POOLING, LINEAR, ACTIVATION, SUM, REST = KINDS = (
    "convolutions", "pooling", "linear layers", "activations", "sums", "rest")  # fmt: skip


def kind(node: Node, modules: patterns.Modules) -> str:
    """Of which kind a node of a fused network is."""
    module = modules[node.target] if node.op == "call_module" else None
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    if type(module).__module__.startswith("conv_ext."):
        return CONVOLUTION
    if "pool" in name.lower() or name == "mean":  # a mean over an image is the pooling before a classifier
        return POOLING
    if isinstance(module, nn.Linear) or name in ("linear", "addmm"):
        return LINEAR
    if patterns.activation(node, modules) or type(module).__module__ == nn.modules.activation.__name__:
        return ACTIVATION
    if node.op == "call_function" and node.target in patterns.OTHER_ACTIVATIONS:
        return ACTIVATION
    return SUM if patterns.addends(node) else REST


class Clock(Interpreter):
    """Runs a graph node by node, and counts the seconds of each kind."""

    def __init__(self, fused: GraphModule):
        super().__init__(fused)
        modules = dict(fused.named_modules())
        self.kinds = {node: kind(node, modules) for node in fused.graph.nodes}
        self.seconds: dict[str, float] = {}
        self.kind = REST  # of the node that runs

    def run(self, *inputs: Any, **options: Any) -> Any:
        self.seconds = defaultdict(float)
        return super().run(*inputs, **options)

    def run_node(self, n: Node) -> Any:
        self.kind = self.kinds[n]
        return super().run_node(n)

    def timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """A call alone, without what the interpreter does around it."""
        start = time.perf_counter()
        result = call(*arguments)
        self.seconds[self.kind] += time.perf_counter() - start
        return result

    def call_module(self, *arguments: Any) -> Any:
        return self.timed(super().call_module, *arguments)

    def call_function(self, *arguments: Any) -> Any:
        return self.timed(super().call_function, *arguments)

    def call_method(self, *arguments: Any) -> Any:
        return self.timed(super().call_method, *arguments)


def measure(name: str, batch: int, layout: str, epilogues: bool, seconds: float) -> dict:
    """Medians over calls of a network that `fuse` has packed and laid out; once unmeasured before."""
    import conv_ext

    x = data(name, batch)[0]
    with torch.no_grad():
        fused = conv_ext.fuse(settled(made(name), x), x, epilogues=epilogues, memory_format=MEMORY_FORMATS[layout])
        if not isinstance(fused, GraphModule):
            raise ValueError(f"{name} has no graph whose parts could be timed: torch.fx cannot trace the whole")
        x, clock = x.contiguous(memory_format=MEMORY_FORMATS[layout]), Clock(fused)
        clock.run(x)
        samples: dict[str, list[float]] = {each: [] for each in KINDS}
        others, begin = timer.Others(), time.perf_counter()
        while time.perf_counter() - begin < seconds or len(samples[REST]) < timer.MIN_ROUNDS:
            clock.run(x)
            for each in KINDS:
                samples[each].append(clock.seconds.get(each, 0.0))
        busy = others.cores()
    return {"network": name, "n": batch, "layout": layout, "epilogues": epilogues, "rounds": len(samples[REST]),
            "others": busy, "disturbed": timer.disturbs(busy, torch.get_num_threads()),
            "ms": {each: statistics.median(times) * 1e3 for each, times in samples.items()}}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench parts", allow_abbrev=False, description=__doc__,
        epilog="Every call in the graph is timed by itself; what Python does between them is left out.")
    parser.add_argument("--network", nargs="+", choices=[*NETWORKS, *FOREIGN], default=["resnet18", "vgg16"],
                        metavar="NAME", help=f"of {', '.join([*NETWORKS, *FOREIGN])} (default: resnet18 vgg16)")
    parser.add_argument("--batch", nargs="+", type=environment.positive, default=[1], metavar="N",
                        help="images (default: 1)")
    parser.add_argument("--layout", nargs="+", choices=MEMORY_FORMATS, default=list(MEMORY_FORMATS))
    parser.add_argument("--no-epilogues", dest="epilogues", action="store_false",
                        help="sums and activations beyond ReLU are torch's, behind the layers, and so have shares")
    parser.add_argument("--seconds", type=environment.seconds, default=5.0, help="time limit of one network")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.network = present(options.network)
    result = {"command": "parts", "machine": environment.machine()}
    result["cases"] = environment.collect(
        list(itertools.product(options.network, options.batch, options.layout)),
        lambda case: measure(*case, options.epilogues, options.seconds),
        lambda case: f"{case[0]}, {case[1]} images, {case[2]}")
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0


def text(result: dict) -> str:
    """A row for each network: milliseconds, and the share of each kind."""
    lines = []
    for row in result["cases"]:
        whole = sum(row["ms"].values())
        lines.append([row["network"], row["n"], row["layout"], "yes" if row["epilogues"] else "no", number(whole),
                      *(f"{row['ms'][each] / whole:.1%}" for each in KINDS), "yes" if row["disturbed"] else ""])
    head = ["network", "images", "layout", "epilogues", "ms", *KINDS, "disturbed"]
    return "\n\n".join([report.machine_line(result["machine"]), table(head, lines)])
