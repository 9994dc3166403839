"""MobileNet (Howard et al., 2017) on 224x224 images: depthwise 3x3 layers and the 1x1 layers between them."""

from bench.shapes import conv, distinct


def block(index: int, c: int, size: int, k: int, stride: int = 1) -> list:
    out = size // stride
    return [
        conv(f"dw{index}", c=c, h=size, w=size, k=c, r=3, stride=stride, padding=1, groups=c),
        conv(f"pw{index}", c=c, h=out, w=out, k=k, r=1),
    ]


BATCH = 8
SHAPES = distinct([
    conv("conv1", c=3, h=224, w=224, k=32, r=3, stride=2, padding=1),
    *block(1, 32, 112, 64),
    *block(2, 64, 112, 128, stride=2),
    *block(3, 128, 56, 128),
    *block(4, 128, 56, 256, stride=2),
    *block(5, 256, 28, 256),
    *block(6, 256, 28, 512, stride=2),
    *block(7, 512, 14, 512),
    *block(8, 512, 14, 1024, stride=2),
    *block(9, 1024, 7, 1024),
])
