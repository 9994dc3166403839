"""The depthwise layers of MobileNet (Howard et al., 2017) on 224x224 images, and one with a larger kernel."""

from bench.shapes import conv

BATCH = 4
SHAPES = [
    conv("dw1", c=32, h=112, w=112, k=32, r=3, padding=1, groups=32),
    conv("dw2", c=64, h=112, w=112, k=64, r=3, padding=1, stride=2, groups=64),
    conv("dw3", c=128, h=56, w=56, k=128, r=3, padding=1, groups=128),
    conv("dw4", c=128, h=56, w=56, k=128, r=3, padding=1, stride=2, groups=128),
    conv("dw5", c=256, h=28, w=28, k=256, r=3, padding=1, groups=256),
    conv("dw6", c=256, h=28, w=28, k=256, r=3, padding=1, stride=2, groups=256),
    conv("dw7", c=512, h=14, w=14, k=512, r=3, padding=1, groups=512),
    conv("dw8", c=512, h=14, w=14, k=512, r=3, padding=1, stride=2, groups=512),
    conv("dw9", c=1024, h=7, w=7, k=1024, r=3, padding=1, groups=1024),
    conv("dw7x7", c=96, h=56, w=56, k=96, r=7, padding=3, groups=96),
]
