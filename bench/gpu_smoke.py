"""`python -m bench.gpu_smoke`: every CUDA algorithm once on one layer of each class, judged against float64.

For a device on which little has run yet: each algorithm has a process of its own, so that one that fails (or hangs)
leaves the others alone. Times are of a few calls, to tell milliseconds from seconds.
"""

from __future__ import annotations

import subprocess
import sys

import torch

from bench import precision, shapes

DTYPES = (("float32", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee"), ("float16", "ieee"), ("float64", "ieee"))
IMAGES, CALLS = 4, 5
SECONDS = 90  # for one algorithm


def layers() -> list[shapes.Shape]:
    """One layer of each class, the first that the suites have, with few images."""
    firsts = {}
    for shape in shapes.load(["vgg16", "resnet50", "mobilenet", "resnext50", "googlenet"], batches=[IMAGES]):
        firsts.setdefault(shape.kind, shape)
    return list(firsts.values())


def algorithms() -> list[str]:
    """The names in the plan of CUDA."""
    from conv_ext import _C

    plan = _C.plan("forward", "float32", [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1], [0] * 4, [1, 1], 1,
                   capability=90)
    return [name for name, *_ in plan["candidates"]]


def milliseconds(function) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(CALLS):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def run(algorithm: str) -> int:
    """One line for each case that the algorithm computes; the number of those that were wrong."""
    import conv_ext
    from bench import cases

    wrong, declined = 0, []
    for dtype, allowed in DTYPES:
        todo = cases.cases(layers(), shapes.PASSES, [dtype], shapes.LAYOUTS, algorithm, [allowed], "cuda")
        for case in todo:
            o = cases.operands(case)
            with torch.no_grad(), precision.allowed(allowed, "cuda"), conv_ext.algorithm(algorithm):
                if reason := cases.declined(case, o):
                    declined.append(reason)
                    continue
                function = cases.ours(case, o)
                try:
                    verdict = cases.judge(case)(function(), allowed)
                    took = milliseconds(function)
                except RuntimeError as error:
                    wrong += 1
                    print(f"FAILED {algorithm} {case.name}: {str(error)[:300]}", flush=True)
                    if "CUDA" in str(error):  # such an error stays: nothing more runs in this process
                        return wrong
                    continue
            wrong += not verdict.right
            word = "ok   " if verdict.right else "WRONG"
            print(f"{word} {algorithm} {case.name}: error {verdict.largest:.3g}, {took:.3f} ms", flush=True)
    print(f"{algorithm}: {wrong} wrong; declined {len(declined)} ({'; '.join(sorted(set(declined)))})", flush=True)
    return wrong


def main(arguments: list[str]) -> int:
    if arguments:
        return 1 if run(arguments[0]) else 0
    failed = []
    for algorithm in algorithms():
        try:
            status = subprocess.run([sys.executable, "-m", "bench.gpu_smoke", algorithm], timeout=SECONDS).returncode
        except subprocess.TimeoutExpired:
            status = "a hang"
        if status:
            failed.append(f"{algorithm} ended with {status}")
    print("\n".join(failed) or "every algorithm gives right results on every class of layers")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
