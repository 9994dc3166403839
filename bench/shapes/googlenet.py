"""GoogLeNet (Szegedy et al., 2015) on 224x224 images: the stem and the nine inception modules."""

from bench.shapes import conv, distinct


def inception(name: str, size: int, c: int, k1: int, r3: int, k3: int, r5: int, k5: int, pool: int) -> list:
    """Four branches: 1x1; 1x1 (r3 maps) then 3x3; 1x1 (r5 maps) then 5x5; pooling, then 1x1."""
    return [
        conv(f"{name}/1x1", c=c, h=size, w=size, k=k1, r=1),
        conv(f"{name}/3x3_reduce", c=c, h=size, w=size, k=r3, r=1),
        conv(f"{name}/3x3", c=r3, h=size, w=size, k=k3, r=3, padding=1),
        conv(f"{name}/5x5_reduce", c=c, h=size, w=size, k=r5, r=1),
        conv(f"{name}/5x5", c=r5, h=size, w=size, k=k5, r=5, padding=2),
        conv(f"{name}/pool_proj", c=c, h=size, w=size, k=pool, r=1),
    ]


BATCH = 8
SHAPES = distinct([
    conv("conv1", c=3, h=224, w=224, k=64, r=7, stride=2, padding=3),
    conv("conv2_reduce", c=64, h=56, w=56, k=64, r=1),
    conv("conv2", c=64, h=56, w=56, k=192, r=3, padding=1),
    *inception("3a", 28, 192, 64, 96, 128, 16, 32, 32),
    *inception("3b", 28, 256, 128, 128, 192, 32, 96, 64),
    *inception("4a", 14, 480, 192, 96, 208, 16, 48, 64),
    *inception("4b", 14, 512, 160, 112, 224, 24, 64, 64),
    *inception("4c", 14, 512, 128, 128, 256, 24, 64, 64),
    *inception("4d", 14, 512, 112, 144, 288, 32, 64, 64),
    *inception("4e", 14, 528, 256, 160, 320, 32, 128, 128),
    *inception("5a", 7, 832, 256, 160, 320, 32, 128, 128),
    *inception("5b", 7, 832, 384, 192, 384, 48, 128, 128),
])
