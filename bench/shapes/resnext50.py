"""ResNeXt-50 32x4d (Xie et al., 2017) on 224x224 images: its 3x3 layers in 32 groups; the others are ResNet-50's."""

from bench.shapes import conv

BATCH = 8
SHAPES = [
    conv("2/3x3", c=128, h=56, w=56, k=128, r=3, padding=1, groups=32),
    conv("3a/3x3", c=256, h=56, w=56, k=256, r=3, stride=2, padding=1, groups=32),
    conv("3b/3x3", c=256, h=28, w=28, k=256, r=3, padding=1, groups=32),
    conv("4a/3x3", c=512, h=28, w=28, k=512, r=3, stride=2, padding=1, groups=32),
    conv("4b/3x3", c=512, h=14, w=14, k=512, r=3, padding=1, groups=32),
    conv("5a/3x3", c=1024, h=14, w=14, k=1024, r=3, stride=2, padding=1, groups=32),
    conv("5b/3x3", c=1024, h=7, w=7, k=1024, r=3, padding=1, groups=32),
]
