"""ZFNet (Zeiler and Fergus, 2014) on 224x224 images, with the wider layers 3 to 5 of its larger model."""

from bench.shapes import conv

BATCH = 4
SHAPES = [
    conv("conv1", c=3, h=224, w=224, k=96, r=7, stride=2, padding=1),
    conv("conv2", c=96, h=55, w=55, k=256, r=5, stride=2),
    conv("conv3", c=256, h=13, w=13, k=512, r=3, padding=1),
    conv("conv4", c=512, h=13, w=13, k=1024, r=3, padding=1),
    conv("conv5", c=1024, h=13, w=13, k=512, r=3, padding=1),
]
