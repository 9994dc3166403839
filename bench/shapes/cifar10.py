"""The small convnet for CIFAR-10's 32x32 images: two 5x5 layers, each followed by a pooling."""

from bench.shapes import conv

BATCH = 128
SHAPES = [
    conv("conv1", c=3, h=32, w=32, k=32, r=5),
    conv("conv2", c=32, h=14, w=14, k=64, r=5),
]
