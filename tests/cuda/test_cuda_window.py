"""The CUDA kernels for few channels on fibres, as in test_cuda_host.py: depthwise, small groups, first layers."""

import random
from dataclasses import replace

import pytest

from fibres import FLAGS, LAYOUTS, OPPOSITE, PASSES, epilogue, finds, line, needs_compiler, planted, run
from problems import CORNERS, NETWORK, SMALL, Problem

pytestmark = needs_compiler
SAME = (1, 1, 1, 1)
# Several tiles, chunks of channels, rounds of threads, copies of 16 bytes and of less.
TILES = (
    Problem("depthwise_tiles", 1, 6, 56, 56, 6, 3, 3, padding=SAME, groups=6),
    Problem("depthwise_planes", 2, 150, 7, 7, 150, 3, 3, padding=SAME, groups=150),
    Problem("depthwise_strided", 1, 72, 18, 20, 72, 3, 3, (2, 2), SAME, groups=72),
    Problem("depthwise_5x5", 1, 40, 14, 14, 40, 5, 5, padding=(2, 2, 2, 2), groups=40),
    Problem("depthwise_5x5_strided", 1, 40, 15, 16, 40, 5, 5, (2, 2), (2, 1, 2, 3), groups=40),
    Problem("depthwise_7x7", 1, 16, 14, 14, 16, 7, 7, padding=(3, 3, 3, 3), groups=16),
    Problem("depthwise_wide", 1, 3, 9, 300, 3, 3, 3, padding=SAME, groups=3),
    Problem("multiplier_of_four", 1, 12, 14, 14, 48, 3, 3, padding=SAME, groups=12),
    Problem("multiplier_of_three", 1, 8, 15, 13, 24, 5, 5, (2, 2), SAME, groups=8),
    Problem("multiplier_of_many", 1, 2, 9, 8, 140, 3, 3, padding=SAME, groups=2),
    Problem("groups_of_four", 1, 64, 14, 14, 64, 3, 3, padding=SAME, groups=16),
    Problem("groups_of_four_strided", 1, 32, 14, 15, 32, 3, 3, (2, 2), SAME, groups=8),
    Problem("groups_of_sixteen", 1, 32, 9, 9, 32, 3, 3, padding=SAME, groups=2),
    Problem("first_7x7", 1, 3, 30, 34, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
    Problem("first_11x11", 1, 3, 43, 43, 72, 11, 11, (4, 4), (2, 2, 2, 2)),
    Problem("first_3x3", 1, 3, 20, 33, 64, 3, 3, padding=SAME),
    Problem("first_5x5", 3, 1, 20, 28, 6, 5, 5, padding=(2, 2, 2, 2)),
)


def algorithm(z: Problem):
    """The one that is for this problem, if any."""
    if z.groups == 1:
        return "first_layer" if z.c <= 4 else None
    return "depthwise" if z.c == z.groups else "grouped" if max(z.c, z.k) <= 16 * z.groups else None


def lines(pass_name, dtype, problems, layouts=LAYOUTS, **more):
    few = [z for z in problems if algorithm(z) and (max(z.stride) <= 16 or pass_name != "input_grad")]
    return [line(pass_name, (dtype, "ieee", algorithm(z)), layout, z, **more) for z in few for layout in layouts]


def with_epilogues(dtype, problems, layouts=LAYOUTS, first=0):
    """The same of forward, each with another epilogue."""
    few = [(z, layout) for z in problems if algorithm(z) for layout in layouts]
    return [line("forward", (dtype, "ieee", algorithm(z)), layout, z, **epilogue("forward", dtype, first + i))
            for i, (z, layout) in enumerate(few)]


@pytest.mark.parametrize("pass_name", PASSES)
def test_every_dtype_in_every_layout(program, pass_name):
    for i, dtype in enumerate(("float32", "float64", "bfloat16", "float16", "complex64", "complex128")):
        forward = pass_name == "forward"
        run(program, with_epilogues(dtype, SMALL, first=i) if forward else lines(pass_name, dtype, SMALL))


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_corners(program, pass_name):
    for dtype in ("float32", "bfloat16"):
        run(program, lines(pass_name, dtype, CORNERS + NETWORK, LAYOUTS[:3]), OPPOSITE)


@pytest.mark.parametrize("pass_name", PASSES)
def test_several_tiles_and_chunks(program, pass_name):
    verdicts = [v for dtype in ("float32", "bfloat16", "float64") for v in
                run(program, lines(pass_name, dtype, TILES if dtype != "float64" else TILES[2:14:3], LAYOUTS[:2]),
                    OPPOSITE)]
    assert any("split" in v for v in verdicts) == (pass_name == "weight_grad"), verdicts


def test_epilogues_of_several_tiles(program):
    few = (*TILES[2:4], *TILES[7:9], *TILES[10:12], TILES[-1])
    for i, dtype in enumerate(("float32", "bfloat16", "float64")):
        run(program, with_epilogues(dtype, few, (*LAYOUTS[:2], "shifted"), i), OPPOSITE)
        run(program, with_epilogues(dtype, few, LAYOUTS[1:2], i + 1), "special")


CORES = (("float32", "tf32"), ("bfloat16", "ieee"), ("float16", "ieee"))
FIRST = [z for z in (*SMALL, *CORNERS, *NETWORK, *TILES) if algorithm(z) == "first_layer"]


@pytest.mark.parametrize("dtype, precision", CORES)
def test_first_layers_on_the_tensor_cores(program, dtype, precision):
    kind = (dtype, precision, "first_layer_cores")
    fits = [z for z in FIRST if dtype != "float32" or z.r < 11]  # four bytes each are too many weights
    run(program, [line("forward", kind, layout, z, **epilogue("forward", dtype, i))
                  for i, (z, layout) in enumerate((z, layout) for z in fits for layout in LAYOUTS)], OPPOSITE)
    run(program, [line("forward", kind, layout, z) for z in FIRST[:9] for layout in LAYOUTS[:2]], "special")
    several = [replace(z, n=3) for z in FIRST[:9]]
    run(program, [line("forward", kind, layout, z) for z in several for layout in LAYOUTS[:2]], "images")


@pytest.mark.parametrize("pass_name", PASSES[:2])
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(program, pass_name):
    several = [replace(z, n=3) for z in (*SMALL, *CORNERS[-30:])]
    for dtype in ("float32", "float16"):
        run(program, lines(pass_name, dtype, several, LAYOUTS[:2]), "images")


@pytest.mark.parametrize("pass_name", PASSES)
def test_infinity_and_nan_show_where_they_are_read_and_nowhere_else(program, pass_name):
    for dtype in ("float32", "bfloat16", "float64"):
        run(program, lines(pass_name, dtype, SMALL + CORNERS, LAYOUTS[:2]), "special")


def test_random_problems(program):
    """Strides, dilations, paddings, groups and multipliers at random, the same at every run."""
    draw = random.Random(11)
    found = []
    while len(found) < 240:
        groups = draw.choice((1, 2, 3, 8, 21, 32))
        c = draw.choice((1, 1, 2, 4)) * groups
        k = draw.choice((1, 1, 2, 5, 8)) * groups
        taps = draw.choice((3, 5, draw.randint(1, 6)))
        stride = draw.randint(1, 3)
        even = draw.random() < 0.5
        z = Problem("random", draw.randint(1, 2), c, draw.randint(1, 17), draw.randint(1, 26), k, taps,
                    taps if even else draw.randint(1, 4), (stride, stride if even else draw.randint(1, 3)),
                    tuple(draw.randint(0, 4) for _ in range(4)), (1, 1) if even else (draw.randint(1, 3), 1), groups)
        if z.p > 0 and z.q > 0 and z.h + sum(z.padding[:2]) > z.dilation[0] * (z.r - 1) and algorithm(z):
            found += lines(draw.choice(PASSES), draw.choice(("float32", "bfloat16")), [z], [draw.choice(LAYOUTS)])
    run(program, found, OPPOSITE)


PLANTED = {
    "right": ("window/window.cuh", "", ""),
    "no_wait_for_the_box": ("window/window.cuh", "wait_copies<0>();", ""),
    "no_barrier_behind_the_box": ("window/window.cuh", "        wait_copies<0>();\n        barrier();",
                                  "wait_copies<0>();"),
    "chunks_in_one_another's_place": ("window/window.cuh", "if (c > 0) barrier();", ""),
    "one_row_too_many": ("window/box.cuh", "uint32_t(row) < uint32_t(source.h)", "uint32_t(row) <= uint32_t(source.h)"),
    "one_column_too_many": ("window/box.cuh", "uint32_t(column) < uint32_t(source.w)",
                            "uint32_t(column) <= uint32_t(source.w)"),
    "a_copy_too_few_is_waited_for": ("window/window_grad.cuh", "wait_copies<1>();", "wait_copies<2>();"),
    "no_barrier_behind_a_tile": ("window/window_grad.cuh", "barrier();  // all threads", "// all threads"),
    "a_lane_is_lost": ("window/window_grad.cuh", "l < p.lanes; ++l", "l + 1 < p.lanes; ++l"),
}


OFTEN = "right no_wait_for_the_box one_column_too_many a_lane_is_lost"


@pytest.mark.parametrize("name", planted(PLANTED, OFTEN))
def test_a_planted_error_is_found(tmp_path, name):
    failed, words = finds(tmp_path, "planted_window.cpp", PLANTED[name], [*FLAGS, "-O0"])
    assert failed == (name != "right"), words
