"""Depthwise layers with larger kernels than MobileNet's: those of ConvNeXt (Liu et al., 2022) and two of 5x5."""

from bench.shapes import conv

BATCH = 4
SHAPES = [
    conv("7x7_96", c=96, h=56, w=56, k=96, r=7, padding=3, groups=96),
    conv("7x7_384", c=384, h=14, w=14, k=384, r=7, padding=3, groups=384),
    conv("5x5_240", c=240, h=28, w=28, k=240, r=5, padding=2, groups=240),
    conv("5x5_672", c=672, h=14, w=14, k=672, r=5, stride=2, padding=2, groups=672),
]
