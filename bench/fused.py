"""`python -m bench fused`: the forward pass of networks after conv_ext.fuse, against the same network without."""

from __future__ import annotations

import argparse

import torch

from bench import environment, report
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
    parser.add_argument("--batch", type=environment.positive, default=1, help="images (default: 1)")
    parser.add_argument("--seconds", type=environment.seconds, default=10.0, help="time limit of one network")
    environment.add_common_options(parser)
    return parser.parse_args(arguments)


def measure(name: str, batch: int, seconds: float) -> dict:
    """The network on torch's layers, on ours, and ours fused, by turns."""
    import conv_ext

    x, _ = data(name, batch)
    theirs = settled(made(name), x)
    with torch.no_grad():
        fused = conv_ext.fuse(theirs)
        reference = theirs(x)
        ours = conv_ext.convert(made(name).eval())
        ours.load_state_dict(theirs.state_dict())
        error = distance([fused(x)], [reference])
        functions = {"torch": lambda: theirs(x), "ours": lambda: ours(x), "fused": lambda: fused(x)}
        timing = timer.undisturbed(functions, seconds, torch.get_num_threads())
    return {
        "network": name, "what": ONE, "n": batch, "error": error, "right": error <= LIMIT,
        **{f"{side}_ms": timing.median(side) * 1e3 for side in functions},
        "gain": timing.ratio("ours", "fused"), "ratio": timing.ratio("torch", "fused"),
        "spread": timing.spread("ours", "fused"), "rounds": timing.rounds, "others": timing.others,
        "disturbed": timing.disturbed,
    }


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = {"command": "fused", "machine": environment.machine()}
    result["cases"] = environment.collect(
        options.network, lambda name: measure(name, options.batch, options.seconds), str)
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0 if all(row["right"] for row in result["cases"]) else 1
