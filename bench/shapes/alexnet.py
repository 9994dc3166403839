"""AlexNet (Krizhevsky et al., 2012) as one tower, without groups, on 227x227 images."""

from bench.shapes import conv

BATCH = 8
SHAPES = [
    conv("conv1", c=3, h=227, w=227, k=96, r=11, stride=4),
    conv("conv2", c=96, h=27, w=27, k=256, r=5, padding=2),
    conv("conv3", c=256, h=13, w=13, k=384, r=3, padding=1),
    conv("conv4", c=384, h=13, w=13, k=384, r=3, padding=1),
    conv("conv5", c=384, h=13, w=13, k=256, r=3, padding=1),
]
