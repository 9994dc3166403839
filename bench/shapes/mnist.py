"""The small convnet for MNIST's 28x28 digits: two 5x5 layers, each followed by a pooling."""

from bench.shapes import conv

BATCH = 128
SHAPES = [
    conv("conv1", c=1, h=28, w=28, k=32, r=5),
    conv("conv2", c=32, h=12, w=12, k=64, r=5),
]
