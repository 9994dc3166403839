"""`python -m bench fused`: the forward pass of networks after conv_ext.fuse, against the same network without."""

from __future__ import annotations

import argparse
import copy
import itertools

import torch

from bench import environment, report
from bench.cases import MEMORY_FORMATS
from bench.network import ONE, distance, limit
from bench.networks import FOREIGN, NETWORKS, data, made, present
from conv_ext import timer
from conv_ext.subjects import settled


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench fused", allow_abbrev=False, description=__doc__,
        epilog="The exit status is 1 where scores of ours are further from float64's than a few times torch's own "
               "(the limit is that of `network`).")
    parser.add_argument("--network", nargs="+", choices=[*NETWORKS, *FOREIGN], default=["resnet50", "vgg16"],
                        metavar="NAME", help=f"of {', '.join([*NETWORKS, *FOREIGN])} (default: resnet50 vgg16)")
    parser.add_argument("--batch", nargs="+", type=environment.positive, default=[1], metavar="N",
                        help="images (default: 1)")
    parser.add_argument("--layout", nargs="+", choices=MEMORY_FORMATS, default=["nchw"], help="(default: nchw)")
    parser.add_argument("--seconds", type=environment.seconds, default=10.0, help="time limit of one network")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    options.network = present(options.network)
    return options


def measure(name: str, batch: int, layout: str, seconds: float) -> dict:
    """The network on torch's layers, on ours, ours fused, and fused with torch's epilogues, by turns.

    error: the largest of ours, relative to float64's scores; error_theirs: that of torch's layers.
    """
    import conv_ext

    memory_format = MEMORY_FORMATS[layout]
    x = data(name, batch)[0].contiguous(memory_format=memory_format)
    theirs = settled(made(name), x).to(memory_format=memory_format)
    with torch.no_grad():
        fused = conv_ext.fuse(theirs, x)
        apart = conv_ext.fuse(theirs, x, epilogues=False)
        reference = [copy.deepcopy(theirs).double()(x.double())]
        ours = conv_ext.convert(made(name).eval().to(memory_format=memory_format))
        ours.load_state_dict(theirs.state_dict())
        models = {"torch": theirs, "ours": ours, "fused": fused, "apart": apart}
        errors = {side: distance([model(x)], reference) for side, model in models.items()}
        of_torch = errors.pop("torch")
        most, error = limit(ONE, "ieee", of_torch, 0), max(errors.values())
        functions = {side: lambda model=model: model(x) for side, model in models.items()}
        timing = timer.undisturbed(functions, seconds, torch.get_num_threads())
    return {
        "network": name, "what": ONE, "n": batch, "layout": layout, "error": error, "error_theirs": of_torch,
        "limit": most, "right": error <= most,
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
