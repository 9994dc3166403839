"""The machine code that nvcc makes of the kernels: what a step costs and waits for, counted; needs no GPU.

Each gate is a function that says what is wrong with a kernel. Errors that are put into the sources have to be found by
them. The kernels are those of the runner for a device (bench/gpu_runner.py), which is compiled anyway.
"""

import functools
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sass
from fibres import built_once

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
nvcc = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(nvcc is None or sass.disassembler() is None,
                                reason="needs nvcc, and cuobjdump (of a CUDA toolkit, or of nvidia-cuda-cuobjdump)")

# Instructions of a step at most. A step of 128 x 128 sums takes the tensor cores 512 cycles, of 128 x 64 half of that,
# and one warp starts an instruction in three to five cycles.
PRODUCER, COPY = 32, 20  # of the step, and of each copy
CONSUMER, PRODUCT = 64, 5
# Of a usual step of 32 products of mma.sync, in which two warps of each scheduler take turns.
MMA = {"Gather.*bfloat16": 136, "Correlate.*bfloat16": 176, "Gather.*TF32": 236}
ADDING = 960  # to find four neighbours in the parts and in the result; half are activations, most of them jumped over
VECTOR, NUMBER = 72, 16  # of 16 bytes that are copied or packed, and of each number in it

# What the gates look at: of each object of the runner, kernels by their mangled names.
LOOKED_AT = {
    "wgmma": ["wgmma_gather", "wgmma_correlate", "pack_channels_last", "pack_weights"],
    "forward": ["igemm.*Gather.*bfloat16.*LoadE2.*TensorCores.*Li128ELi128E", "igemm.*Gather.*4TF32E.*Li128ELi128E",
                "6reduce.*bfloat16.*NotAgainELi4E"],
    "weight_grad": ["igemm.*Correlate.*bfloat16.*LoadE3.*TensorCores.*Li128ELi128E"],
}


def compile_source(source: str, kernels: Path, folder: Path) -> None:
    """Into folder/sass.cubin, with the headers of `kernels`."""
    (folder / "sass.cu").write_text(source)
    command = [nvcc, "-std=c++20", "-O3", f"-I{kernels}", "-gencode=arch=compute_90a,code=sm_90a", "-cubin",
               str(folder / "sass.cu"), "-o", str(folder / "sass.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def kernels(program: Path) -> dict[str, sass.Kernel]:
    """Of a runner's objects, by their mangled names; they are read by the process that comes first."""
    objects = [program.parent / f"{name}.o" for name in LOOKED_AT]
    reader = [Path(__file__), Path(sass.__file__)]

    def write(folder: Path) -> None:
        (folder / "kernels").write_bytes(pickle.dumps(read(program)))

    return pickle.loads((built_once("sass", [*objects, *reader], [], write) / "kernels").read_bytes())


def read(program: Path) -> dict[str, sass.Kernel]:
    found: dict[str, sass.Kernel] = {}
    for name, patterns in LOOKED_AT.items():
        said = (program.parent / f"{name}.log").read_text()
        every = re.findall(r"Compiling entry function '(\w+)' for 'sm_90a'", said)
        for pattern in patterns:
            assert any(re.search(pattern, mangled) for mangled in every), f"{name}.cu has no kernel {pattern}"
        wanted = [mangled for mangled in every if any(re.search(pattern, mangled) for pattern in patterns)]
        found |= sass.kernels_of(program.parent / f"{name}.o", wanted)
    return found


def named(found: dict[str, sass.Kernel], *names: str) -> list[sass.Kernel]:
    these = [k for mangled, k in found.items() if any(name in mangled for name in names)]
    assert these, f"no kernel is called {names}"
    return these


# ---- the gates


def uses_local_memory(kernel: sass.Kernel) -> str:
    """Registers that are spilled, or arrays that are not in registers."""
    return next((str(i) for i in kernel.instructions if i.name in ("LDL", "STL")), "")


def is_warm(some: list[sass.Instruction]) -> bool:
    """Whether it belongs to a step as it should be: what waits long looks at the clock."""
    return not any("SR_GLOBALTIMER" in i.operands or i.name == "MEMBAR" for i in some)


def loop_over_steps(kernel: sass.Kernel, name: str) -> sass.Loop:
    """The smallest that has such an instruction and waits for a barrier."""
    loops = [loop for loop in kernel.loops if loop.has(name) and loop.has("SYNCS")]
    assert loops, f"{kernel.name} has no loop with {name}"
    return loops[0]


def steps_of(kernel: sass.Kernel, name: str) -> list[list[sass.Instruction]]:
    """The ways through the loop over steps."""
    paths = [path for path in loop_over_steps(kernel, name).paths() if is_warm(path)]
    assert paths, f"no way through the loop of {kernel.name} is free of long waits"
    return paths


def columns(kernel: sass.Kernel) -> int:
    """Of a product: the N of the kernel's template."""
    return int(re.search(r"ELi(64|128|256)E", kernel.name)[1])


def multiplies_for_nothing(kernel: sass.Kernel) -> str:
    """Products that the compiler has added, to have something to wait for."""
    shape = f".64x{columns(kernel)}x"
    products = [i for path in steps_of(kernel, "HGMMA") for i in path if i.name == "HGMMA"]
    return next((str(i) for i in products if not i.modifiers.startswith(shape)), "")


def commits_more_than_once(kernel: sass.Kernel) -> str:
    """A step is one group of products: it ends with the product that counts at gsb0, and begins with one fence."""
    for path in steps_of(kernel, "HGMMA"):
        ends = [i for i in path if i.name == "HGMMA" and "gsb0" in i.operands]
        fences = [i for i in path if i.name == "WARPGROUP" and i.modifiers == ".ARRIVE"]
        waits = [i for i in path if i.name == "WARPGROUP" and i.modifiers.startswith(".DEPBAR")]
        if any(i.name == "HGMMA" for i in path) and (len(ends) != 1 or len(fences) != 1 or len(waits) > 1):
            return f"{len(ends)} groups, {len(fences)} fences, {len(waits)} waits in a step"
    return ""


def reads_sums_in_flight(kernel: sass.Kernel) -> str:
    """From a product on, nothing but products may touch their sums until all are waited for."""
    products = [i for i in kernel.instructions if i.name == "HGMMA"]
    sums = {int(re.match(r"R(\d+)", i.operands)[1]) for i in products}
    numbers = {first + i for first in sums for i in range(columns(kernel) // 2)}

    def look_at(some: list[sass.Instruction]) -> str | None:
        """What touches them; None where all have been waited for."""
        for i in some:
            if i.name == "WARPGROUP" and i.modifiers.startswith(".DEPBAR") and i.operands == "gsb0, 0x0":
                return None
            if i.name != "HGMMA" and numbers & {int(n) for n in re.findall(r"\bR(\d+)\b", i.operands)}:
                return str(i)
        return ""

    seen: set[int] = set()
    for some in kernel.blocks.values():
        first = next((n for n, i in enumerate(some) if i.name == "HGMMA"), None)
        if first is None:
            continue
        stack = [some[first:]]
        while stack:
            now = stack.pop()
            found = look_at(now)
            if found:
                return found
            if found is None:
                continue
            last = next(b for b, these in kernel.blocks.items() if these[-1] is now[-1])
            following = [b for b in kernel.following[last] if b not in seen]
            seen |= set(following)
            stack += [kernel.blocks[b] for b in following]
    return ""


def producer_is_slow(kernel: sass.Kernel) -> str:
    loop = loop_over_steps(kernel, "UTMALDG")
    if loop.has("ELECT"):
        return "asks which lane it is before every copy"
    longest, copies = loop.longest(is_warm), sum(i.name == "UTMALDG" for i in loop.instructions)
    return f"{longest} instructions for {copies} copies" if longest > PRODUCER + COPY * copies else ""


def consumer_is_slow(kernel: sass.Kernel) -> str:
    """Of a step with all its products, and but for those that add a chain's sums."""
    paths = [(sum(i.name == "HGMMA" for i in path), sum(i.name != "FADD" for i in path))
             for path in steps_of(kernel, "HGMMA")]
    products, longest = max(paths)
    return f"{longest} instructions for {products} products" if longest > CONSUMER + PRODUCT * products else ""


def mma_is_slow(kernel: sass.Kernel) -> str:
    """Of a step that brings the next operands, within a tap or a row, and ends no chain."""
    most = next(n for name, n in MMA.items() if re.search(name, kernel.name))
    paths = list(kernel.innermost("HMMA")[0].paths())
    copies = max(sum(i.name == "LDGSTS" for i in path) for path in paths)
    usual = min((path for path in paths if sum(i.name == "LDGSTS" for i in path) == copies), key=len)
    products = sum(i.name == "HMMA" for i in usual)
    return f"{len(usual)} instructions for {products} products" if products != 32 or len(usual) > most else ""


def copying_is_slow(kernel: sass.Kernel) -> str:
    """Of the loops that read numbers and put them down; a call is a division of 64 bits."""
    loops = [loop for loop in kernel.loops if loop.has("LDG") and not any(
        other.body < loop.body for other in kernel.loops)]
    assert loops, f"{kernel.name} has no loop that reads"
    if any(loop.has("CALL") for loop in loops):
        return "divides by 64 bits for every number"
    path = max(loops[0].paths(), key=len)
    numbers = sum(i.name == "LDG" for i in path)
    parts = max(1, sum(i.name == "STG" for i in path))
    return f"{len(path)} instructions for {numbers} numbers" if len(path) > VECTOR + NUMBER * numbers * parts else ""


def adding_is_slow(kernel: sass.Kernel) -> str:
    """Of everything but the loop over parts, for four numbers."""
    loops = {block for loop in kernel.loops for block in loop.body}
    count = sum(len(kernel.blocks[block]) for block in kernel.reachable if block not in loops)
    return f"{count} instructions" if count > ADDING else ""


WARPGROUPS = (uses_local_memory, multiplies_for_nothing, commits_more_than_once, reads_sums_in_flight,
              producer_is_slow, consumer_is_slow)
GATES = [(gate, ("wgmma_gather", "wgmma_correlate")) for gate in WARPGROUPS]
GATES += [(mma_is_slow, ("igemm",)), (copying_is_slow, ("pack_channels_last", "pack_weights")),
          (adding_is_slow, ("reduce",)), (uses_local_memory, ("igemm", "pack_", "reduce"))]


@pytest.mark.parametrize("gate, names", GATES, ids=lambda one: getattr(one, "__name__", None))
def test_the_kernels_are_as_they_should_be(gpu_program, gate, names):
    wrong = {k.name: gate(k) for k in named(kernels(gpu_program), *names)}
    assert not any(wrong.values()), "\n".join(f"{name}: {why}" for name, why in wrong.items() if why)


def test_a_sum_that_is_read_in_flight_is_seen(gpu_program):
    """nvcc itself takes care of most of it; so the error is put into the machine code."""
    kernel = named(kernels(gpu_program), "wgmma_gather")[0]
    last = max(i.address for loop in kernel.innermost("HGMMA") for i in loop.instructions if i.name == "HGMMA")
    at = next(n for n, i in enumerate(kernel.instructions) if i.address == last)
    sums = re.match(r"R(\d+)", kernel.instructions[at].operands)[1]
    reading = sass.Instruction(last + 8, "", "FADD", "", f"R1, R{int(sums) + 3}, R1")
    changed = sass.Kernel(kernel.name, [*kernel.instructions[:at + 1], reading, *kernel.instructions[at + 1:]])
    assert not reads_sums_in_flight(kernel) and reads_sums_in_flight(changed) == str(reading)


# ---- errors that are put into the sources have to be found

USING = """
#include "wgmma/weight_grad.cuh"
#include "gather.cuh"
namespace conv_ext::cuda {
using Group = SixteenBitGroup<bfloat16>;
using GatherBF16 = Gather<bfloat16, float, Load::KVector>;
template __global__ void %s;
}
"""
WGMMA = "wgmma_gather<Group, 64>(const __grid_constant__ WgmmaParameters<bfloat16>)"
IGEMM = "igemm<GatherBF16, TensorCores<bfloat16>, LargeTile>(GatherBF16::Parameters)"
PACK = "pack_weights<Group, 8>(PackParameters<bfloat16, bfloat16>)"
REDUCE = "reduce<bfloat16, float, NotAgain, 4>(ReduceParameters<bfloat16, float, NotAgain>)"
PLANTED = {
    "sums_in_local_memory": (uses_local_memory, WGMMA, "wgmma/wgmma.cuh", "total[i] += chain[i]",
                             "total[(i + steps) % (n / 2)] += chain[i]"),
    "groups_end_where_branches_meet": (multiplies_for_nothing, WGMMA, "wgmma/wgmma.cuh", "  commit_products();\n}", "}",
                                       "begins);\n  }\n}", "begins);\n  }\n  commit_products();\n}"),
    "every_product_is_a_group": (commits_more_than_once, WGMMA, "wgmma/wgmma.cuh", "(32 >> 4);\n",
                                 "(32 >> 4);\n    commit_products();\n"),
    "any_lane_asks_for_copies": (producer_is_slow, WGMMA, "wgmma/wgmma.cuh",
                                 "warp_index() == kConsumers / 32 && elect_one()", "thread_index() == kConsumers"),
    "each_copy_divides": (producer_is_slow, WGMMA, "wgmma/wgmma.cuh", "tap.low * kChunk<Group>, w, h",
                          "(tap.low + step / p.step_w % p.step_h) * kChunk<Group>, w, h"),
    "sums_are_scaled_every_step": (consumer_is_slow, WGMMA, "wgmma/wgmma.cuh", "    before = ring.stage;",
                                   "wait_sums(sum);\nfor (int j = 0; j < n / 2; ++j) sum[j] *= 3;\n"
                                   "before = ring.stage;"),
    "every_copy_divides": (mma_is_slow, IGEMM, "igemm.cuh", "walker.advance(kAcross * kVectorK);",
                           "walker.seek(k + (slot + 1) * kAcross * kVectorK);"),
    "every_vector_divides_by_64_bits": (copying_is_slow, PACK, "pack.cuh", "high = v / fast",
                                        "high = uint32_t((v + p.pitch) / (fast + p.stride_c))"),
    "every_number_divides_by_64_bits": (adding_is_slow, REDUCE, "epilogue.cuh", "m + i * p.has_bias[3]",
                                        "m + (offset + i) % p.size[2] / p.stride[1]"),
}
OFTEN = ("groups_end_where_branches_meet", "every_vector_divides_by_64_bits")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.exhaustive)
                                  for name in PLANTED])
def test_a_planted_error_is_found(tmp_path, name):
    gate, kernel, file, *edits = PLANTED[name]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc", ignore=shutil.ignore_patterns("torch", "python", "cpu"))
    folder = tmp_path / "csrc" / "cuda"
    text = (folder / file).read_text()
    for right, wrong in zip(edits[::2], edits[1::2]):
        assert text.count(right) == 1, f"{file} has changed: {right!r} stands there {text.count(right)} times"
        text = text.replace(right, wrong)
    (folder / file).write_text(text)
    compile_source(USING % kernel, folder, tmp_path)
    found = named(sass.kernels_of(tmp_path / "sass.cubin"), re.match(r"\w+", kernel)[0])
    assert gate(found[0]), f"{gate.__name__} has not found it"
