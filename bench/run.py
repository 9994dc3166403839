"""`python -m bench run`: layers by pass, dtype and layout against torch; verified first, then timed by turns."""

import argparse
import math
from pathlib import Path

import torch

from bench import compare, environment, gpu, peaks, precision, report, shapes

DEFAULT_SUITES = ["lenet5", "mnist", "cifar10", "alexnet", "alexnet_groups", "zfnet", "vgg16", "nin", "googlenet",
                  "resnet50", "mobilenet", "resnext50"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench run", allow_abbrev=False, description=__doc__,
        epilog="Ratios are torch's time over ours: above 1, ours is faster. The exit status is 1 where a result was "
               "wrong or a case is missing; a missed aim does not count.")
    environment.add_case_options(parser, suites=DEFAULT_SUITES, only=[])
    parser.add_argument("--algorithm", default="auto", help="force one of our algorithms in every pass")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="cuda: kernel times from CUDA events around replayed graphs, against cuDNN")
    parser.add_argument("--quick", action="store_true", help="a fifth of a second for each case instead of one")
    parser.add_argument("--compare", type=Path, metavar="OLD.json",
                        help="say at the end what got faster or slower since that result")
    parser.add_argument("--rows", action="store_true", help="print every case, however many there are")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        gpu.check(parser)
    options.seconds = options.seconds or (0.2 if options.quick else 1.0)
    return options


def measure(case, seconds: float) -> dict:
    """Judges both sides against float64, then times them; no time is given for a wrong result."""
    from bench import cases
    from conv_ext import timer

    on_gpu = case.device == "cuda"
    o = cases.operands(case)
    reason = cases.declined(case, o)
    if reason:
        return {**case.describe(), "right": True, "declined": reason}
    functions = {"ours": cases.ours(case, o), "theirs": cases.theirs(case, o)}
    with precision.allowed(case.precision, case.device) as torch_precision:
        judge, plan = cases.judge(case), cases.plan(case, o)
        verdicts = {name: judge(function(), case.precision) for name, function in functions.items()}
        row = {
            **case.describe(),
            "torch_precision": torch_precision,
            "ran": plan.algorithm if case.algorithm == "auto" else case.algorithm,
            "right": verdicts["ours"].right,
            "torch_right": verdicts["theirs"].right,
            **{f"error_{name}": verdict.largest for name, verdict in verdicts.items()},
            **{f"rms_{name}": verdict.rms for name, verdict in verdicts.items()},
        }
        if case.algorithm == "auto":  # beyond operands and result; the plan that was asked for is not a forced one's
            threads = max(1, min(plan.tasks, torch.get_num_threads()))
            row["extra_bytes"] = plan.workspace_bytes + plan.scratch_bytes * threads
        if row["right"]:
            timing = (gpu.alternate(functions, seconds) if on_gpu
                      else timer.undisturbed(functions, seconds, torch.get_num_threads()))
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
            if on_gpu:
                row["their_kernels"] = gpu.kernel_names(functions["theirs"])
    return row


def measure_on_gpu(case, seconds: float) -> dict:
    """`measure`, in which a call that fails costs its own case alone: a machine with a GPU may be lent for minutes."""
    try:
        return measure(case, seconds)
    except RuntimeError as error:
        torch.cuda.empty_cache()
        return {**case.describe(), "right": False, "error_ours": math.inf, "error_theirs": math.inf,
                "failed": str(error)[:300]}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = shapes.load(options.suite, options.only, options.batch)
    old = environment.load(options.compare) if options.compare else None
    if old:
        compare.check(old)
    import conv_ext
    from bench import cases  # after the options: --help and a mistyped layer answer without a built extension

    try:
        setting = conv_ext.algorithm(options.algorithm)
    except ValueError as error:
        raise SystemExit(f"--{error}") from None
    todo = cases.cases(chosen, options.passes, options.dtype, options.layout, options.algorithm, options.precision,
                       options.device)
    result = {"command": "run", "machine": environment.machine()}
    of_device = measure_on_gpu if options.device == "cuda" else measure
    if options.device == "cuda":
        result["machine"] |= {"gpu": gpu.name(), "peaks": {}}
    else:
        result["machine"]["peaks"] = peaks.measure(result["machine"]["isa"])
    with torch.no_grad(), setting:
        result["cases"] = environment.collect(
            todo, lambda case: of_device(case, options.seconds), lambda case: case.name
        )
    path = environment.save(result, options.out)
    print(report.text(environment.load(Path(path)), options.rows))
    if old:
        print("\n" + compare.text(old, result))
    wrong = sum(not row["right"] for row in result["cases"])
    print(f"\n{len(result['cases'])} of {len(todo)} cases, {wrong} wrong; written to {path}")
    return 1 if wrong or len(result["cases"]) < len(todo) else 0
