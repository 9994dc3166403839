"""Problems as lines for the runner of the CUDA kernels (tests/cuda_host/run.cpp), and the sets that a GPU is given.

The standard library alone: bench/gpu_check.py reads this where there is neither torch nor pytest yet.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from problems import CORNERS, NETWORK, SMALL, Problem

PASSES = ("forward", "input_grad", "weight_grad")
LAYOUTS = ("contiguous", "channels_last", "mixed", "sliced", "transposed", "shifted")
# dtype, precision
NUMBERS = (
    ("float32", "ieee"),
    ("float32", "tf32"),
    ("bfloat16", "ieee"),
    ("float16", "ieee"),
    ("float64", "ieee"),
    ("complex64", "ieee"),
    ("complex128", "ieee"),
)
# The names of the plan (csrc/cuda/plan.cpp); tests/cuda/test_gpu_runner.py compares.
ALGORITHMS = ("depthwise", "grouped", "first_layer_cores", "first_layer", "direct", "wgmma", "tensor_cores",
              "three_tf32", "multiply_add")


def line(pass_name: str, kind: tuple[str, str, str], layout: str, z: Problem, capability: int | None = None,
         bias: int = 0, **more: object) -> str:
    """kind: dtype, precision, algorithm; more: other keys of the runner."""
    def joined(values: tuple) -> str:
        return ",".join(map(str, values))

    words = {"pass": pass_name, "dtype": kind[0], "precision": kind[1], "algorithm": kind[2], "layout": layout}
    words |= {name: getattr(z, name) for name in "nchwkrs"}
    words |= {"stride": joined(z.stride), "dilation": joined(z.dilation), "padding": joined(z.padding)}
    words |= {"groups": z.groups, "bias": bias, "capability": capability, **more}
    return " ".join(f"{key}={value}" for key, value in words.items() if value is not None)


ACTIVATIONS = ("none", "relu", "clamp", "silu", "hardswish")


def epilogue(pass_name: str, dtype: str, i: int) -> dict[str, object]:
    """Of the i-th line: a bias always, the activations in turn, a residual every second time; nothing but in forward.

    Complex numbers have no activation, and every second residual lies at no multiple of 16 bytes.
    """
    if pass_name != "forward":
        return {}
    real = {} if dtype.startswith("complex") else {"activation": ACTIVATIONS[i % len(ACTIVATIONS)]}
    return {"bias": 1, "residual": (0, 1, 0, 2)[i % 4], **real}


# ---- what a GPU is given; what an algorithm does not compute is declined, and costs nothing

# Several tiles each way, splits, long chains, vectors; and what few channels have.
TILES = (
    Problem("large_tile", 4, 64, 30, 31, 192, 3, 3, padding=(1, 1, 1, 1)),
    Problem("split", 3, 256, 7, 7, 256, 3, 3, padding=(1, 1, 1, 1)),
    Problem("strided", 3, 32, 29, 28, 96, 3, 3, (2, 2), (1, 1, 1, 1)),
    Problem("groups_in_place", 2, 160, 5, 6, 96, 2, 2, dilation=(2, 1), groups=2),
    Problem("depthwise_layer", 3, 96, 28, 27, 96, 3, 3, padding=(1, 1, 1, 1), groups=96),
    Problem("depthwise_5x5_strided", 2, 40, 28, 27, 80, 5, 5, (2, 2), (2, 2, 2, 2), groups=40),
    Problem("groups_of_four", 2, 128, 15, 14, 128, 3, 3, padding=(1, 1, 1, 1), groups=32),
    Problem("first_layer", 2, 3, 61, 58, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
)
# For wgmma, one idea each; the first is a single step of a single tile.
PERSISTENT = Problem("persistent", 8, 64, 56, 56, 256, 1, 1)
IN_PARTS = (Problem("parts_forward", 2, 2080, 5, 6, 264, 1, 1), Problem("parts_input_grad", 2, 264, 5, 6, 2080, 1, 1))
WGMMA = (
    Problem("one_step", 1, 64, 8, 16, 64, 1, 1),
    Problem("two_steps", 1, 128, 8, 16, 64, 1, 1),
    Problem("taps", 1, 64, 8, 16, 128, 3, 3, padding=(1, 1, 1, 1)),
    Problem("tail_of_a_step", 1, 200, 6, 7, 72, 1, 3, (1, 2), (0, 0, 1, 1)),
    Problem("several_tiles", 3, 72, 11, 13, 136, 3, 2, padding=(1, 1, 0, 1)),
    PERSISTENT,
    Problem("phases", 2, 24, 13, 12, 40, 4, 3, (2, 3), (1, 1, 1, 1)),
    Problem("groups_in_place", 2, 160, 5, 6, 96, 2, 2, dilation=(2, 1), groups=2),
    Problem("split", 1, 264, 4, 5, 264, 3, 3, padding=(1, 1, 1, 1)),
)
WGMMA_NUMBERS = NUMBERS[:4]


def everything() -> list[str]:
    """Every algorithm but wgmma x dtype x pass, on small problems, corners, network layers and tiles.

    They take turns, so that where time is short each has been tried on something.
    """
    several = [_of_kind((dtype, precision, algorithm), pass_name) for algorithm in ALGORITHMS if algorithm != "wgmma"
               for dtype, precision in NUMBERS for pass_name in PASSES]
    return [one for turn in zip_longest(*several) for one in turn if one is not None]


def _of_kind(kind: tuple[str, str, str], pass_name: str) -> list[str]:
    forward, is_complex = pass_name == "forward", kind[0].startswith("complex")
    small = [(z, layout) for z in SMALL for layout in LAYOUTS]
    lines = [line(pass_name, kind, layout, z, **epilogue(pass_name, kind[0], i))
             for i, (z, layout) in enumerate(small)]
    tiles = [(z, layout) for z in TILES for layout in LAYOUTS[:2]]
    lines += [line(pass_name, kind, layout, z, **epilogue(pass_name, kind[0], i))
              for i, (z, layout) in enumerate(tiles)]
    if not is_complex:
        lines += [line(pass_name, kind, "channels_last", z, check="accuracy") for z in TILES]
        lines += [line(pass_name, kind, LAYOUTS[i % 2], z, check="special") for i, z in enumerate(SMALL)]
    if pass_name != "weight_grad":
        lines += [line(pass_name, kind, "channels_last", replace(z, n=3), check="images")
                  for z in (*SMALL[:3], *TILES[:2])]
    lines += [line(pass_name, kind, LAYOUTS[i % 3], z) for i, z in enumerate((*CORNERS, *NETWORK))
              if z.stride != (70, 61) or forward]
    return lines


def wgmma() -> list[str]:
    """One idea after the other, the simplest first and for every dtype and pass; then what else is to be right."""
    kinds = [((dtype, precision, "wgmma"), pass_name) for dtype, precision in WGMMA_NUMBERS for pass_name in PASSES]
    lines = [line(pass_name, kind, "channels_last", z) for z in WGMMA for kind, pass_name in kinds]
    for kind, pass_name in kinds:
        if pass_name == "forward":
            lines += [line(pass_name, kind, layout, z, **epilogue(pass_name, kind[0], i)) for z in (WGMMA[4], WGMMA[8])
                      for layout in LAYOUTS[:2] for i in range(2 * len(ACTIVATIONS))]
        lines += [line(pass_name, kind, layout, WGMMA[4]) for layout in ("contiguous", "shifted")]
        lines += [line(pass_name, kind, "channels_last", z, check="accuracy") for z in (WGMMA[2], WGMMA[8])]
        lines.append(line(pass_name, kind, "contiguous", SMALL[0], check="special"))
        if pass_name != "weight_grad":  # in blocks of every kind
            lines += [line(pass_name, kind, "channels_last", z, check="images") for z in IN_PARTS]
        if pass_name == "forward" and kind[0] in ("bfloat16", "float16"):
            lines.append(line(pass_name, kind, "channels_last", PERSISTENT, tile_m=256, tile_n=128))
    return lines


def sanitized() -> list[str]:
    """One of each algorithm x dtype x pass, in memory of their own, for compute-sanitizer."""
    lines = []
    for algorithm in ALGORITHMS:
        problems = {"depthwise": (SMALL[4],), "grouped": (CORNERS[18], CORNERS[20]),
                    "wgmma": (WGMMA[2], WGMMA[6])}.get(algorithm, (SMALL[0], SMALL[1]))
        for dtype, precision in NUMBERS:
            for pass_name in PASSES:
                lines += [line(pass_name, (dtype, precision, algorithm), layout, z, memory="exact", ways=0)
                          for z, layout in zip(problems, ("contiguous", "channels_last"))]
    return lines


# ---- timing

SIZES = {  # name: c, size, k, kernel, stride, groups
    "3x3_64": (64, 56, 64, 3, 1, 1),
    "3x3_128": (128, 28, 128, 3, 1, 1),
    "3x3_256": (256, 14, 256, 3, 1, 1),
    "3x3_512": (512, 7, 512, 3, 1, 1),
    "vgg_256": (256, 56, 256, 3, 1, 1),
    "1x1_256": (256, 56, 64, 1, 1, 1),
    "1x1_1024": (1024, 14, 256, 1, 1, 1),
    "1x1_wide": (512, 7, 2048, 1, 1, 1),
    "strided_256": (256, 28, 256, 3, 2, 1),
}
FEW = {
    "depthwise_3x3": (256, 28, 256, 3, 1, 256),
    "depthwise_5x5": (240, 28, 240, 5, 1, 240),
    "groups_of_4": (128, 56, 128, 3, 1, 32),
    "groups_of_16": (512, 14, 512, 3, 1, 32),
    "first_3x3": (3, 224, 64, 3, 1, 1),
    "first_7x7": (3, 224, 64, 7, 2, 1),
}


def problem(name: str, n: int) -> Problem:
    c, size, k, kernel, stride, groups = {**SIZES, **FEW}[name]
    pad = kernel // 2
    return Problem(name, n, c, size, size, k, kernel, kernel, (stride, stride), (pad,) * 4, groups=groups)


def sweep(milliseconds: int = 20) -> list[str]:
    """What sets the plan's constants, the most telling first: algorithms against each other, tiles, splits."""
    def timed(pass_name: str, kind: tuple, name: str, n: int, layout: str = "channels_last", **more) -> str:
        return line(pass_name, kind, layout, problem(name, n), check="none", time=milliseconds, **more)

    half, ieee, tf32 = ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")
    lines = []
    for name in SIZES:
        for pass_name in PASSES:
            lines += [timed(pass_name, (*half, a), name, 128) for a in ("wgmma", "tensor_cores")]
            lines += [timed(pass_name, (*ieee, a), name, 64) for a in ("wgmma", "three_tf32", "multiply_add")]
    for name in FEW:
        for pass_name in PASSES:
            own = name.split("_")[0].replace("groups", "grouped").replace("first", "first_layer")
            for numbers in (half, ieee):
                several = (own, "first_layer_cores", "direct") if own == "first_layer" else (own, "direct")
                lines += [timed(pass_name, (*numbers, a), name, 64) for a in (*several, "tensor_cores")]
    for name in ("3x3_128", "3x3_512", "1x1_1024"):
        for pass_name in PASSES:
            for m, n in ((64, 64), (128, 128), (32, 128)):
                lines.append(timed(pass_name, (*half, "tensor_cores"), name, 128, tile_m=m, tile_n=n))
            for m, n in ((64, 128), (128, 128), (128, 64), (256, 128)):
                lines.append(timed(pass_name, (*half, "wgmma"), name, 128, tile_m=m, tile_n=n))
            for images in (1, 8, 128):
                lines += [timed(pass_name, (*half, "wgmma"), name, images, splits=s) for s in (1, 2, 4, 8)]
                lines.append(timed(pass_name, (*half, "wgmma"), name, images, splits=1, parts=8))
    for name in SIZES:
        lines += [timed(p, (*tf32, a), name, 64) for p in PASSES for a in ("wgmma", "tensor_cores")]
        lines += [timed(p, (*half, "wgmma"), name, 128, "contiguous") for p in PASSES]
    return lines


def profiled() -> list[tuple[str, str]]:
    """(name, line) of one launch of each of the main kernels, for ncu."""
    several = {
        "wgmma_bfloat16": ("forward", ("bfloat16", "ieee", "wgmma"), "3x3_256", 128),
        "wgmma_bfloat16_weight_grad": ("weight_grad", ("bfloat16", "ieee", "wgmma"), "3x3_256", 128),
        "wgmma_float32": ("forward", ("float32", "ieee", "wgmma"), "3x3_256", 64),
        "tensor_cores_bfloat16": ("forward", ("bfloat16", "ieee", "tensor_cores"), "3x3_256", 128),
        "depthwise_float32": ("forward", ("float32", "ieee", "depthwise"), "depthwise_3x3", 64),
        "depthwise_weight_grad": ("weight_grad", ("float32", "ieee", "depthwise"), "depthwise_3x3", 64),
    }
    return [(name, line(pass_name, kind, "channels_last", problem(layer, n), check="none"))
            for name, (pass_name, kind, layer, n) in several.items()]
