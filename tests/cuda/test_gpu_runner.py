"""The runner of the CUDA kernels (tests/cuda_host/run.cpp): its lines, its choices instead of the plan's, its build.

The kernels themselves are tried in test_cuda_*.py; here it is the program, on fibres and as nvcc compiles it.
"""

import re
import shutil
import subprocess

import pytest

from bench import gpu_runner
from fibres import ENVIRONMENT, OPPOSITE, line, needs_compiler, run, run_one
from problems import SMALL, Problem
from runner_lines import everything, wgmma

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, of a CUDA toolkit, on the PATH")
GOOD_LINE = "pass=forward dtype=float32 n=1 c=4 h=5 w=6 k=3 r=2 s=3"
TILED = Problem("tiled", 1, 16, 9, 12, 136, 2, 3, padding=(1, 1, 1, 1))


def ask(program, *arguments, lines=()):
    return subprocess.run([str(program), *arguments], input="\n".join(lines), capture_output=True, text=True,
                          timeout=60, env=ENVIRONMENT)


# ---- as nvcc compiles it


@nvcc
def test_it_is_built_for_a_device_and_ends_with_a_clear_line_where_there_is_none(gpu_program):
    libraries = subprocess.run(["ldd", str(gpu_program)], capture_output=True, text=True).stdout
    assert "libc.so" in libraries and not re.search("cuda|torch|stdc", libraries), libraries
    assert gpu_runner.runner(gpu_program.parent) == gpu_program and gpu_runner.library(gpu_program.parent) is not None
    asked = ask(gpu_program, "--device")
    if asked.returncode == 0:
        lines = [one for one in everything()[:150]
                 if "algorithm=multiply_add" in one and "dtype=float32" in one and "check" not in one]
        assert all(v.startswith("exact") for v in ask(gpu_program, lines=lines).stdout.splitlines())
        return
    for done in (asked, ask(gpu_program, lines=wgmma()), ask(gpu_program, *wgmma()[0].split())):
        assert done.returncode == 3 and not done.stdout
        assert re.fullmatch(r".*: there is no CUDA device to run on \(.+, CUDA error \d+\)\n", done.stderr), done.stderr


@nvcc
def test_what_is_up_to_date_is_not_compiled_again(gpu_program, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError(f"{arguments} was started")

    monkeypatch.setattr(gpu_runner.subprocess, "run", fail)
    folder = gpu_program.parent
    architectures = tuple(gpu_runner.record(folder)["architectures"])
    assert gpu_runner.build(architectures, folder=folder) == gpu_program
    for unit in gpu_runner.units():
        assert gpu_runner.compile_one(unit, architectures, folder).is_file()
    stamp = folder / "window.json"
    assert not gpu_runner.is_fresh(stamp, stamp.with_suffix(".o"), ["another", "command"])


@nvcc
@pytest.mark.exhaustive
def test_it_is_built_for_every_architecture(full_gpu_program):
    assert ask(full_gpu_program, "--help").returncode == 0
    assert gpu_runner.record(full_gpu_program.parent)["architectures"] == ["75", "80", "90a"]
    assert gpu_runner.runner(full_gpu_program.parent) == full_gpu_program


def test_without_nvcc_that_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_runner, "FOLDER", tmp_path / "made")
    assert gpu_runner.main([]) == 1 and "nvcc, which is not on the PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_runner.main(["--arch", "9.0"])
    assert "such as 80 or 90a, got 9.0" in capsys.readouterr().err


# ---- its lines, on fibres


BAD = {
    "pass=forward": "a problem must have dtype=",
    f"{GOOD_LINE} colour=red": "there is no key colour",
    "foo=3": "there is no key foo: see --help",  # before what is missing
    "=3": "there is no key : see --help",
    f"{GOOD_LINE} c=4": "a key must stand there once, got c again",
    f"{GOOD_LINE} once": "a problem is made of key=value, got once",
    GOOD_LINE.replace("float32", "float"): "dtype must be one of float32, float64, bfloat16, float16, complex64, "
                                           "complex128, got float",
    GOOD_LINE.replace("n=1", "n=0"): "n must be made of whole numbers from 1 to 1073741824, got 0",
    GOOD_LINE.replace("n=1", "n=1x"): "n must be made of whole numbers from 1 to 1073741824, got 1x",
    f"{GOOD_LINE} stride=1,2,3": "stride must be up to 2 numbers, got 1,2,3",
    f"{GOOD_LINE} groups=3": "c and k must be multiples of groups, got c=4 k=3 groups=3",
    GOOD_LINE.replace("r=2", "r=6"): "the kernel must not be higher than the padded input: it reaches over 6 of 5",
    GOOD_LINE.replace("s=3", "s=3 dilation=1,3"): "the kernel must not be wider than the padded input: it reaches over "
                                                  "7 of 6",
    **{f"{GOOD_LINE.replace('forward', 'input_grad')} {word}": "bias, residual and activation are for forward"
       for word in ("bias=1", "residual=1", "activation=relu")},
    f"{GOOD_LINE.replace('float32', 'complex64')} activation=silu": "activations are for real numbers",
    f"{GOOD_LINE} activation=gelu": "activation must be one of none, relu, clamp, silu, hardswish, got gelu",
    f"{GOOD_LINE} residual=3": "residual must be made of whole numbers from 0 to 2, got 3",
}


@needs_compiler
@pytest.mark.parametrize("bad", BAD)
def test_a_line_that_says_nothing_is_told_with_its_rule(program, bad):
    for done in (ask(program, *bad.split()), ask(program, lines=[bad])):
        assert done.returncode == 2 and not done.stdout and BAD[bad] in done.stderr


@needs_compiler
def test_a_problem_runs_by_itself_and_a_verdict_names_it(program):
    done = ask(program, *GOOD_LINE.split())
    assert done.returncode == 0 and done.stdout == f"exact: first_layer | {GOOD_LINE}\n"
    assert ask(program, "--help").stdout.startswith("usage: run")
    for more, words in (("ways=4", "a way must be one of 0 to 3, got 4"), ("time=5", "time= is for a device")):
        done = ask(program, *GOOD_LINE.split(), more)
        assert done.returncode == 2 and words in done.stderr
    done = ask(program, *GOOD_LINE.split(), "algorithm=three_tf32")
    assert done.returncode == 1 and done.stdout.startswith("declined: fewer than 32 products")


@needs_compiler
@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "weight_grad"])
def test_tiles_and_parts_can_be_chosen(program, pass_name):
    kinds = [("bfloat16", "ieee", "tensor_cores"), ("float32", "ieee", "multiply_add")]
    sizes = {(64, 64): "", (128, 128): " large", (32, 128): " narrow"}
    for kind in kinds:
        lines = [line(pass_name, kind, "channels_last", TILED, tile_m=m, tile_n=n, splits=splits)
                 for m, n in sizes for splits in (1, 3)]
        assert run_one(program, lines, OPPOSITE) == [f"{kind[2]}{size}{split}" for size in sizes.values()
                                                     for split in ("", " split")]
    across = pass_name == "weight_grad"
    lines = [line(pass_name, ("bfloat16", "ieee", "wgmma"), "channels_last", TILED, capability=90,
                  tile_m=128 if across else m, tile_n=m if across else 128, splits=splits)
             for m in (64, 128) for splits in (1, 2)]
    found = run_one(program, lines, OPPOSITE)
    assert [v.endswith("split") for v in found] == [False, True] * 2
    for algorithm, tiles, reason in (
        ("tensor_cores", (96, 64), "it has tiles of 64 x 64, 128 x 128 and 32 x 128"),
        ("tensor_cores", (128, 0), "it has tiles of 64 x 64, 128 x 128 and 32 x 128"),
        ("wgmma", (32, 128), "it has tiles of"),
        ("direct", (64, 64), "its tiles and parts follow from the shape"),
    ):
        asked = line(pass_name, ("bfloat16", "ieee", algorithm), "contiguous", TILED, 90, tile_m=tiles[0],
                     tile_n=tiles[1])
        assert ask(program, *asked.split()).stdout.startswith(f"declined: {algorithm}: {reason}")


@needs_compiler
@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "weight_grad"])
def test_real_numbers_stay_within_the_gate(program, pass_name):
    kinds = [("float32", "ieee", "multiply_add"), ("bfloat16", "ieee", "tensor_cores"), ("float64", "ieee", "direct")]
    run(program, [line(pass_name, kind, "channels_last", z) for kind in kinds for z in SMALL[:2]], "accuracy")


@needs_compiler
def test_planes_of_a_problem_can_be_sampled(program):
    for pass_name in ("forward", "input_grad", "weight_grad"):
        kind = ("float32", "ieee", "multiply_add")
        asked = [line(pass_name, kind, "channels_last", SMALL[1], check="sampled", every=n) for n in (1, 3, 100)]
        asked.append(line(pass_name, kind, "channels_last", SMALL[1], check="none", ways=0))
        words = [v.split(":")[0] for v in ask(program, lines=asked).stdout.splitlines()]
        assert words == ["exact"] * 3 + ["ran"]


# ---- a device's memory, with malloc for a device

FAKE_RUNTIME = """
#pragma once
#include <stdlib.h>
#include <string.h>
enum cudaError_t { cudaSuccess = 0 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum { cudaStreamCaptureModeThreadLocal };
typedef struct Fake *cudaStream_t, *cudaGraph_t, *cudaGraphExec_t, *cudaEvent_t;
struct cudaDeviceProp { int major, minor, multiProcessorCount; size_t totalGlobalMem; char name[9]; };
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaMalloc(void** at, size_t bytes) {
  *at = malloc(bytes);
  memset(*at, 1, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* at) { free(at); return cudaSuccess; }
inline cudaError_t cudaMemset(void* at, int v, size_t bytes) { memset(at, v, bytes); return cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { *p = {9, 0, 132, 1, "fake"}; return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { *ms = 2; return cudaSuccess; }
""" + "\n".join(f"template <class... A> cudaError_t {name}(A...) {{ return cudaSuccess; }}" for name in (
    "cudaStreamCreate cudaEventCreate cudaStreamBeginCapture cudaStreamEndCapture cudaGraphInstantiate cudaEventRecord "
    "cudaGraphLaunch cudaEventSynchronize cudaGraphExecDestroy cudaGraphDestroy cudaEventDestroy cudaStreamDestroy "
    "cudaGetDeviceCount cudaSetDevice cudaGetDevice cudaDriverGetVersion cudaDeviceSynchronize").split())
GUARDS = """
#include <assert.h>
#include <stdint.h>
#include "memory.h"
using conv_ext::Memory;
int main() {
  Memory one(100, 2);
  assert((one.device() - static_cast<char*>(nullptr)) % 2 == 0 && one.damage().empty());
  assert(one.device()[0] == char(0xff) && one.host()[99] == char(0xff));
  memset(one.host(), 5, 100);
  one.upload();
  assert(one.device()[0] == 5 && one.device()[99] == 5 && one.damage().empty());
  one.device()[3] = 7;
  one.download();
  assert(one.host()[3] == 7 && one.damage().empty());
  one.forget();
  assert(one.device()[3] == char(0xff));
  one.device()[-1] = 0;
  assert(one.damage() == "1 bytes before it");
  one.device()[-1] = char(0xff);
  one.device()[101] = 0;
  assert(one.damage() == "1 bytes behind its end");
  Memory::guarded = false;
  Memory other(8, 0);
  other.forget();
  assert(other.device()[0] == 1 && other.damage().empty());
  assert(conv_ext::milliseconds([](void*) { return 0; }, 30).size() == 15);
}
"""


@needs_compiler
def test_a_device_s_memory_sees_what_is_written_beside_a_tensor(tmp_path):
    (tmp_path / "cuda_runtime.h").write_text(FAKE_RUNTIME)
    (tmp_path / "guards.cpp").write_text(GUARDS)
    host = gpu_runner.ROOT / "tests" / "cuda_host"
    made = tmp_path / "guards"
    subprocess.run(["g++", "-std=c++20", "-fsanitize=address", f"-I{tmp_path}", f"-I{host}",
                    str(tmp_path / "guards.cpp"), "-o", str(made)], check=True)
    done = subprocess.run([str(made)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
