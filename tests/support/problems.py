"""Named convolution problems: small, asymmetric in every respect, so that two swapped indices never go unseen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Sizes of one convolution; `padding` is (top, bottom, left, right)."""

    name: str
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def p(self) -> int:
        top, bottom, _, _ = self.padding
        return (self.h + top + bottom - self.dilation[0] * (self.r - 1) - 1) // self.stride[0] + 1

    @property
    def q(self) -> int:
        _, _, left, right = self.padding
        return (self.w + left + right - self.dilation[1] * (self.s - 1) - 1) // self.stride[1] + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, self.h, self.w)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.k, self.c // self.groups, self.r, self.s)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.k, self.p, self.q)

    @property
    def macs(self) -> int:
        return self.n * self.k * self.p * self.q * self.c // self.groups * self.r * self.s


# Every operand layout, fill, dtype and algorithm is tried on these.
SMALL = (
    Problem("everything", 2, 6, 9, 11, 9, 3, 2, (2, 3), (1, 0, 2, 1), (1, 2), 3),
    Problem("plain_3x3", 2, 3, 7, 10, 5, 3, 3, padding=(1, 1, 1, 1)),
    Problem("no_block_divides", 1, 7, 5, 19, 13, 2, 3, padding=(0, 1, 1, 2)),
    Problem("pointwise", 3, 5, 4, 7, 11, 1, 1),
    Problem("depthwise", 2, 5, 8, 9, 5, 3, 3, (1, 2), (1, 1, 1, 0), groups=5),
)

# The corners: each is one idea, tried with every dtype and algorithm.
CORNERS = (
    Problem("one_element", 1, 1, 1, 1, 1, 1, 1),
    Problem("kernel_as_large_as_input", 2, 3, 4, 5, 4, 4, 5),
    Problem("kernel_larger_than_input", 2, 2, 2, 3, 3, 4, 5, padding=(2, 1, 1, 2)),
    Problem("one_column_wide_output", 3, 4, 9, 3, 5, 3, 3, (2, 1), dilation=(2, 1)),
    Problem("one_column_strided_dilated", 2, 4, 11, 5, 6, 2, 3, (2, 3), dilation=(3, 2)),
    Problem("one_row_wide_output", 2, 3, 2, 13, 4, 2, 3, (3, 2), (0, 0, 1, 1)),
    Problem("one_dimensional", 2, 4, 1, 23, 3, 1, 5, (1, 2), (0, 0, 2, 2), (1, 2)),
    Problem("even_kernel_same", 2, 3, 6, 5, 4, 2, 4, padding=(0, 1, 1, 2)),
    Problem("even_kernel_strided", 1, 4, 10, 7, 3, 4, 2, (2, 1), (1, 1, 0, 1)),
    Problem("padding_beyond_kernel", 1, 2, 3, 4, 3, 2, 2, (2, 3), (5, 4, 3, 6)),
    Problem("padding_one_side", 2, 3, 5, 6, 2, 3, 3, padding=(0, 3, 0, 0)),
    Problem("stride_beyond_kernel", 2, 3, 14, 17, 4, 2, 1, (5, 3)),
    Problem("stride_of_many_phases", 1, 2, 71, 63, 3, 2, 2, (70, 61)),
    Problem("stride_leaves_a_rest", 1, 3, 10, 12, 4, 3, 3, (4, 5), (1, 0, 0, 1)),
    Problem("pointwise_strided", 2, 6, 7, 9, 4, 1, 1, (2, 3)),
    Problem("pointwise_padded", 2, 3, 3, 4, 5, 1, 1, padding=(1, 2, 0, 3)),
    Problem("dilation_beyond_input", 1, 2, 8, 9, 3, 2, 2, (1, 1), (0, 0, 0, 0), (7, 5)),
    Problem("stride_shares_a_factor_with_dilation", 1, 3, 13, 17, 4, 3, 4, (4, 6), (2, 1, 3, 2), (2, 4)),
    Problem("grouped_uneven", 2, 8, 6, 5, 12, 3, 2, (2, 1), (1, 1, 0, 1), groups=4),
    Problem("groups_of_eight", 1, 24, 9, 17, 24, 3, 3, padding=(1, 1, 1, 1), groups=3),
    Problem("groups_of_few", 2, 30, 8, 13, 20, 4, 5, (2, 2), (1, 2, 2, 0), groups=10),
    Problem("groups_of_many", 1, 54, 7, 9, 38, 3, 2, (2, 1), (1, 1, 0, 1), groups=2),
    Problem("groups_dilated", 1, 12, 11, 14, 16, 3, 3, (1, 3), (2, 1, 2, 2), (2, 2), 4),
    Problem("groups_of_two_taps", 1, 36, 6, 11, 72, 2, 2, (2, 2), groups=2),
    Problem("depthwise_multiplier", 2, 3, 7, 8, 9, 3, 2, (1, 1), (1, 1, 1, 0), (2, 1), 3),
    Problem("depthwise_many_channels", 1, 37, 5, 6, 37, 3, 3, padding=(1, 1, 1, 1), groups=37),
    Problem("depthwise_wide", 1, 133, 3, 17, 133, 2, 3, padding=(1, 0, 1, 1), groups=133),
    Problem("depthwise_strided_dilated", 2, 19, 13, 12, 19, 3, 2, (2, 3), (2, 1, 0, 3), (2, 3), 19),
    Problem("depthwise_large_kernel", 1, 17, 9, 8, 17, 7, 5, padding=(3, 3, 2, 1), groups=17),
    Problem("depthwise_one_column", 2, 9, 7, 3, 9, 3, 3, (2, 1), groups=9),
    Problem("depthwise_blocks", 1, 21, 7, 24, 21, 3, 3, padding=(1, 1, 1, 1), groups=21),
    Problem("depthwise_blocks_strided", 2, 19, 11, 39, 19, 3, 3, (2, 2), (0, 1, 1, 0), groups=19),
    Problem("depthwise_5x5", 1, 18, 6, 18, 18, 5, 5, padding=(2, 2, 1, 2), groups=18),
    Problem("depthwise_5x5_strided", 1, 17, 8, 36, 17, 5, 5, (2, 2), (2, 1, 2, 2), groups=17),
    Problem("depthwise_5x5_phases", 1, 16, 10, 29, 16, 5, 5, (3, 3), (1, 2, 2, 1), groups=16),
    Problem("depthwise_7x7", 1, 18, 5, 17, 18, 7, 7, padding=(3, 3, 3, 3), groups=18),
    Problem("depthwise_prime_kernel", 2, 5, 12, 13, 5, 13, 11, padding=(6, 7, 5, 5), groups=5),
    Problem("depthwise_prime_kernel_strided", 1, 19, 14, 9, 19, 11, 3, (2, 1), (5, 5, 1, 1), groups=19),
    Problem("depthwise_column_of_taps", 1, 35, 3, 16, 35, 3, 1, (1, 2), (0, 1, 1, 0), groups=35),
    Problem("depthwise_smaller_than_kernel", 2, 17, 2, 3, 17, 5, 5, padding=(3, 2, 2, 3), groups=17),
    Problem("many_input_channels", 1, 131, 3, 4, 3, 2, 2),
    Problem("many_output_channels", 1, 3, 4, 3, 133, 2, 2),
    Problem("long_row", 1, 2, 2, 301, 3, 2, 3, padding=(0, 0, 1, 1)),
    Problem("tall_column", 1, 2, 211, 2, 3, 3, 2, padding=(1, 1, 0, 0)),
    Problem("large_kernel", 1, 2, 17, 15, 2, 11, 9, (2, 1), (3, 2, 4, 1)),
    Problem("many_images", 33, 2, 3, 4, 3, 2, 2),
    Problem("broadcast_images", 13, 21, 4, 5, 50, 5, 3, padding=(4, 3, 2, 2)),
    Problem("broadcast_strided", 9, 22, 7, 6, 19, 4, 5, (2, 1), (2, 2, 3, 1), (1, 2)),
    Problem("winograd_wide", 1, 18, 9, 238, 35, 3, 3, padding=(1, 1, 1, 0)),
    Problem("winograd_pieces", 40, 17, 6, 5, 33, 4, 5, padding=(2, 1, 2, 2)),
    # Outputs that read hardly anything but padding, or nothing else.
    Problem("winograd_mostly_padding", 1, 32, 2, 13, 34, 3, 5, padding=(2, 2, 5, 5)),
    Problem("winograd_groups", 2, 42, 8, 7, 70, 3, 3, padding=(0, 2, 1, 3), groups=2),
)

# Nothing to read, or nothing to write.
EMPTY = (
    Problem("no_images", 0, 3, 5, 6, 4, 3, 2, (2, 1), (1, 0, 1, 1)),
    Problem("no_channels", 2, 0, 5, 6, 4, 3, 2, (2, 1), (1, 0, 1, 1)),
    Problem("no_images_no_channels", 0, 0, 5, 6, 4, 3, 2),
)

# Layers of well-known networks, with fewer images and channels than the originals.
NETWORK = (
    Problem("lenet_c1", 2, 1, 32, 30, 6, 5, 5),
    Problem("lenet_c3", 2, 6, 14, 13, 16, 5, 5),
    Problem("lenet_c5", 3, 16, 5, 5, 30, 5, 5),
    Problem("alexnet_conv1", 1, 3, 43, 39, 12, 11, 11, (4, 4), (2, 2, 2, 2)),
    Problem("alexnet_conv2", 1, 12, 13, 15, 16, 5, 5, padding=(2, 2, 2, 2), groups=2),
    Problem("vgg_conv1_1", 1, 3, 29, 26, 16, 3, 3, padding=(1, 1, 1, 1)),
    Problem("vgg_conv4", 2, 24, 14, 13, 20, 3, 3, padding=(1, 1, 1, 1)),
    Problem("resnet_downsample", 1, 16, 15, 14, 20, 3, 3, (2, 2), (1, 1, 1, 1)),
)

# Cut into several tasks by every pass, so that threads have something to share.
THREADED = (
    Problem("threaded_dense", 5, 12, 26, 37, 40, 3, 3, padding=(1, 1, 1, 1)),
    Problem("threaded_strided", 5, 10, 31, 45, 22, 5, 4, (2, 3), (2, 1, 1, 2), (1, 2), 2),
    Problem("threaded_groups", 5, 72, 23, 26, 72, 3, 3, (1, 2), (1, 1, 1, 1), groups=9),
    Problem("threaded_depthwise", 7, 53, 33, 37, 53, 3, 3, (1, 2), (1, 1, 1, 1), groups=53),
    Problem("threaded_long_reduction", 7, 3, 67, 51, 4, 3, 2, padding=(1, 1, 1, 0)),
    Problem("threaded_few_pixels", 5, 70, 4, 5, 90, 3, 3, padding=(1, 1, 1, 1)),
    Problem("threaded_few_maps", 4, 7, 66, 68, 7, 3, 3, padding=(1, 1, 1, 1), groups=7),
)

ALL = SMALL + CORNERS + EMPTY + NETWORK
