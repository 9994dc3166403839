"""Errors that the fuzzer of plans has to find: each is planted in a copy of one plan source.

python tests/fuzz/planted_plans.py [NAME ...]
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fuzz_build import BUILD, PLANS_FLAGS, ROOT, build, chosen, compiler, object_name, objects_with


@dataclass(frozen=True)
class Planted:
    name: str
    file: str  # a plan source below csrc
    old: str
    new: str
    kind: str = "plain"  # "address": seen by the sanitizers alone


ALL = (
    Planted(
        "a_tile_of_no_columns", "cpu/gemm/plan_windows.cpp",
        "kFewColumns && own->tile_w > 1) {", "kFewColumns) {",
    ),
    Planted(
        "a_loop_without_end", "cpu/gemm/plan_panels.cpp",
        "i < 2 * kEnoughTasks && share && tasks() < kEnoughTasks && tile_rows() > 1", "share && tasks() < kEnoughTasks",
    ),
    Planted(
        "a_product_that_overflows", "cpu/gemm/plan_windows.cpp",
        "plan->tasks = product(tiles, own.parts_m);", "plan->tasks = tiles * own.parts_m * kHuge;", "address",
    ),
    Planted(
        "a_kernel_of_any_length", "cpu/grouped/plan.cpp",
        "if (z.r > 4096 / z.s) return", "if (false) return",
    ),
    Planted(
        "tasks_that_leave_out_the_last", "cpu/gemm/plan_windows.cpp",
        "ceil_div(max_of(1, horizontal.longest_count()), own.tile_w));",
        "max_of(1, horizontal.longest_count() / own.tile_w));",
    ),
    Planted(
        "more_splits_than_outputs", "cpu/winograd/plan.cpp",
        "splits_of_sums(ceil_div(kEnoughTasks, tasks), w.blocks,",
        "splits_of_sums(ceil_div(kEnoughTasks, tasks), kHuge,",
    ),
    Planted(
        "a_block_of_positions_too_short", "cpu/gemm/plan_panels.cpp",
        "c.block = ceil_div(positions, c.blocks);", "c.block = positions / c.blocks;",
    ),
    Planted(
        "rows_of_weights_without_room", "cpu/gemm/plan_panels.cpp",
        "own->task_rows = ceil_div(slices, parts_m) * panel_m;",
        "own->task_rows = slices / parts_m * panel_m;",
    ),
    Planted(
        "a_workspace_for_the_whole_batch", "cpu/gemm/plan_pairs.cpp",
        "share && product(tiles, tile_bytes) <= product(blocks, block_bytes)) {", "share) {",
    ),
    Planted(
        "a_block_of_too_many_channels", "cpu/gemm/plan_pairs.cpp",
        "ceil_div(z.group_k(), ceil_div(z.group_k(), kDotBlockRows));", "kDotBlockRows;",
    ),
    Planted(
        "a_line_of_too_many_parts", "cpu/gemm/plan_pairs.cpp",
        "own.splits = min_of(blocks, wanted);", "own.splits = wanted;",
    ),
    Planted(
        "a_schedule_without_memory", "cpu/gemm/plan_pairs.cpp",
        "own.channel_pitch = part_bytes() / 2;", "own.channel_pitch = part_bytes() / 4;",
    ),
    Planted(
        "scratch_of_one_group", "cpu/gemm/plan_windows.cpp",
        "windows_scratch<decltype(number)>(own, scratch);",
        "WindowsPlan one = own;\n    one.task_groups = 1;\n    windows_scratch<decltype(number)>(one, scratch);",
    ),
    Planted(
        "a_workspace_of_one_group", "cpu/winograd/plan.cpp",
        "\n  lay_out();\n}", "\n  lay_out();\n  plan->workspace_bytes /= z.groups;\n}",
    ),
    Planted(
        "sums_without_a_limit", "cpu/gemm/plan_panels.cpp",
        "splits_of_sums(ceil_div(kEnoughTasks, blocks), units, sum_bytes)",
        "splits_of_sums(ceil_div(kEnoughTasks, blocks), units, 1)",
    ),
    Planted(
        "rows_of_a_last_tile_left_out", "cpu/depthwise/plan.cpp",
        "own.row_tiles = ceil_div(g.vertical.output, own.tile_h);",
        "own.row_tiles = max_of(1, g.vertical.output / own.tile_h);",
    ),
    Planted(
        "channels_that_no_vector_holds", "cpu/depthwise/plan.cpp",
        "own->tile_c = own->source_in_place ? g.padded_c() : packed_channels(g);",
        "own->tile_c = own->source_in_place ? g.z.c : packed_channels(g);",
    ),
    Planted(
        "an_algorithm_by_a_cache", "cpu/gemm/plan_windows.cpp",
        "const int64_t most = !strided ? kMostWeights :", "const int64_t most = !strided ? machine.caches.l2_bytes :",
    ),
    Planted(
        "chains_by_a_cache", "cpu/gemm/plan_panels.cpp",
        "product(z.c, z.r, z.s) <= kMostJoined;", "product(z.c, z.r, z.s) * 64 <= machine.caches.l1_bytes;",
    ),
    Planted(
        "parts_that_only_small_batches_have", "cpu/winograd/plan.cpp",
        "if (z.precision == Precision::Ieee) return", "if (z.precision == Precision::Ieee || z.n > 9) return",
    ),
    Planted(
        "blocks_of_one_phase", "cuda/plan.cpp",
        "z.groups, shape.phases(), plan.splits);", "z.groups, plan.splits);",
    ),
    Planted(
        "a_box_that_is_too_large", "cuda/window/plan.cpp",
        "while (!t.fits(kMostShared) ||", "while (!t.fits(2 * kMostShared) ||",
    ),
    Planted(
        "steps_beyond_32_bits", "cuda/plan.cpp",
        "if (counts_steps && plan.steps > kMostBlocks)", "if (counts_steps && plan.steps < 0)",
    ),
    Planted(
        "parts_without_memory", "cuda/plan.cpp",
        "plan.partial_offset + (plan.splits > 1 ? product(plan.splits, result_bytes) : 0);", "plan.partial_offset;",
    ),
    Planted(
        "vectors_that_no_address_has", "cuda/plan.cpp",
        "one_phase && to.stride[3] == 1 && reinterpret_cast<uintptr_t>(to.data) % 16 == 0 &&",
        "one_phase && to.stride[3] == 1 &&",
    ),
    Planted(
        "copies_across_the_end_of_a_block", "cuda/window/plan.cpp",
        "channels % vector == 0 && step % vector == 0", "channels % vector == 0",
    ),
    Planted(
        "rows_of_another_group", "cuda/wgmma/plan.cpp",
        "z.groups == 1 || wgmma_padded(z, z.group_k()) == z.group_k()", "true",
    ),
    Planted("parts_by_the_batch", "cuda/wgmma/plan.cpp", "image.n = 1;", "image.n = z.n;"),
    Planted(
        "a_block_of_parts_without_registers", "cuda/plan.cpp", "if (!forms_all_parts(z, plan)) {", "if (z.n < 0) {",
    ),
    Planted(
        "a_wide_tile_of_long_sums", "cuda/wgmma/plan.cpp",
        "tile > kWgmmaMostChained && order.chain_steps < order.part_steps)", "false)",
    ),
    Planted(
        "an_extent_that_overflows", "cuda/plan.cpp",
        "max_of(product(z.r, z.dilation_h), product(z.s, z.dilation_w));",
        "max_of(z.r * z.dilation_h, z.s * z.dilation_w);",
        "address",
    ),
)  # fmt: skip


def plant(planted: Planted) -> Path:
    """Builds the driver with this error, of which one file is compiled."""
    folder = BUILD / "planted_plans" / planted.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("torch", "python"))
    file = folder / "csrc" / planted.file
    text = file.read_text()
    if text.count(planted.old) != 1:
        raise ValueError(f"{planted.name}: {planted.old!r} stands {text.count(planted.old)} times in {planted.file}")
    file.write_text(text.replace(planted.old, planted.new))
    right = build(planted.kind, driver="plans") / "plans_objects"
    changed = folder / object_name(file, folder)
    compile_and_link = f"{compiler()} {PLANS_FLAGS[planted.kind]}"
    objects = objects_with(changed, right, "plans")
    for words in (["-c", file, "-o", changed], [*objects, "-o", folder / "plans"]):
        subprocess.run([*shlex.split(compile_and_link), *map(str, words)], check=True)
    return folder / "plans"


def find(planted: Planted, seconds: int = 60) -> str | None:
    """What the fuzzer says of the error; None where it does not find it."""
    child = subprocess.run(
        [plant(planted), "--seconds", str(seconds), "--failures", "1"], capture_output=True, text=True
    )
    return child.stdout if child.returncode == 1 and "FAILED" in child.stdout else None


if __name__ == "__main__":
    missed = 0
    for one in chosen(ALL, sys.argv[1:]):
        said = find(one)
        missed += said is None
        print(f"{one.name}: {'MISSED' if said is None else said.strip()}\n", flush=True)
    sys.exit(f"{missed} missed" if missed else 0)
