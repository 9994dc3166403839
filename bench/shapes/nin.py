"""Network in Network (Lin et al., 2013) on 227x227 images: every convolution is followed by two of 1x1."""

from bench.shapes import conv, distinct

BATCH = 8
SHAPES = distinct([
    conv("conv1", c=3, h=227, w=227, k=96, r=11, stride=4),
    conv("cccp1", c=96, h=55, w=55, k=96, r=1),
    conv("cccp2", c=96, h=55, w=55, k=96, r=1),
    conv("conv2", c=96, h=27, w=27, k=256, r=5, padding=2),
    conv("cccp3", c=256, h=27, w=27, k=256, r=1),
    conv("cccp4", c=256, h=27, w=27, k=256, r=1),
    conv("conv3", c=256, h=13, w=13, k=384, r=3, padding=1),
    conv("cccp5", c=384, h=13, w=13, k=384, r=1),
    conv("cccp6", c=384, h=13, w=13, k=384, r=1),
    conv("conv4", c=384, h=6, w=6, k=1024, r=3, padding=1),
    conv("cccp7", c=1024, h=6, w=6, k=1024, r=1),
    conv("cccp8", c=1024, h=6, w=6, k=1000, r=1),
])
