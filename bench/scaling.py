"""`python -m bench scaling`: one thread against several on large layers, by turns; are the bits the same?"""

import argparse

import torch

from bench import environment, precision, report, shapes
from conv_ext import timer

DEFAULT_SUITES = ["alexnet", "vgg16"]
DEFAULT_LAYERS = ["alexnet/conv[234]", "vgg16/conv?_2"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench scaling", allow_abbrev=False, description=__doc__)
    environment.add_case_options(parser, suites=DEFAULT_SUITES, only=DEFAULT_LAYERS)
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or 2.0
    options.threads = options.threads or torch.get_num_threads()
    if options.threads < 2:
        parser.error("there is nothing to compare with one thread; give --threads")
    return options


def measure(case, seconds: float, threads: int) -> dict:
    from bench import cases

    o = cases.operands(case)
    sides = {"ours": cases.ours(case, o), "theirs": cases.theirs(case, o)}
    counts = (1, threads)

    def bits(side: str, count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        return sides[side]()

    with precision.allowed(case.precision):
        same = {side: torch.equal(bits(side, 1), bits(side, threads)) for side in sides}
        functions = {f"{side} {count}": sides[side] for side in sides for count in counts}
        timing = timer.undisturbed(functions, seconds, threads,
                                   prepare=lambda name: torch.set_num_threads(int(name.split()[1])))
    row = {**case.describe(), "rounds": timing.rounds, "others": timing.others, "disturbed": timing.disturbed}
    for side in sides:
        one, many = (f"{side} {count}" for count in counts)
        row |= {f"{side}_ms": [timing.median(one) * 1e3, timing.median(many) * 1e3], f"{side}_same_bits": same[side],
                f"{side}_scaling": timing.ratio(one, many), f"{side}_spread": timing.spread(one, many)}
    return row


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    chosen = shapes.load(options.suite, options.only, options.batch)
    torch.set_num_threads(options.threads)
    from bench import cases

    todo = cases.cases(chosen, options.passes, options.dtype, options.layout, "auto", options.precision)
    result = {"command": "scaling", "machine": environment.machine()}
    with torch.no_grad():
        result["cases"] = environment.collect(
            todo, lambda case: measure(case, options.seconds, options.threads), lambda case: case.name)
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\nwritten to {path}")
    return 0 if all(row["ours_same_bits"] for row in result["cases"]) else 1
