"""What the CPU's plans count of problems, under the instruction set of this process: JSON lines in, JSON lines out.

`python -m bench.counts` with CONV_EXT_ISA set is how `asked` asks for those of another instruction set.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import conv_ext
from bench.cases import MEMORY_FORMATS
from bench.sweep_problems import shape_of

ROOT = Path(__file__).parents[1]
KEY = ("layer", "n", "dtype", "layout", "precision", "pass")  # columns of a sweep that name a problem


@functools.lru_cache(maxsize=1)
def _explained(layer: str, n: int, dtype: str, layout: str, precision: str) -> conv_ext.explain.Explanation:
    """On tensors without memory. Neighbours differ in the pass alone, or are many algorithms' times of the same one."""
    shape = shape_of(layer, n)

    def empty(*sizes: int) -> torch.Tensor:
        whole = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")
        return whole.contiguous(memory_format=MEMORY_FORMATS[layout])

    x, w = empty(n, shape.c, shape.h, shape.w), empty(shape.k, shape.c // shape.groups, shape.r, shape.s)
    with conv_ext.precision(precision), conv_ext.algorithm("auto"):
        return conv_ext.explain(x, w, None, shape.stride, shape.padding, shape.dilation, shape.groups)


def of(problem: dict) -> dict:
    """problem: the columns of a sweep's row. The plan's `works`, its choice, and the layout that it plans for."""
    explained = _explained(problem["layer"], int(problem["n"]), problem["dtype"], problem["layout"],
                           problem["precision"])
    plan = getattr(explained, problem["pass"])
    return {"works": plan.works, "chosen": plan.algorithm, "channels_last": plan.channels_last,
            "names": [name for name, *_ in plan.candidates]}


def asked(problems: list[dict], isa: str) -> list[dict]:
    """`of` of each problem, in a process of its own with the plans of that instruction set, which has to run here."""
    # Passes of a problem side by side: they are explained together.
    places = sorted(range(len(problems)), key=lambda i: [problems[i][name] for name in KEY])
    lines = "\n".join(json.dumps({name: problems[i][name] for name in KEY}) for i in places)
    child = subprocess.run([sys.executable, "-m", "bench.counts"], input=lines, capture_output=True, text=True,
                           cwd=ROOT, env={**os.environ, "CONV_EXT_ISA": isa})
    if child.returncode:
        why = (child.stderr.strip() or "it ended without a word").splitlines()[-1]
        raise SystemExit(f"the plans of {isa} cannot be asked: {why}")
    found: list[dict] = [{}] * len(problems)
    for i, line in zip(places, child.stdout.splitlines(), strict=True):
        found[i] = json.loads(line)
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(of(json.loads(line))), flush=True)
