"""Random problems of a sweep: sizes that networks have, in combinations that nobody chose, and their names."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from bench import shapes
from bench.shapes import Shape

SUITE = "random"  # in front of a problem's name, where a layer of a network has its suite
KINDS = {"all": 1.0, "groups": 0.33}  # below 0.15 of it a problem is depthwise, below 0.32 grouped
KERNELS = (1, 1, 1, 3, 3, 3, 3, 5, 5, 7, 2)
CHANNELS = (3, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
OF_A_GROUP = (2, 4, 8, 12, 16, 24, 32, 48, 64)
EXTENTS = (4, 5, 6, 7, 8, 10, 12, 13, 14, 16, 19, 20, 24, 28, 32, 38, 56, 75, 112)
# Operations, and elements of input and output: a call takes some microseconds at least, a tenth of a second at most.
LEAST_FLOPS, MOST_FLOPS, MOST_ELEMENTS = 2e5, 1.5e9, 3e7
NAME = re.compile(r"n(\d+)_c(\d+)_h(\d+)_w(\d+)_k(\d+)_r(\d+)_s(\d+)_stride(\d+)_pad(\d+)_dil(\d+)_g(\d+)")


def draw(count: int, seed: int, kinds: str = "all") -> list[Shape]:
    """`count` different problems, the same ones for the same seed; kinds: one of KINDS."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        shape = _drawn(rng, KINDS[kinds])
        if shape:
            found[shape.name] = shape
    return list(found.values())


def _drawn(rng: random.Random, range_of_kinds: float) -> Shape | None:
    """One problem, or None where what was drawn is none, or takes too short or too long."""
    r = rng.choice(KERNELS)
    s = r if rng.random() < 0.9 else rng.choice((1, 3))
    c, k, groups = rng.choice(CHANNELS), rng.choice(CHANNELS), 1
    kind = rng.random() * range_of_kinds
    if kind < 0.15:
        k = groups = c
    elif kind < 0.32:
        each = rng.choice(OF_A_GROUP)
        groups = rng.choice((2, 4, 8, 16, 32))
        c, k = each * groups, rng.choice((each, each, 2 * each)) * groups
        if max(c, k) > max(CHANNELS):
            return None
    h = rng.choice(EXTENTS)
    w = h if rng.random() < 0.85 else rng.choice((7, 14, 28, 56))
    stride, pad = rng.choice((1, 1, 1, 1, 2, 2, 3)), rng.choice((r // 2, r // 2, r // 2, 0))
    dilation, n = rng.choice((1,) * 9 + (2,)), rng.choice((1, 2, 4, 8, 16))
    if (r - 1) * dilation >= h + 2 * pad or (s - 1) * dilation >= w + 2 * pad:
        return None
    shape = replace(shapes.conv("", c, h, w, k, r, s, stride=stride, padding=pad, dilation=dilation, groups=groups),
                    n=n, suite=SUITE)
    elements = n * (c * h * w + k * shape.p * shape.q)
    if not LEAST_FLOPS <= shape.flops <= MOST_FLOPS or elements > MOST_ELEMENTS:
        return None
    return replace(shape, name=name_of(shape))


def name_of(shape: Shape) -> str:
    """All that the problem is; its stride, padding and dilation are those of both axes."""
    return (f"n{shape.n}_c{shape.c}_h{shape.h}_w{shape.w}_k{shape.k}_r{shape.r}_s{shape.s}"
            f"_stride{shape.stride[0]}_pad{shape.padding[0]}_dil{shape.dilation[0]}_g{shape.groups}")


def shape_of(layer: str, n: int) -> Shape:
    """The problem of a sweep's row: of a random one by its name alone, of a suite's layer with n images.

    Raises SystemExit where no suite has the layer and the name is none of a problem.
    """
    suite, _, name = layer.partition("/")
    if suite == SUITE and (match := NAME.fullmatch(name)):
        n, c, h, w, k, r, s, stride, pad, dilation, groups = map(int, match.groups())
        own = shapes.conv(name, c, h, w, k, r, s, stride=stride, padding=pad, dilation=dilation, groups=groups)
        return replace(own, n=n, suite=SUITE)
    if suite in shapes.suites():
        for shape in shapes.load([suite]):
            if shape.name == name:
                return replace(shape, n=n)
    raise SystemExit(f"a layer must be one of bench/shapes, or {SUITE}/ and a problem such as n8_c64_h28_w28_k128_r3_s3"
                     f"_stride1_pad1_dil1_g1, got {layer}")
