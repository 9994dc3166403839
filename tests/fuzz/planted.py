"""Errors that the fuzzer of runs has to find: each is planted in a copy of the sources, of which one file is compiled.

python tests/fuzz/planted.py [NAME ...]     needs build/kernels, which the package's build leaves behind
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fuzz_build import BUILD, DRIVER_FLAGS, ROOT, build, chosen, compiler, kernel_settings, object_name, objects_with


@dataclass(frozen=True)
class Planted:
    name: str
    file: str  # below csrc
    old: str
    new: str
    source: str  # what is compiled: a kernel source, or the file itself where it is a plan
    isa: str = "avx2"
    witness: bool = False  # the library says what it did (csrc/common/witness.h)

    @property
    def is_plan(self) -> bool:
        return Path(self.source).name.startswith("plan")


WINDOWS, GROUPED, DOT = "gemm/windows.cpp", "grouped/grouped.cpp", "gemm/pairs.cpp"
ALL = (
    Planted(
        "a_tail_off_by_one",
        "cpu/gemm/windows.h",
        "joined ? rows * t.width : t.width);",
        "joined ? rows * t.width : t.width - (t.width == 5));",
        WINDOWS,
    ),
    Planted(
        "a_missing_phase",
        "cpu/gemm/windows.h",
        "for (int64_t phase = 0; phase < op.phases(); ++phase)\n      run_phase",
        "for (int64_t phase = 0; phase < min_of(3, op.phases()); ++phase)\n      run_phase",
        WINDOWS,
    ),
    Planted("a_block_that_begins_anew", "cpu/gemm/windows.h", "a.add = !chain.begin;", "a.add = false;", WINDOWS),
    Planted(
        "the_last_bias_left_out",
        "cpu/gemm/windows.h",
        "b, group * op.group_m, op.group_m, own",
        "b, group * op.group_m, op.group_m - 1, own",
        WINDOWS,
    ),
    Planted(
        "images_beyond_the_batch",
        "cpu/gemm/windows.h",
        "t.n1 = min_of(op.z.n, t.n0 + own.images);",
        "t.n1 = t.n0 + own.images;",
        WINDOWS,
    ),
    Planted(
        "padding_that_is_not_cleared",
        "cpu/gemm/windows.h",
        "if (own.clears) memset",
        "if (own.clears && t.i0 == 0) memset",
        WINDOWS,
    ),
    Planted(
        "memory_that_threads_share",
        "cpu/gemm/windows.h",
        "    Tile t;\n    t.j0",
        "    static Tile t;\n    t.j0",
        WINDOWS,
    ),
    Planted(
        "a_weight_that_is_not_finite_unseen",
        "cpu/gemm/operands.h",
        "finite = finite && zeros[l] == A(0);",
        "finite = finite && (l == 1 || zeros[l] == A(0));",
        WINDOWS,
    ),
    Planted(
        "a_whole_vector_read_at_the_end",
        "cpu/base/pack.h",
        "read_some<A>(from_at(c, i), positions - i), positions - i)",
        "read_lanes<A>(from_at(c, i)), positions - i)",
        WINDOWS,
    ),
    Planted(
        "a_whole_vector_of_strided_elements_read_at_the_end",
        "cpu/base/simd.h",
        "rest > 0 ? load_first(from + k * L, rest) : Vec<A>{}",
        "rest > 0 ? load(from + k * L) : Vec<A>{}",
        "gemm/panels.cpp",
    ),
    Planted(
        "a_whole_vector_written_at_the_end",
        "cpu/base/pack.h",
        "write_some<To, A>(t + vectors * L, read_some<A>(f + vectors * L, rest), rest);",
        "write_lanes<To, A>(t + vectors * L, read_some<A>(f + vectors * L, rest));",
        WINDOWS,
    ),
    Planted(
        "a_last_tile_beyond_its_row",
        "cpu/grouped/grouped.h",
        "const int64_t at = min_of(j, width - n);",
        "const int64_t at = j;",
        GROUPED,
    ),
    Planted(
        "relu_of_half_a_sum",
        "cpu/grouped/grouped.h",
        "a.finish = k + 1 < last ? nullptr : finish;",
        "a.finish = finish;",
        GROUPED,
    ),
    Planted(
        "a_residual_that_lies_otherwise",
        "cpu/base/epilogue.h",
        "alike &= sizes[d] == 1 || e",
        "alike &= sizes[d] == 1 || d == 2 || e",
        WINDOWS,
    ),
    Planted(
        "a_residual_of_other_columns",
        "cpu/base/epilogue.h",
        "begin(residual) + i * outer.other + j * middle.other + part",
        "begin(residual) + i * outer.other + j * middle.step + part",
        WINDOWS,
    ),
    Planted(
        "an_epilogue_of_half_the_rows",
        "cpu/grouped/grouped.h",
        "{n, channel, lanes, o0, o1 - o0, 0, horizontal.output}",
        "{n, channel, lanes, o0, (o1 - o0 + 1) / 2, 0, horizontal.output}",
        GROUPED,
    ),
    Planted(
        "a_wrong_split",
        "cpu/grouped/weight_grad.h",
        "piece < part_begin(pieces, own.splits, split + 1);",
        "piece < part_begin(pieces, own.splits, split + 1) - (split > 0);",
        GROUPED,
    ),
    Planted(
        "a_line_that_runs_on",
        "cpu/gemm/pairs_gather.h",
        "const int64_t count = min_of(now - i, width - column);",
        "const int64_t count = min_of(now - i, width - column + (width == 7));",
        DOT,
        "avx512_bf16",
    ),
    Planted(
        "positions_of_another_row",
        "cpu/gemm/tiles_gather.h",
        "if (column >= at.width || n >= at.n1) continue;",
        "if (column > at.width || n >= at.n1) continue;",
        DOT,
        "amx-emulated",
    ),
    Planted(
        "channels_that_are_not_cleared",
        "cpu/gemm/tiles_line.h",
        "channel < channels ? positions - half * 16 : 0",
        "positions - half * 16",
        DOT,
        "amx-emulated",
    ),
    Planted(
        "small_products_without_their_chain",
        "cpu/gemm/amx.h",
        "    Steps again = steps;",
        "    Steps again = steps;\n    if (chain > 0) again.next();",
        DOT,
        "amx-emulated",
    ),
    Planted(
        "a_part_that_is_not_added",
        "cpu/base/reduction.h",
        "for (int64_t part = 1; part < parts; ++part)",
        "for (int64_t part = 1; part + 1 < parts; ++part)",
        "gemm/panels.cpp",
    ),
    Planted(
        "a_workspace_short_by_one",
        "cpu/gemm/plan_windows.cpp",
        "\n    windows_scratch<decltype(number)>(own, scratch);\n  });",
        "\n    windows_scratch<decltype(number)>(own, scratch);\n  });\n  plan->workspace_bytes -= 64;",
        "cpu/gemm/plan_windows.cpp",
    ),
    Planted(
        "scratch_without_the_last_square",
        "cpu/grouped/layout.h",
        "memory.take<A>(product(own.tile_h, horizontal.output) + lanes, lanes);",
        "memory.take<A>(own.tile_h, horizontal.output, lanes);",
        "cpu/grouped/plan.cpp",
    ),
    Planted(
        "scratch_for_one_slice",
        "cpu/gemm/plan_windows.cpp",
        "panels_held = keeps_sums ? panels : 1;",
        "panels_held = 1;",
        "cpu/gemm/plan_windows.cpp",
    ),
    Planted(
        "tasks_without_the_splits",
        "cpu/gemm/plan_panels.cpp",
        "plan->tasks = product(blocks, own.splits);",
        "plan->tasks = blocks;",
        "cpu/gemm/plan_panels.cpp",
    ),
    Planted(
        "scratch_without_the_window",
        "cpu/winograd/plan.cpp",
        "    lay_out();\n    return;",
        "    lay_out();\n    plan->scratch_bytes -= 4 * w.window_elements;\n    return;",
        "cpu/winograd/plan.cpp",
    ),
    Planted(
        "tasks_of_its_own",
        "cpu/gemm/windows.h",
        "  parallel_for(executor, plan.tasks, plan.scratch_bytes,\n"
        "               [&](int64_t index, void* scratch) { task.run_task(index, scratch); });",
        "  parallel_for(executor, 2 * plan.tasks, plan.scratch_bytes,\n"
        "               [&](int64_t index, void* scratch) { task.run_task(index / 2, scratch); });",
        WINDOWS,
    ),
    Planted(
        "a_variant_of_its_own",
        "cpu/winograd/tiles.h",
        'CONV_EXT_RUNS("weights")',
        'CONV_EXT_RUNS("source")',
        "winograd/winograd.cpp",
        witness=True,
    ),
    Planted(
        "memory_of_its_own",
        "cpu/winograd/winograd.h",
        "    if constexpr (pass == Pass::WeightGrad)\n",
        "    carver.take<A>(1);\n    if constexpr (pass == Pass::WeightGrad)\n",
        "winograd/winograd.cpp",
        witness=True,
    ),
    Planted(
        "numbers_behind_a_row",
        "cpu/gemm/grad_tile.h",
        "return keep<A>(load(x), mask);",
        "return load(x);",
        "gemm/panels.cpp",
    ),
    Planted(
        "an_imaginary_part_with_the_wrong_sign",
        "cpu/gemm/weight_grad.h",
        "A(at[next_part] + at[lane_step])",
        "A(at[next_part] - at[lane_step])",
        "gemm/panels.cpp",
    ),
    Planted(
        "groups_of_a_task_at_one_place",
        "cpu/gemm/weight_grad.h",
        "a.x_offset = group * b.rows * own.channel_pitch;",
        "a.x_offset = 0;",
        "gemm/panels.cpp",
    ),
    Planted(
        "zeros_shorter_than_a_position",
        "cpu/gemm/plan_panels.cpp",
        "c.zeros = c.weights.joined_taps > 1 ? c.weights.channels : channel_span(input);",
        "c.zeros = 1;",
        "cpu/gemm/plan_panels.cpp",
    ),
    Planted(
        "taps_joined_across_a_gap",
        "cpu/gemm/plan_panels.cpp",
        "(z.w == 1 || strides.input[3] == z.c)",
        "(z.w == 1 || strides.input[3] >= z.c)",
        "cpu/gemm/plan_panels.cpp",
    ),
    Planted(
        "chains_by_a_cache",
        "cpu/gemm/plan_panels.cpp",
        "product(z.c, z.r, z.s) <= kMostJoined;",
        "product(z.c, z.r, z.s) * 64 <= machine.caches.l1_bytes;",
        "cpu/gemm/plan_panels.cpp",
    ),
    Planted(
        "an_algorithm_by_a_cache",
        "cpu/gemm/plan_windows.cpp",
        "const int64_t most = !strided ? kMostWeights :",
        "const int64_t most = !strided ? machine.caches.l1_bytes :",
        "cpu/gemm/plan_windows.cpp",
    ),
    Planted(
        "offsets_that_are_not_counted",
        "cpu/gemm/windows_layout.h",
        "s.offset = memory.take<int64_t>(own.products);",
        "s.offset = memory.take<int64_t>(0);",
        "cpu/gemm/plan_windows.cpp",
    ),
)


def plant(planted: Planted) -> Path:
    """Builds the driver and the library with this error; the folder that holds both."""
    plain = build("plain")
    kernels, settings = ROOT / "build" / "kernels", kernel_settings()
    folder = BUILD / "planted" / planted.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("torch", "python"))
    file = folder / "csrc" / planted.file
    text = file.read_text()
    if text.count(planted.old) != 1:
        raise ValueError(f"{planted.name}: {planted.old!r} stands {text.count(planted.old)} times in {planted.file}")
    file.write_text(text.replace(planted.old, planted.new))
    library = f"libconv_ext_{planted.isa}.so"
    source = folder / "csrc" / ("" if planted.is_plan else "cpu") / planted.source
    changed = folder / object_name(source, folder)
    if planted.is_plan:
        run(f"{compiler()} {DRIVER_FLAGS['plain']} -c {joined([source])} -o {joined([changed])}")
        objects = objects_with(changed, plain / "driver", "runs")
        run(f"{compiler()} {joined(objects)} -o {joined([folder / 'runs'])} -ldl -lpthread")
        shutil.copy2(kernels / library, folder / library)
    else:
        flags = f"{settings['KERNEL_FLAGS']} -O1 {settings['ISA_FLAGS'][planted.isa]}"
        flags += " -DCONV_EXT_WITNESS" * planted.witness
        run(f"{compiler()} {flags} -c {joined([source])} -o {joined([changed])}")
        recompiled = {planted.source: changed}
        if planted.witness:
            recompiled["library.cpp"] = folder / "library.cpp.o"
            library_source = folder / "csrc" / "cpu" / "library.cpp"
            run(f"{compiler()} {flags} -c {joined([library_source])} -o {joined([recompiled['library.cpp']])}")
        objects = []
        for name in settings["KERNEL_SOURCES"]:
            shared = settings["SHARES_PASSES"].get(planted.isa) if name in settings["PASS_SOURCES"] else None
            objects.append(recompiled.get(name, kernels / (shared or planted.isa) / f"{name}.o"))
        # Of a template that several objects hold, the linker takes the first one's.
        objects.sort(key=lambda one: one not in recompiled.values())
        run(f"{compiler()} -shared {joined(objects)} -o {joined([folder / library])}")
        shutil.copy2(plain / "runs", folder / "runs")
    return folder


def joined(paths: list[Path]) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)


def run(command: str) -> None:
    subprocess.run(shlex.split(command), check=True)


def find(planted: Planted, seed: int = 1, seconds: float = 120, smaller: bool = True) -> str | None:
    """What the fuzzer says of the error, `smaller` as a case made small; None where it does not find it."""
    folder = plant(planted)
    child = subprocess.run(
        [folder / "runs", "--libraries", folder, "--isa", planted.isa, "--seed", str(seed), "--seconds", str(seconds),
         "--stop", "--examples", str(int(smaller))],
        capture_output=True, text=True,
    )  # fmt: skip
    return child.stdout if child.returncode == 1 else None


if __name__ == "__main__":
    missed = 0
    for one in chosen(ALL, sys.argv[1:]):
        said = find(one, smaller=False)
        missed += said is None
        print(f"{one.name}: {'MISSED' if said is None else said.splitlines()[-1].strip()}", flush=True)
    sys.exit(f"{missed} missed" if missed else 0)
