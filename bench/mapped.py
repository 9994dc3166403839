"""`python -m bench mapped`: MappedConv2d against a dense convolution whose weight is masked, a training step each."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from bench import environment, report
from bench.network import distance
from conv_ext import timer

LIMIT = 1e-5  # the relative distance of outputs and gradients from those of the dense convolution
# name: input maps, output maps, fan-in (None: LeNet-5's table), output maps in a row that see the same, side of the
# input, kernel, padding, images
CASES = {
    "lenet5/c3": (6, 16, None, 1, 14, 5, 0, 64),
    "random 64 -> 64 of 4": (64, 64, 4, 1, 28, 3, 1, 16),
    "random 64 -> 64 of 16": (64, 64, 16, 1, 28, 3, 1, 16),
    "random 64 -> 64 of 16, 8 alike": (64, 64, 16, 8, 28, 3, 1, 16),
    "random 64 -> 64 of 4, 16 alike, 1x1": (64, 64, 4, 16, 28, 1, 0, 16),
    "random 256 -> 256 of 32": (256, 256, 32, 1, 14, 3, 1, 16),
    "random 256 -> 256 of 16, 4 alike": (256, 256, 16, 4, 14, 3, 1, 16),
    "one to one 128": (128, 128, 0, 1, 28, 3, 1, 16),
    "full 64 -> 64": (64, 64, 64, 1, 28, 3, 1, 16),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench mapped", allow_abbrev=False, description=__doc__,
        epilog="Both sides compute with conv_ext. The exit status is 1 where they differ.")
    parser.add_argument("--seconds", type=environment.seconds, default=2.0, help="time limit of one case")
    environment.add_common_options(parser)
    return parser.parse_args(arguments)


def table_of(c: int, k: int, fan_in: int | None, alike: int):
    import conv_ext
    from conv_ext.models.lenet import C3_TABLE

    if fan_in is None:
        return C3_TABLE
    if fan_in == 0:
        return conv_ext.ConnectionTable.one_to_one(c)
    if fan_in == c:
        return conv_ext.ConnectionTable.full(c, k)
    drawn = conv_ext.ConnectionTable.random(c, k // alike, fan_in, torch.Generator().manual_seed(0))
    return conv_ext.ConnectionTable([drawn.sources[i // alike] for i in range(k)], c)


def measure(name: str, seconds: float) -> dict:
    import conv_ext

    c, k, fan_in, alike, side, r, padding, n = CASES[name]
    table = table_of(c, k, fan_in, alike)
    torch.manual_seed(1)
    layer = conv_ext.MappedConv2d(table, r, padding=padding)
    x = torch.randn(n, c, side, side, requires_grad=True)
    dense = layer.dense_weight().detach().requires_grad_()
    mask = table.matrix()[:, :, None, None]
    bias = layer.bias.detach().clone().requires_grad_()
    g = torch.randn_like(layer(x))

    def mapped() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), g)]

    def masked() -> list[Tensor]:
        y = conv_ext.conv2d(x, dense * mask, bias, padding=padding)
        return [y, *torch.autograd.grad(y, (x, dense, bias), g)]

    found, expected = mapped(), masked()
    expected[2] = expected[2][table.matrix()]
    error = max(distance([a], [b]) for a, b in zip(found, expected))
    timing = timer.undisturbed({"mapped": mapped, "masked": masked}, seconds, torch.get_num_threads())
    return {
        "case": name, "way": "dense" if layer.dense else "groups",
        "connections": table.connections, "share": table.connections / (c * k), "error": error,
        "right": error <= LIMIT, "mapped_ms": timing.median("mapped") * 1e3, "masked_ms": timing.median("masked") * 1e3,
        "ratio": timing.ratio("masked", "mapped"), "spread": timing.spread("masked", "mapped"),
        "rounds": timing.rounds, "others": timing.others, "disturbed": timing.disturbed,
    }


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = {"command": "mapped", "machine": environment.machine()}
    result["cases"] = environment.collect(list(CASES), lambda name: measure(name, options.seconds), str)
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0 if all(row["right"] for row in result["cases"]) else 1
