"""ResNet-50 (He et al., 2016) on 224x224 images, the stride of a stage in its first 3x3 layer, as it is common now."""

from bench.shapes import conv, distinct


def stage(name: str, c: int, size: int, width: int, stride: int) -> list:
    """The first bottleneck block, which changes the size, and one of the others, which are all alike."""
    out, k = size // stride, 4 * width
    return [
        conv(f"{name}a/1x1_in", c=c, h=size, w=size, k=width, r=1),
        conv(f"{name}a/3x3", c=width, h=size, w=size, k=width, r=3, stride=stride, padding=1),
        conv(f"{name}a/1x1_out", c=width, h=out, w=out, k=k, r=1),
        conv(f"{name}a/shortcut", c=c, h=size, w=size, k=k, r=1, stride=stride),
        conv(f"{name}b/1x1_in", c=k, h=out, w=out, k=width, r=1),
        conv(f"{name}b/3x3", c=width, h=out, w=out, k=width, r=3, padding=1),
    ]


BATCH = 8
SHAPES = distinct([
    conv("conv1", c=3, h=224, w=224, k=64, r=7, stride=2, padding=3),
    *stage("2", 64, 56, 64, stride=1),
    *stage("3", 256, 56, 128, stride=2),
    *stage("4", 512, 28, 256, stride=2),
    *stage("5", 1024, 14, 512, stride=2),
])
