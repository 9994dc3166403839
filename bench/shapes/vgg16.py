"""VGG-16 (Simonyan and Zisserman, 2014) on 224x224 images: its nine different layers out of thirteen."""

from bench.shapes import conv

BATCH = 2
SHAPES = [
    conv("conv1_1", c=3, h=224, w=224, k=64, r=3, padding=1),
    conv("conv1_2", c=64, h=224, w=224, k=64, r=3, padding=1),
    conv("conv2_1", c=64, h=112, w=112, k=128, r=3, padding=1),
    conv("conv2_2", c=128, h=112, w=112, k=128, r=3, padding=1),
    conv("conv3_1", c=128, h=56, w=56, k=256, r=3, padding=1),
    conv("conv3_2", c=256, h=56, w=56, k=256, r=3, padding=1),
    conv("conv4_1", c=256, h=28, w=28, k=512, r=3, padding=1),
    conv("conv4_2", c=512, h=28, w=28, k=512, r=3, padding=1),
    conv("conv5_1", c=512, h=14, w=14, k=512, r=3, padding=1),
]
