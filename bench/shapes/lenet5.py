"""LeNet-5 (LeCun et al., 1998) on 32x32 digits, every input map connected."""

from bench.shapes import conv

BATCH = 64
SHAPES = [
    conv("c1", c=1, h=32, w=32, k=6, r=5),
    conv("c3", c=6, h=14, w=14, k=16, r=5),
    conv("c5", c=16, h=5, w=5, k=120, r=5),
]
