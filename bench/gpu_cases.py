"""`python -m bench.gpu_cases`: measures cases on a GPU against cuDNN, one line of standard input after the other.

A case is a line of key=value, its answer a line of its own: "right: {the row of the bench as JSON} | the case".
bench/gpu_check.py asks, ends what hangs, and keeps every answer as it comes.
"""

from __future__ import annotations

import json
import sys

from bench import aims, shapes
from bench.shapes import PASSES

SECONDS = 0.08  # of timing for one case
IMAGES = {"bfloat16": 128, "float16": 128}  # of a call; 64 of wider numbers
# Of 40 layers those that tell most: large and small 3x3, 1x1 that widen and narrow, one strided.
FIRST = ("vgg16/conv3_2 resnet50/3b/3x3 resnet50/2a/1x1_out resnet50/4b/1x1_in vgg16/conv4_2 resnet50/4b/3x3 "
         "vgg16/conv1_2 resnet50/2b/1x1_in vgg16/conv5_1 resnet50/4a/3x3 vgg16/conv2_2 resnet50/5b/3x3").split()
DEPTHWISE = "mobilenet/dw3 mobilenet/dw7 mobilenet/dw2 mobilenet/dw5 depthwise/5x5_240 depthwise/7x7_96".split()
FIRST_LAYERS = "resnet50/conv1 vgg16/conv1_1 mobilenet/conv1".split()
GROUPED = "resnext50/2/3x3 resnext50/4b/3x3 resnext50/3b/3x3 resnext50/5b/3x3".split()
OTHERS = ("resnet50/3a/3x3 resnet50/3a/shortcut resnet50/3a/1x1_out resnet50/5b/1x1_in alexnet/conv2 "
          "googlenet/3a/5x5 resnet50/2a/3x3 resnet50/5a/3x3 resnet50/5a/1x1_out vgg16/conv3_1 vgg16/conv4_1 "
          "resnet50/3a/1x1_in resnet50/4a/1x1_out alexnet/conv3 googlenet/4e/5x5").split()
BFLOAT16, IEEE, TF32 = ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")
CEILINGS = ("copy", "bfloat16", "tf32", "float32", "float64")


def case_line(layer: str, pass_name: str, kind: tuple[str, str], layout: str = "channels_last",
              algorithm: str = "auto", n: int | None = None) -> str:
    return (f"layer={layer} n={n or IMAGES.get(kind[0], 64)} pass={pass_name} dtype={kind[0]} precision={kind[1]} "
            f"layout={layout} algorithm={algorithm}")


def lines() -> list[str]:
    """All cases, the most telling first."""
    found: list[str] = []

    def add(layers: list[str], kinds: tuple, layout: str = "channels_last", n: int | None = None) -> None:
        # What the plan does not choose, but could, where it is the one for this device.
        found.extend(case_line(layer, pass_name, kind, layout, algorithm, n) for layer in layers for kind in kinds
                     for pass_name in PASSES for algorithm in ("auto", "wgmma")
                     if algorithm == "auto" or layer in (*FIRST, *OTHERS) and kind[0] != "float64")

    add(FIRST, (BFLOAT16, IEEE))
    add(DEPTHWISE, (IEEE, BFLOAT16))
    add(FIRST, (TF32,))
    add(FIRST_LAYERS, (BFLOAT16, IEEE))
    add(GROUPED, (BFLOAT16, IEEE))
    add(FIRST, (BFLOAT16, IEEE), "nchw")
    add(OTHERS, (BFLOAT16, IEEE))
    add(FIRST[:6], (BFLOAT16, IEEE), n=8)
    add(FIRST[:6], (BFLOAT16, IEEE), n=1)
    add(FIRST[:4], (("float64", "ieee"),))
    add([*DEPTHWISE, *GROUPED, *FIRST_LAYERS], (IEEE, BFLOAT16), "nchw")
    add(FIRST[:6], (("float16", "ieee"),))
    add(FIRST, (TF32,), "nchw")
    add(OTHERS, (TF32,))
    add(OTHERS, (BFLOAT16, IEEE), "nchw")
    return found


def ceilings() -> list[str]:
    return ["machine", *(f"ceiling={name}" for name in CEILINGS)]


def read(line: str):
    """The case of a line."""
    from bench import cases

    words = dict(word.split("=", 1) for word in line.split())
    suite = words["layer"].split("/")[0]
    shape = shapes.load([suite], [words["layer"]], [int(words["n"])])[0]
    return cases.Case(shape, words["pass"], words["dtype"], words["layout"], words["algorithm"], words["precision"],
                      "cuda")


def answer(line: str) -> str:
    if line == "machine":
        from bench import environment, gpu

        return "right: " + json.dumps({**environment.machine(), "gpu": gpu.name()})
    if line.startswith("ceiling="):
        from bench import gpu

        return f"right: {gpu.ceiling(line.split('=')[1])}"
    import torch

    import conv_ext
    from bench import cases, precision, run

    case = read(line)
    with torch.no_grad(), conv_ext.algorithm(case.algorithm):
        if case.algorithm != "auto":
            with precision.allowed(case.precision, case.device):
                chosen = cases.plan(case, cases.operands(case)).algorithm
            if chosen == case.algorithm:
                return "declined: the plan chooses it by itself"
        row = run.measure_on_gpu(case, SECONDS)
    if "declined" in row:
        return f"declined: {row['declined']}"
    if "failed" in row:
        return f"failed: {row['failed']}".replace("\n", " ").replace(" | ", " / ")
    return f"{'right' if row['right'] else 'wrong'}: {json.dumps(row)}"


def result(rows: list[dict], machine: dict) -> dict:
    """As a file of `python -m bench run`, for its report."""
    return {"command": "run", "machine": {"peaks": {}, "cap": None, **machine}, "cases": rows}


def summary(rows: list[dict]) -> str:
    return aims.cuda_text(rows)


def main() -> int:
    import torch

    from bench import gpu

    if not torch.cuda.is_available():
        print("torch finds no CUDA device here", flush=True)
        return 3
    gpu.prepare()
    for line in map(str.strip, sys.stdin):
        verdict = answer(line)
        print(f"{verdict} | {line}", flush=True)
        if verdict.startswith("failed"):  # an error of the device stays: who asks starts another process
            return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
