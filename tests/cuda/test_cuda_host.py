"""The CUDA kernels without a GPU: their own source compiled by g++, each thread a fibre (tests/cuda_host).

Operands are small integers, so that every sum is exact and one wrong index or one early read shows. Each problem runs
with copies that land at once and as late as they may, with warps in both orders, under ASan and UBSan. It cannot show
speed, registers, or races between two barriers. The tensor cores' rounding is emulated as others have found it by tests
of devices; sums of real numbers have to be within float32's bounds with it.
"""

import random
from dataclasses import replace

import pytest

from fibres import (
    FLAGS,
    LAYOUTS,
    OPPOSITE,
    PASSES,
    accurate,
    epilogue,
    finds,
    halved,
    in_halves,
    line,
    needs_compiler,
    planted,
    run,
)
from problems import CORNERS, NETWORK, SMALL, Problem

pytestmark = needs_compiler
# Every kind of arithmetic: dtype, precision, algorithm.
KINDS = (
    ("float32", "ieee", "multiply_add"),
    ("float32", "tf32", "tensor_cores"),
    ("float32", "ieee", "three_tf32"),
    ("float32", "ieee", "direct"),
    ("float64", "ieee", "multiply_add"),
    ("float64", "ieee", "tensor_cores"),
    ("float64", "ieee", "direct"),
    ("bfloat16", "ieee", "multiply_add"),
    ("bfloat16", "ieee", "tensor_cores"),
    ("bfloat16", "ieee", "direct"),
    ("float16", "ieee", "multiply_add"),
    ("float16", "ieee", "tensor_cores"),
    ("float16", "ieee", "direct"),
    ("complex64", "ieee", "multiply_add"),
    ("complex64", "ieee", "direct"),
    ("complex128", "ieee", "tensor_cores"),
)
# More channels and positions than one tile has; sums of several steps, chains and splits.
TILES = (
    Problem("two_tiles_each_way", 2, 20, 9, 11, 71, 3, 3, padding=(1, 1, 1, 1)),
    Problem("large_tile", 1, 9, 20, 23, 100, 2, 3, (1, 1), (1, 0, 1, 1)),
    Problem("large_tile_of_inputs", 1, 70, 19, 17, 5, 2, 3, padding=(1, 0, 1, 1)),
    Problem("long_sum", 1, 256, 4, 5, 12, 3, 3, padding=(1, 1, 1, 1)),
    Problem("long_sum_strided", 2, 12, 7, 5, 260, 3, 4, (2, 1), (1, 1, 1, 1)),
    Problem("many_positions", 3, 5, 29, 31, 4, 2, 2),
    Problem("vectors_are_written", 2, 16, 8, 12, 24, 3, 2, padding=(1, 1, 1, 0)),
    Problem("vectors_strided", 2, 32, 9, 10, 24, 3, 3, (2, 2), (1, 1, 1, 1), (1, 2), 2),
)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_kind_of_arithmetic_in_every_layout(program, pass_name, kind, half):
    run(program, [line(pass_name, kind, layout, z, **epilogue(pass_name, kind[0], i))
                  for i, (z, layout) in enumerate(halved(SMALL, LAYOUTS, half)) if accurate(pass_name, kind, z)])


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    "kind", [KINDS[0], KINDS[8], pytest.param(KINDS[1], marks=pytest.mark.exhaustive)], ids="-".join
)
def test_the_corners(program, pass_name, kind, half):
    run(program, [line(pass_name, kind, layout, z) for z, layout in halved(CORNERS + NETWORK, LAYOUTS[:2], half)
                  if z.stride != (70, 61) or pass_name == "forward"], OPPOSITE)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_the_direct_kernels_in_the_corners(program, pass_name, half):
    run(program, [line(pass_name, KINDS[3], layout, z) for z, layout in halved(CORNERS, LAYOUTS[:2], half)], OPPOSITE)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES[:2])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(program, pass_name, kind, half):
    """Of real numbers, whose sums are rounded: their order, too, is the same. Nor do addresses change it."""
    many = [replace(z, n=3) for z in (SMALL[0], SMALL[2], TILES[0], TILES[-1])]
    run(program, [line(pass_name, kind, layout, z) for z, layout in halved(many, LAYOUTS[:2], half)
                  if accurate(pass_name, kind, z)], "images")


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_infinity_and_nan_show_where_they_are_read_and_nowhere_else(program, pass_name, half):
    """Complex numbers aside, whose parts mix."""
    kinds = [kind for kind in KINDS if not kind[0].startswith("complex")]
    run(program, [line(pass_name, kind, layout, z) for i, kind in enumerate(kinds)
                  for z, layout in halved((*SMALL, TILES[-1]), LAYOUTS[:2], (half + i) % 2)
                  if accurate(pass_name, kind, z)], "special")


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_three_tf32_forms_again_what_is_not_finite(program, pass_name, half):
    """Of infinities and of numbers so large that their parts alone overflow, also where the sum is split."""
    behind = {"bias": 1, "residual": 1, "activation": "relu"} if pass_name == "forward" else {}
    lines = [line(pass_name, KINDS[2], layout, z, **behind)
             for z, layout in halved((*SMALL, *TILES[:1], *TILES[3:5], TILES[-1]), LAYOUTS, half)
             if accurate(pass_name, KINDS[2], z)]
    for what in ("special", "huge"):
        run(program, lines, what)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_several_tiles_chains_and_splits(program, pass_name, half):
    def large(z, kind):  # where the plan does not want them, for there are few
        gathers = pass_name != "weight_grad" and "large_tile" in z.name and kind[0] in ("float32", "bfloat16")
        return {"tile_m": 128, "tile_n": 128} if gathers else {}

    lines = [line(pass_name, kind, layout, z, **large(z, kind)) for z, layout in halved(TILES, LAYOUTS[:2], half)
             for kind in (*KINDS[:3], *KINDS[7:9], KINDS[5])
             if accurate(pass_name, kind, z) and (kind[2] != "multiply_add" or kind[0] == "float32")]
    verdicts = run(program, lines, "0123" if half else OPPOSITE)
    assert any("split" in v for v in verdicts), verdicts
    for tile in ("large", "narrow"):
        assert any(tile in v for v in verdicts), verdicts


@in_halves
def test_epilogues_of_several_tiles(program, half):
    """Every activation with every kind of arithmetic, in vectors and alone, split and whole, infinities among them."""
    problems = (TILES[0], TILES[3], TILES[6])
    for check in (OPPOSITE, "special"):
        lines = [line("forward", kind, layout, z, **epilogue("forward", kind[0], i + j))
                 for i, kind in enumerate(KINDS) for j, z in enumerate(problems)
                 for layout in LAYOUTS[(half + i + j) % 2:2:2]
                 if accurate("forward", kind, z) and (check == OPPOSITE or not kind[0].startswith("complex"))]
        verdicts = run(program, lines, check)
        assert any("split" in v for v in verdicts), verdicts


def test_random_problems(program):
    """What nobody has thought of: strides, dilations, paddings and groups at random, the same at every run."""
    draw = random.Random(7)
    lines = []
    while len(lines) < 240:
        groups, kind, pass_name = draw.choice((1, 1, 2, 3)), draw.choice(KINDS), draw.choice(PASSES)
        z = Problem("random", draw.randint(1, 3), groups * draw.randint(1, 9), draw.randint(1, 13), draw.randint(1, 13),
                    groups * draw.randint(1, 9), draw.randint(1, 4), draw.randint(1, 4),
                    (draw.randint(1, 4), draw.randint(1, 4)), tuple(draw.randint(0, 3) for _ in range(4)),
                    (draw.randint(1, 3), draw.randint(1, 3)), groups)
        exists = z.p > 0 and z.q > 0 and z.h + sum(z.padding[:2]) > z.dilation[0] * (z.r - 1)
        if exists and accurate(pass_name, kind, z):
            lines.append(line(pass_name, kind, draw.choice(LAYOUTS), z))
    run(program, lines, OPPOSITE)


# Of sums of 48 to 128 products float32 by parts is nearest to its bound.
LENGTHS = (32, 48, 56, 64, 96, 128)


def of_length(pass_name: str, length: int, positions=(2, 4, 16), rows=64) -> Problem:
    """A problem all of whose sums have so many products."""
    n, h, w = positions
    if pass_name == "weight_grad":
        return Problem(f"sums_of_{length}", length, rows, 1, 1, n * h * w, 1, 1)
    c, k = (length, rows) if pass_name == "forward" else (rows, length)
    return Problem(f"sums_of_{length}", n, c, h, w, k, 1, 1)


# A long sum of several taps and images, whose products outside the padding number the more.
LONG = {
    "forward": Problem("long", 1, 512, 3, 4, 40, 3, 3, padding=(1, 1, 1, 1)),
    "input_grad": Problem("long", 1, 40, 3, 4, 512, 3, 3, padding=(1, 1, 1, 1)),
    "weight_grad": Problem("long", 64, 24, 5, 6, 20, 2, 2, padding=(0, 1, 0, 1)),
}


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_real_sums_of_every_kind_are_within_their_bound(program, pass_name, half):
    """Positive numbers, which show a bias, and such of both signs; on the tensor cores as Ampere and Hopper round."""
    asked = [(kind, capability) for kind in KINDS if not kind[0].startswith("complex")
             for capability in ((80, 90) if kind[2] in ("tensor_cores", "three_tf32") else (80,))]
    # Long sums of every second one, short sums of the others.
    problems = ((LONG[pass_name],), (of_length(pass_name, 1), of_length(pass_name, 75)))
    run(program, [line(pass_name, kind, "channels_last", z, capability=capability)
                  for i, (kind, capability) in enumerate(asked) for z in problems[(i + half) % 2]
                  if accurate(pass_name, kind, z)], "accuracy")


@pytest.mark.parametrize("pass_name", PASSES[:2])
def test_bits_do_not_follow_from_the_blocks(program, pass_name):
    """Sums in parts, of one block or of one each, in every tile."""
    z = Problem("in_parts", 2, 1040, 3, 4, 72, 1, 1)
    z = z if pass_name == "forward" else replace(z, c=z.k, k=z.c)
    expected = {("bfloat16", "ieee", "tensor_cores"): 6, ("float32", "tf32", "tensor_cores"): 6,
                ("float16", "ieee", "tensor_cores"): 3, ("float32", "ieee", "three_tf32"): 3,
                ("float32", "ieee", "multiply_add"): 3}
    for kind, ways in expected.items():
        (verdict,) = run(program, [line(pass_name, kind, "channels_last", z)], "images")
        assert verdict.endswith(f"in blocks of {ways} kinds"), verdict


@pytest.mark.parametrize("pass_name", PASSES)
def test_three_tf32_is_as_accurate_as_float32_in_sums_of_every_length(program, pass_name):
    run(program, [line(pass_name, KINDS[2], "channels_last", of_length(pass_name, length), capability=capability)
                  for length in LENGTHS for capability in (80, 90)], "accuracy")


@pytest.mark.parametrize("pass_name", PASSES)
def test_three_tf32_loses_no_number_that_float32_keeps(program, pass_name):
    """Magnitudes from 1e-45 to 1e38 in one sum."""
    problems = [of_length(pass_name, 64), *([SMALL[1]] if accurate(pass_name, KINDS[2], SMALL[1]) else ())]
    run(program, [line(pass_name, KINDS[2], layout, z) for z in problems for layout in LAYOUTS[:2]], "magnitudes")


# ---- the shim itself: an error that is put into the kernels has to be found

PLANTED = {
    "no_wait_for_copies": ("igemm.cuh", "wait_copies<Math::kStages - 2>();", ""),
    "one_copy_too_few_is_waited_for": ("igemm.cuh", "wait_copies<Math::kStages - 2>();",
                                       "wait_copies<Math::kStages - 1>();"),
    "no_barrier": ("igemm.cuh", "      barrier();  // the step is complete", "      //"),
    "sums_overwrite_operands": ("igemm.cuh", "    barrier();  // all have done", "    //"),
    "sums_are_read_early": ("igemm.cuh", "      barrier();  // all sums lie there", "      //"),
    "a_copy_is_read_early": ("pack.cuh", "  barrier();\n", ""),
    "a_copy_without_its_tail": ("pack.cuh", "if (position >= count ||", "if (position + 1 >= count ||"),
    "one_row_too_many": ("coordinates.cuh", "d.high < length ?", "d.high <= length ?"),
    "one_column_too_many": ("coordinates.cuh", "uint32_t(a.w + b.w) < uint32_t(w)",
                            "uint32_t(a.w + b.w) <= uint32_t(w)"),
    "a_stage_too_few": ("igemm.cuh", "kBytes = Math::kStages * kStage",
                        "kBytes = (Math::kStages - 1) * kStage"),
    "a_residual_is_left_out": ("epilogue.cuh", "    if (adds) narrow(", "    if (false) narrow("),
    "another_residual": ("epilogue.cuh", "intptr_t>(to) + residual", "intptr_t>(to + 1) + residual"),
    "no_bounds": ("epilogue.cuh", "other)), &value);\n    if (activation == Activation::None)",
                  "other)), &value);\n    if (activation == Activation::Clamp)"),
    "chains_are_lost": ("igemm.cuh", "    sums.close_chains();\n    store", "    store"),
}


# Those that only the rounding shows.
PLANTED_IN_PARTS = {
    "nothing": ("math.cuh", "", ""),
    "longer_chains": ("math.cuh", "kChain = kBlockK;", "kChain = 4 * kBlockK;"),
    "longer_chains_of_bfloat16": ("plan.h", "kCudaLongestChain = 768", "kCudaLongestChain = 1536"),
    "a_small_product_is_left_out": ("math.cuh", "    multiply_tf32(sum, a.large, b.small);\n", ""),
    "parts_of_tf32_are_not_scaled": ("math.cuh", "float_of(bits) * kPartScale", "float_of(bits)"),
    "they_are_scaled_too_little": ("../common/parts.h", "kPartScale = 0x1p24f, kSumScale = 0x1p-48f",
                                   "kPartScale = 0x1p13f, kSumScale = 0x1p-26f"),
    "a_product_of_bfloat16_is_left_out": ("../common/parts.h", "{{2, 0}, {0, 2}, {1, 1},", "{{0, 2}, {0, 2}, {1, 1},"),
    "the_third_part_is_the_second": ("wgmma/pack.cuh", "i < part; ++i)", "i < part && i < 1; ++i)"),
}


OFTEN = "no_wait_for_copies no_barrier a_copy_without_its_tail one_row_too_many"


@pytest.mark.parametrize("name", planted(PLANTED, OFTEN))
def test_a_planted_error_is_found(tmp_path, name):
    assert finds(tmp_path, "planted.cpp", PLANTED[name], FLAGS)[0], f"{name} was not found"


@pytest.mark.parametrize("name", planted(PLANTED_IN_PARTS, "nothing longer_chains a_product_of_bfloat16_is_left_out"))
def test_a_planted_loss_of_accuracy_is_found(tmp_path, name):
    flags = [*(f for f in FLAGS if "sanitize" not in f), "-Wno-psabi", "-Wno-maybe-uninitialized"]
    failed, words = finds(tmp_path, "planted_accuracy.cpp", PLANTED_IN_PARTS[name], flags)
    assert failed == (name != "nothing"), words
