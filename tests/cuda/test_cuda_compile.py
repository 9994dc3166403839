"""nvcc compiles the CUDA kernels for an old, a middle and a new architecture: no warning, no spill; needs no GPU."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from bench import gpu_runner

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("75", "80", "90a")
MOST_SHARED = {"75": 64 << 10, "80": 163 << 10, "90a": 227 << 10}
WGMMA_SHARED = (192 << 10) + 1024 + 2 * (32 * 68 * 4 + 64 * 8) + 16 * 8  # WgmmaShared in wgmma.cuh, at most

nvcc = shutil.which("nvcc")


def resources(text: str):
    """(architecture, mangled name, registers, bytes spilled) of each kernel in ptxas's report."""
    entry = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores, "
                       r"(\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL)
    for name, architecture, stored, loaded, registers in entry.findall(text):
        yield architecture, name, int(registers), int(stored) + int(loaded)


def readable(names: list[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    plain = (re.sub(r"conv_ext::(cuda::)?|\(anonymous namespace\)::|^void |\((Load|int|bool)\)", "", n) for n in
             done.stdout.splitlines())
    return [re.sub(r">\(.*$", ">", n) for n in plain]


def shared_bytes(kernel: str, architecture: str) -> int:
    if kernel.startswith("direct_weight_grad"):
        return 128 * (8 if "double" in kernel else 4)  # one sum for each thread
    if kernel.startswith("first_layer"):
        return 96 << 10 if architecture != "75" else 0  # what cuda/window/plan.cpp allows at most; empty on sm_75
    if kernel.startswith("window_reduce"):
        return 256 * (8 if "double" in kernel else 4)
    if kernel.startswith("window"):
        return 64 << 10  # what cuda/window/plan.cpp allows at most
    if kernel.startswith(("wgmma_gather", "wgmma_correlate")):
        return WGMMA_SHARED
    tile = re.search(r"Tile<(\d+), (\d+)", kernel)
    if tile is None or architecture == "75" and re.search(r"TF32|TensorCores|Float64", kernel):  # empty on sm_75
        return 0
    # The steps' operands, which a kernel asks for when it is launched (SharedStages in igemm.cuh).
    m, n = int(tile[1]), int(tile[2])
    size = 8 if "double" in kernel else 4 if "<float, float" in kernel else 2
    stages = 4 if re.search(r"TF32|TensorCores", kernel) else 3
    block_k = 32 if size == 2 else 16
    if re.search(r"Correlate<\w+, \w+, (\(Load\))?3>", kernel):  # operands lie across gemm_k
        return stages * block_k * (m + n + 2 * (4 if size == 8 else 8)) * size
    return stages * (m + n) * (block_k * size + (32 if size == 8 else 16))


EVERY = ["first_layer", "forward", "input_grad", "weight_grad", "wgmma", "window", "window_grad"]


needs_nvcc = pytest.mark.skipif(nvcc is None, reason="needs nvcc, of a CUDA toolkit, on the PATH")


def check(text: str, expected: tuple[str, ...], fewest: int) -> None:
    """What nvcc and ptxas have said of kernels for these architectures: no warning, no spill, room in shared memory."""
    assert "warning" not in text, text
    assert not re.search(r"C75\d\d", text), "ptxas says that it serialises asynchronous products"
    rows = list(resources(text))
    assert {row[0] for row in rows} == set(expected) and len(rows) >= fewest * len(expected)
    names = dict(zip([row[1] for row in rows], readable([row[1] for row in rows])))
    wrong = []
    for architecture, name, registers, spilled in sorted(rows, key=lambda row: (names[row[1]], row[0])):
        shared = shared_bytes(names[name], architecture)
        print(f"sm_{architecture:4} {registers:4} registers {shared:6} B shared  {names[name]}")
        if spilled or shared > MOST_SHARED[architecture]:
            wrong.append(f"sm_{architecture} spills {spilled} bytes, wants {shared} of shared memory: {names[name]}")
    assert not wrong, "\n".join(wrong)


def test_every_source_of_kernels_is_known():
    assert sorted(source.stem for source in (ROOT / "csrc" / "cuda").rglob("*.cu")) == EVERY


def reports(program: Path) -> str:
    return "\n".join((program.parent / f"{name}.log").read_text() for name in EVERY)


@needs_nvcc
def test_the_kernels_of_the_runner_compile_without_warning_or_spill(gpu_program):
    """Those for compute capability 9.0, of float32 and bfloat16 at least; wgmma is built for no other."""
    expected = tuple(dict.fromkeys([*gpu_runner.record(gpu_program.parent)["architectures"], "90a"]))
    check(reports(gpu_program), expected, 1 if len(expected) > 1 else 60)


@needs_nvcc
@pytest.mark.exhaustive
def test_all_kernels_compile_without_warning_or_spill_for_every_architecture(full_gpu_program):
    check(reports(full_gpu_program), ARCHITECTURES, 60)


@pytest.mark.exhaustive  # test_cuda_device.py compiles it, too, and runs it, where torch is the one it is for
def test_the_binding_compiles_against_this_torch():
    """Also against a torch without CUDA: it is written against the device-neutral interface."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folders = [f"-I{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", *[f.replace("-I", "-isystem") for f in folders],
               str(ROOT / "csrc" / "torch" / "cuda.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, f"torch {torch.__version__}:\n{done.stderr}"
