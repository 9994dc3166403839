"""`python -m bench run`: layers by pass, dtype and layout against torch; verified first, then timed by turns."""

import argparse

import torch

from bench import environment, report, shapes

DEFAULT_SUITES = ["lenet5", "alexnet", "vgg16", "depthwise"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench run", description=__doc__)
    environment.add_case_options(parser, suites=DEFAULT_SUITES, only=[])
    parser.add_argument("--algorithm", default="auto", help="force one of our algorithms in every pass")
    parser.add_argument("--quick", action="store_true", help="a quarter of a second for each case instead of one")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (0.25 if options.quick else 1.0)
    return options


def measure(case, seconds: float) -> dict:
    """Judges both sides against float64, then times them; no time is given for a wrong result."""
    from bench import cases, timer

    o = cases.operands(case)
    functions = {"ours": cases.ours(case, o), "theirs": cases.theirs(case, o)}
    judge = cases.Judge(case, o)
    verdicts = {name: judge(function()) for name, function in functions.items()}
    del judge
    row = {
        **case.describe(),
        "right": verdicts["ours"].right,
        **{f"error_{name}": verdict.largest for name, verdict in verdicts.items()},
        **{f"rms_{name}": verdict.rms for name, verdict in verdicts.items()},
    }
    if row["right"]:
        timing = timer.undisturbed(functions, seconds, torch.get_num_threads())
        row |= {
            "ours_ms": timing.median("ours") * 1e3,
            "theirs_ms": timing.median("theirs") * 1e3,
            "ratio": timing.ratio("theirs", "ours"),
            "spread": timing.spread("theirs", "ours"),
            "rounds": timing.rounds,
            "others": timing.others,
            "disturbed": timing.disturbed,
            "ours_gflops": case.shape.flops / timing.median("ours") / 1e9,
            "theirs_gflops": case.shape.flops / timing.median("theirs") / 1e9,
        }
    return row


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = shapes.load(options.suite, options.only, options.batch)
    from bench import cases  # after the options: --help and a mistyped layer answer without a built extension

    import conv_ext

    todo = cases.cases(chosen, options.passes, options.dtype, options.layout, options.algorithm)
    result = {"command": "run", "machine": environment.machine()}
    with torch.no_grad(), conv_ext.algorithm(options.algorithm):
        result["cases"] = environment.collect(todo, lambda case: measure(case, options.seconds), lambda case: case.name)
    path = environment.save(result, options.out)
    print(report.text(result))
    wrong = sum(not row["right"] for row in result["cases"])
    print(f"\n{len(result['cases'])} of {len(todo)} cases, {wrong} wrong; written to {path}")
    return 1 if wrong or len(result["cases"]) < len(todo) else 0
