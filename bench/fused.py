"""`python -m bench fused`: the forward pass of networks after conv_ext.fuse, against the same network without."""

from __future__ import annotations

import argparse
import itertools

import torch

from bench import environment, report
from bench.cases import MEMORY_FORMATS
from bench.network import ONE, distance
from bench.networks import NETWORKS, data, made
from conv_ext import timer
from conv_ext.subjects import settled

LIMIT = 1e-5  # of the scores' relative distance: folding rounds each weight once more


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench fused", allow_abbrev=False, description=__doc__,
        epilog="The exit status is 1 where the scores of the fused network are too far from those of the other.")
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=["resnet50", "vgg16"], metavar="NAME",
                        help=f"of {', '.join(NETWORKS)} (default: resnet50 vgg16)")
    parser.add_argument("--batch", nargs="+", type=environment.positive, default=[1], metavar="N",
                        help="images (default: 1)")
    parser.add_argument("--layout", nargs="+", choices=MEMORY_FORMATS, default=["nchw"], help="(default: nchw)")
    parser.add_argument("--seconds", type=environment.seconds, default=10.0, help="time limit of one network")
    environment.add_common_options(parser)
    return parser.parse_args(arguments)


def measure(name: str, batch: int, layout: str, seconds: float) -> dict:
    """The network on torch's layers, on ours, ours fused, and fused with torch's epilogues, by turns."""
    import conv_ext

    memory_format = MEMORY_FORMATS[layout]
    x = data(name, batch)[0].contiguous(memory_format=memory_format)
    theirs = settled(made(name), x).to(memory_format=memory_format)
    with torch.no_grad():
        fused = conv_ext.fuse(theirs)
        apart = conv_ext.fuse(theirs, epilogues=False)
        reference = theirs(x)
        ours = conv_ext.convert(made(name).eval().to(memory_format=memory_format))
        ours.load_state_dict(theirs.state_dict())
        error = distance([fused(x), apart(x)], [reference] * 2)
        functions = {"torch": lambda: theirs(x), "ours": lambda: ours(x), "fused": lambda: fused(x),
                     "apart": lambda: apart(x)}
        timing = timer.undisturbed(functions, seconds, torch.get_num_threads())
    return {
        "network": name, "what": ONE, "n": batch, "layout": layout, "error": error, "right": error <= LIMIT,
        **{f"{side}_ms": timing.median(side) * 1e3 for side in functions},
        "gain": timing.ratio("ours", "fused"), "ratio": timing.ratio("torch", "fused"),
        "epilogues": timing.ratio("apart", "fused"), "spread": timing.spread("apart", "fused"),
        "rounds": timing.rounds, "others": timing.others, "disturbed": timing.disturbed,
    }


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = {"command": "fused", "machine": environment.machine()}
    result["cases"] = environment.collect(
        list(itertools.product(options.network, options.batch, options.layout)),
        lambda case: measure(*case, options.seconds), lambda case: f"{case[0]}, {case[1]} images, {case[2]}")
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0 if all(row["right"] for row in result["cases"]) else 1
