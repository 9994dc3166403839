"""`python -m bench call`: what one call costs on tensors so small that the arithmetic hardly counts."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench import environment, report
from conv_ext import timer

LIMIT = 1.5  # ours may cost so many times torch's


@dataclass
class Line:
    what: str
    grad: bool
    make: Callable  # from a conv2d function, ours or torch's, to what is timed
    limit: float | None = None


def lines(bias: bool) -> list[Line]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, 5, 5, generator=generator)  # (N, C, H, W)
    w = torch.randn(2, 2, 3, 3, generator=generator)  # (K, C, R, S)
    g = torch.randn(1, 2, 3, 3, generator=generator)  # (N, K, P, Q)
    plain = [x, w, torch.randn(2, generator=generator)] if bias else [x, w]
    wanted = [tensor.clone().requires_grad_() for tensor in plain]
    end = ", bias" if bias else ""
    return [
        Line("no_grad" + end, False, lambda conv2d: lambda: conv2d(*plain), LIMIT),
        Line("no_grad, stride and padding" + end, False,
             lambda conv2d: lambda: conv2d(*plain, stride=(2, 1), padding=1), LIMIT),
        Line("with grad, forward" + end, True, lambda conv2d: lambda: conv2d(*wanted)),
        Line("with grad, forward + backward" + end, True,
             lambda conv2d: lambda: torch.autograd.grad(conv2d(*wanted), wanted, g), LIMIT),
    ]


def modules(bias: bool) -> tuple[Line, torch.nn.Module, torch.nn.Module]:
    import conv_ext

    theirs = torch.nn.Conv2d(2, 2, 3, bias=bias)
    our_module = conv_ext.Conv2d(2, 2, 3, bias=bias)
    our_module.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 2, 5, 5)
    line = Line("no_grad, the module" + (", bias" if bias else ""), False, lambda module: lambda: module(x))
    return line, our_module, theirs


def measure(line: Line, ours: Callable, theirs: Callable, seconds: float) -> dict:
    pair = {"ours": line.make(ours), "theirs": line.make(theirs)}
    with torch.set_grad_enabled(line.grad):
        torch.testing.assert_close(pair["ours"](), pair["theirs"]())
        timing = timer.undisturbed(pair, seconds, torch.get_num_threads())
    return {
        "what": line.what, "limit": line.limit, "rounds": timing.rounds,
        "others": timing.others, "disturbed": timing.disturbed,
        "ours_us": timing.median("ours") * 1e6, "theirs_us": timing.median("theirs") * 1e6,
        "cost": timing.ratio("ours", "theirs"), "spread": timing.spread("ours", "theirs"),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench call", allow_abbrev=False, description=__doc__)
    parser.add_argument("--seconds", type=environment.seconds, default=3.0, help="time limit of one line")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    import conv_ext

    todo = [(line, conv_ext.conv2d, F.conv2d) for bias in (False, True) for line in lines(bias)]
    todo += [modules(bias) for bias in (False, True)]
    result = {"command": "call", "machine": environment.machine()}
    result["cases"] = environment.collect(todo, lambda item: measure(*item, options.seconds), lambda item: item[0].what)
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0
