"""The algorithm `wgmma` without a GPU: TMA, its barriers and warpgroups' products on fibres (tests/cuda_host).

As in test_cuda_host.py: operands are small integers and every sum has to be exact. The emulation is written from the
documents of PTX and the driver; errors that are put into the kernels have to be found by it.
"""

import random
import subprocess
from dataclasses import replace

import pytest

from fibres import (
    FLAGS,
    OPPOSITE,
    PASSES,
    accurate,
    epilogue,
    finds,
    finds_and_prints,
    halved,
    in_halves,
    line,
    needs_compiler,
    planted,
    run,
)
from problems import CORNERS, SMALL, Problem
from runner_lines import ACTIVATIONS
from test_cuda_host import LENGTHS, LONG, TILES, of_length

pytestmark = needs_compiler
KINDS = (
    ("bfloat16", "ieee", "wgmma"),
    ("float16", "ieee", "wgmma"),
    ("float32", "tf32", "wgmma"),
    ("float32", "ieee", "wgmma"),
)
# Several tiles for a block, several steps of a tap, tails of steps, chains that end within a tap, groups in place.
LARGE = (
    Problem("tiles_and_taps", 3, 72, 11, 13, 136, 3, 2, padding=(1, 1, 0, 1)),
    Problem("tail_of_a_step", 1, 200, 6, 7, 72, 1, 3, (1, 2), (0, 0, 1, 1)),
    Problem("groups_in_place", 2, 160, 5, 6, 96, 2, 2, dilation=(2, 1), groups=2),
    Problem("phases", 2, 24, 13, 12, 40, 4, 3, (2, 3), (1, 1, 1, 1)),
    Problem("split", 1, 264, 4, 5, 264, 3, 3, padding=(1, 1, 1, 1)),
    Problem("positions", 2, 24, 23, 29, 40, 1, 2),
)
# A phase of input_grad has fewer taps, and so fewer parts, than another; sums of one chain in tiles of every width.
CUT = {"forward": Problem("cut", 2, 520, 3, 4, 24, 3, 3, padding=(1, 1, 1, 1)),
       "input_grad": Problem("cut", 2, 24, 5, 6, 2080, 3, 1, (2, 1), (1, 1, 0, 0))}
ONE_CHAIN = {"forward": Problem("one_chain", 2, 72, 5, 6, 232, 1, 3),
             "input_grad": Problem("one_chain", 2, 232, 5, 6, 72, 1, 3)}
SPLIT_IN_POSITIONS = Problem("positions_are_split", 6, 16, 15, 14, 24, 1, 1)


def kinds_of(pass_name):
    """weight_grad is for what is multiplied in 16 bits."""
    return [kind for kind in KINDS if pass_name != "weight_grad" or kind[1] != "tf32"]


def lines_of(pass_name, kind, problems, layouts, **rest):
    return [line(pass_name, kind, layout, z, capability=90, **rest) for z in problems for layout in layouts
            if accurate(pass_name, kind, z)]


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_every_kind_of_number_in_every_layout(program, pass_name, half):
    layouts = ("contiguous", "channels_last", "mixed", "sliced", "transposed", "shifted")
    lines = [one for i, kind in enumerate(kinds_of(pass_name))
             for j, (z, layout) in enumerate(halved(SMALL, layouts, (half + i) % 2))
             for one in lines_of(pass_name, kind, (z,), (layout,), **epilogue(pass_name, kind[0], i + j))]
    run(program, lines, OPPOSITE)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_several_tiles_steps_and_splits(program, pass_name, half):
    verdicts = run(program, lines_of(pass_name, KINDS[0], LARGE, ("channels_last",)), "0123" if half else OPPOSITE)
    lines = [one for i, kind in enumerate(kinds_of(pass_name)[1:])  # of each kind every second problem
             for one in lines_of(pass_name, kind, LARGE[(half + i) % 2::2], ("channels_last",))]
    lines += lines_of(pass_name, KINDS[0], (*TILES[-2:], *LARGE[:3])[half::2], ("contiguous",), tile_m=128, tile_n=128)
    verdicts += run(program, lines, OPPOSITE)
    assert any("split" in v for v in verdicts) and any("large" in v for v in verdicts), verdicts


@in_halves
def test_epilogues_of_several_tiles(program, half):
    """In vectors and alone, where a sum is one block's and where reduce() adds its parts, infinities among them."""
    problems = (replace(LARGE[0], c=24), LARGE[1], LARGE[4])
    for check, kind in ((OPPOSITE, KINDS[half]), ("special", KINDS[2 + half])):
        lines = [one for i in range(2 * len(ACTIVATIONS)) for z in (problems[i % 3],)
                 for layout in ("channels_last", "contiguous", "shifted")[(half + i) % 2::2]
                 for one in lines_of("forward", kind, (z,), (layout,), splits=1 + i % 3 // 2,
                                     **epilogue("forward", kind[0], i))]
        verdicts = run(program, lines, check)
        assert any("split" in v for v in verdicts), verdicts


WIDE = (replace(LARGE[0], c=24, k=300), replace(LARGE[1], k=520), LARGE[2], LARGE[3], LARGE[5])


@pytest.mark.parametrize("pass_name", PASSES[:2])
def test_the_widest_tile(program, pass_name):
    """Sums of its threads are one chain; its parts are other blocks'."""
    problems = [z if pass_name == "forward" else replace(z, c=z.k, k=z.c) for z in WIDE]
    asked = dict(tile_m=256, tile_n=128)
    lines = lines_of(pass_name, KINDS[0], problems, ("channels_last",), **asked)
    lines += lines_of(pass_name, KINDS[1], problems[4:], ("channels_last", "contiguous"), **asked)
    lines += lines_of(pass_name, KINDS[0], problems[1:3], ("contiguous",), splits=3, **asked)
    verdicts = run(program, lines, OPPOSITE)
    assert all("wide" in v for v in verdicts) and any("split" in v for v in verdicts), verdicts


def test_the_widest_tile_says_for_which_sums_it_is(program):
    asked = dict(tile_m=256, tile_n=128)
    for kind, c, most in ((KINDS[0], 2056, 2048), (KINDS[1], 264, 256)):
        z = Problem("too_long", 1, c, 3, 4, 40, 1, 1)
        (refused,) = lines_of("forward", kind, [z], ("channels_last",), splits=1, **asked)
        words = subprocess.run([str(program), *refused.split()], capture_output=True, text=True).stdout
        assert words.startswith(f"declined: wgmma: a tile of 256 x 128 is for sums of up to {most} products")
        run(program, lines_of("forward", kind, [z], ("channels_last",), splits=2, **asked), OPPOSITE)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES)
def test_the_corners(program, pass_name, half):
    problems = [z for z in CORNERS if z.macs < 20000 and max(z.stride) <= 8 and
                (pass_name != "input_grad" or z.stride[0] * z.stride[1] <= 16)]
    assert len(problems) > 15
    lines = [one for z, layout in halved(problems, ("contiguous", "channels_last"), half)
             for one in lines_of(pass_name, KINDS[0], (z,), (layout,))]
    run(program, lines, OPPOSITE)


@in_halves
@pytest.mark.parametrize("pass_name", PASSES[:2])
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(program, pass_name, half):
    many = tuple(replace(z, n=2) for z in (SMALL[0], SMALL[2], LARGE[1]))
    lines = [one for i, kind in enumerate(KINDS)
             for z, layout in halved(many, ("contiguous", "channels_last"), (half + i) % 2)
             for one in lines_of(pass_name, kind, (z,), (layout,))]
    lines += lines_of(pass_name, KINDS[2], [replace(LARGE[4], n=2)], ("contiguous",)) if half else []
    run(program, lines, "images")


@pytest.mark.parametrize("pass_name", PASSES[:2])
def test_bits_do_not_follow_from_the_blocks(program, pass_name):
    """Sums in parts, of one block or of one each, and sums of one chain, in every tile."""
    lines = [one for kind in KINDS for one in lines_of(pass_name, kind, [CUT[pass_name]], ("channels_last",))]
    verdicts = run(program, lines + lines_of(pass_name, KINDS[0], [ONE_CHAIN[pass_name]], ("channels_last",)), "images")
    assert sorted(v.split(" in ")[-1] for v in verdicts) == [f"blocks of {n} kinds" for n in (3, 3, 3, 4, 4)], verdicts


@pytest.mark.parametrize("pass_name", PASSES)
def test_infinity_and_nan_show_where_they_are_read_and_nowhere_else(program, pass_name):
    """Also with groups, whose neighbours share a step, and of float32 in parts, where 0 Inf is formed again."""
    problems = (*SMALL, LARGE[2])
    lines = [one for kind in kinds_of(pass_name)
             for one in lines_of(pass_name, kind, problems, ("contiguous", "channels_last"))]
    split = {"forward": LARGE[4], "weight_grad": SPLIT_IN_POSITIONS}.get(pass_name)
    if split:  # the parts of sums are added up elsewhere
        lines += lines_of(pass_name, KINDS[3], [split], ("channels_last",))
    run(program, lines, "special")


@pytest.mark.parametrize("pass_name", PASSES)
def test_parts_of_the_largest_numbers_overflow_and_are_formed_again(program, pass_name):
    problems = (*SMALL, LARGE[2], SPLIT_IN_POSITIONS if pass_name == "weight_grad" else LARGE[4])
    run(program, lines_of(pass_name, KINDS[3], problems, ("channels_last",)), "huge")


@pytest.mark.parametrize("pass_name", PASSES)
def test_real_sums_of_every_kind_are_within_their_bound(program, pass_name):
    """The tensor cores cut off what they add: of float32 in parts, in sums of every length."""
    lines = lines_of(pass_name, KINDS[3], [of_length(pass_name, length) for length in LENGTHS], ("channels_last",))
    for kind in kinds_of(pass_name):
        lines += lines_of(pass_name, kind, (of_length(pass_name, 75), LONG[pass_name]), ("channels_last",))
    run(program, lines, "accuracy")


@pytest.mark.parametrize("pass_name", PASSES)
def test_float32_in_parts_loses_no_number_that_float32_keeps(program, pass_name):
    """Magnitudes from 1e-45 to 1e38 in one sum; positions beyond the last image are another part's."""
    problems = [of_length(pass_name, 64), LONG[pass_name], replace(of_length(pass_name, 75), stride=(2, 1))]
    run(program, lines_of(pass_name, KINDS[3], problems, ("channels_last", "contiguous")), "magnitudes")


def test_random_problems(program):
    draw = random.Random(11)
    lines = []
    while len(lines) < 80:
        groups, pass_name = draw.choice((1, 1, 2, 3)), draw.choice(PASSES)
        kind = draw.choice(kinds_of(pass_name))
        z = Problem("random", draw.randint(1, 3), groups * draw.choice((1, 5, 8, 16, 24, 70)), draw.randint(1, 13),
                    draw.randint(1, 13), groups * draw.choice((1, 7, 16, 40, 66)), draw.randint(1, 4),
                    draw.randint(1, 4), (draw.randint(1, 4), draw.randint(1, 4)),
                    tuple(draw.randint(0, 3) for _ in range(4)), (draw.randint(1, 3), draw.randint(1, 3)), groups)
        if z.p > 0 and z.q > 0 and z.h + sum(z.padding[:2]) > z.dilation[0] * (z.r - 1):
            lines += lines_of(pass_name, kind, [z], [draw.choice(("contiguous", "channels_last", "transposed"))])
    run(program, lines, OPPOSITE)


# ---- an error that is put into the kernels has to be found

PLANTED = {
    "nothing": ("wgmma/wgmma.cuh", "", ""),
    "copies_are_not_waited_for": ("wgmma/wgmma.cuh", "wait_full(shared, ring.stage, ring.parity);", ""),
    "the_use_before_is_waited_for": ("wgmma/wgmma.cuh", "wait_full(shared, ring.stage, ring.parity)",
                                     "wait_full(shared, ring.stage, ring.parity ^ 1)"),
    "the_parity_stays": ("wgmma/wgmma.cuh", "      parity ^= 1;\n", ""),
    "stages_are_filled_that_are_not_empty": ("wgmma/wgmma.cuh", "wait_empty(shared, ring.stage, ring.parity ^ 1);",
                                             ""),
    "products_are_not_waited_for": ("wgmma/wgmma.cuh", "  wait_sums(sum);\n", ""),
    "a_stage_is_given_back_too_early": ("wgmma/wgmma.cuh", "      wait_products<1>();\n", ""),
    "too_few_bytes_are_announced": ("wgmma/wgmma.cuh", "arrive_expecting(full, Shared::kStage);",
                                    "arrive_expecting(full, Shared::kStage - 16);"),
    "a_warp_of_each_group_gives_back": ("wgmma/wgmma.cuh", "thread_index() % 32 == 0) arrive",
                                        "thread_index() % 128 == 0) arrive"),
    "barriers_are_not_made_before_use": ("wgmma/wgmma.cuh", "  barrier();\n  // 65536", "  // 65536"),
    "the_ring_is_not_aligned": ("wgmma/wgmma.cuh", "(beyond == 0 ? 0 : kSwizzleBytes - beyond)", "0"),
    "another_exchange": ("wgmma/device_sm90.h", "uint64_t(1) << 62", "uint64_t(2) << 62"),
    "groups_of_rows_overlap": ("wgmma/device_sm90.h", "16, 8 * kRowBytes)", "16, 4 * kRowBytes)"),
    "the_same_k_again": ("wgmma/wgmma.cuh", "uint64_t(i) * (32 >> 4)", "uint64_t(i / 2) * (32 >> 4)"),
    "the_same_rows_of_k_again": ("wgmma/wgmma.cuh", "uint64_t(i) * (16 * kRowBytes",
                                 "uint64_t(i / 2) * (16 * kRowBytes"),
    "boxes_across_k_overlap": ("wgmma/wgmma.cuh", "i * kBoxBytes, &p.weights", "i / 2 * kBoxBytes, &p.weights"),
    "taps_of_the_phase_alone": ("wgmma/wgmma.cuh", "phase.first_tap + tap.high", "tap.high"),
    "chains_are_lost": ("wgmma/wgmma.cuh", "total[i] += chain[i]", "total[i] = chain[i]"),
    "chains_go_on": ("wgmma/wgmma.cuh", "multiply(sum, ring.stage, i == 0);", "multiply(sum, ring.stage, false);"),
    "parts_are_lost": ("wgmma/wgmma.cuh", "total[i] += part[i]", "total[i] = part[i]"),
    "a_part_has_too_many_steps": ("wgmma/wgmma.cuh", "rest < p.part_steps ? rest : p.part_steps", "p.part_steps"),
    "a_wide_tile_leaves_out_a_step": ("wgmma/wgmma.cuh", "sum_chain(total, shared, ring, tile.steps,",
                                      "sum_chain(total, shared, ring, tile.steps - 1,"),
    "a_slab_is_read_too_early": ("wgmma/wgmma.cuh", "    barrier_of(1 + group, kGroupThreads);\n    constexpr",
                                   "    constexpr"),
    "a_slab_is_overwritten": ("wgmma/wgmma.cuh", "    barrier_of(1 + group, kGroupThreads);\n  }", "  }"),
}


# What hangs says where; block, warps, stage and parity are those of planted_wgmma.cpp.
HANGS = {
    "a_stage_is_never_given_back": (("wgmma/wgmma.cuh", "  wait_sums(sum);\n  release(before);",
                                     "  wait_sums(sum);"),
                                    "block 0, warp 8 waits for stage 1 to be empty, parity 0"),
    "bytes_that_nobody_brings": (("wgmma/wgmma.cuh", "arrive_expecting(full, Shared::kStage);",
                                  "arrive_expecting(full, Shared::kStage + 16);"),
                                 "block 0, warp 5 waits for stage 0 to be full, parity 0"),
}


@pytest.mark.parametrize("name", HANGS)
def test_a_kernel_that_hangs_says_where(tmp_path, name):
    error, words = HANGS[name]
    flags = [*(f for f in FLAGS if "sanitize" not in f), "-Wno-psabi"]
    failed, said = finds(tmp_path, "planted_wgmma.cpp", error, flags)
    assert failed and f"conv_ext: a kernel hangs: {words}" in said, said


def bank_conflicts(folder, error=("wgmma/wgmma.cuh", "", "")):
    """How many lanes meet in a bank, by the kind of access."""
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]
    failed, said, printed = finds_and_prints(folder, "banks.cpp", error, flags)
    assert not failed, said
    return {name: int(ways) for name, ways in (line.split() for line in printed.splitlines())}


def test_no_two_lanes_meet_in_a_bank(tmp_path):
    found = bank_conflicts(tmp_path)
    assert len(found) == 6 and set(found.values()) == {1}, found


@pytest.mark.exhaustive
def test_lanes_that_meet_in_a_bank_are_seen(tmp_path):
    error = ("wgmma/wgmma.cuh", "channel / 2 ^ (position % 4 * 4) ^ (position % 2 * 2)", "channel / 2")
    found = bank_conflicts(tmp_path, error)
    assert found["put_along_channels"] == 4 and found["read_vectors_of_16_bits"] == 2, found


OFTEN = "nothing copies_are_not_waited_for a_stage_is_given_back_too_early the_same_rows_of_k_again"


@pytest.mark.parametrize("name", planted(PLANTED, OFTEN))
def test_a_planted_error_is_found(tmp_path, name):
    flags = [*(f for f in FLAGS if "sanitize" not in f), "-Wno-psabi"]
    failed, words = finds(tmp_path, "planted_wgmma.cpp", PLANTED[name], flags)
    assert failed == (name != "nothing"), words
