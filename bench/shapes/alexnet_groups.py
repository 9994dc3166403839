"""AlexNet as published (Krizhevsky et al., 2012), split over two processors: the layers that have two groups."""

from bench.shapes import conv

BATCH = 8
SHAPES = [
    conv("conv2", c=96, h=27, w=27, k=256, r=5, padding=2, groups=2),
    conv("conv4", c=384, h=13, w=13, k=384, r=3, padding=1, groups=2),
    conv("conv5", c=384, h=13, w=13, k=256, r=3, padding=1, groups=2),
]
