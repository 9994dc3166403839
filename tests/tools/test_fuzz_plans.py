"""The fuzzer of plans (tests/fuzz/plans.cpp): its fixed part, the cases that failed once, and that it finds errors."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conv_ext.library import PACKAGE

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

import fuzz_build
import planted_plans

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("ninja") is None, reason="needs g++ and ninja"
)
# About as long in either build.
COUNTS = {"plain": 300_000, "address": 150_000}


@pytest.fixture(scope="module", params=COUNTS)
def kind(request):
    """Plain, or under AddressSanitizer and UBSan."""
    fuzz_build.build(request.param, driver="plans")
    return request.param


def plans(kind, *options):
    command = [fuzz_build.BUILD / kind / "plans", *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def test_no_plan_fails(kind):
    """The same problems each time, planned for every instruction set and CUDA device, by choice and forced."""
    child = plans(kind, "--count", COUNTS[kind], "--seed", 1)
    assert child.returncode == 0, child.stdout + child.stderr
    assert f"{COUNTS[kind]} problems" in child.stdout and ", 0 failures" in child.stdout


def test_cases_that_failed_once(kind):
    child = plans(kind, "--file", FUZZ / "corpus" / "plans.txt")
    assert child.returncode == 0, child.stdout + child.stderr
    assert int(child.stdout.split()[0]) >= 40


@pytest.mark.parametrize("name", ["a_tile_of_no_columns", "a_loop_without_end", "parts_without_memory"])
def test_a_planted_error_is_found(name):
    """And named by a line that shows it again. All of them: python tests/fuzz/planted_plans.py."""
    one = next(p for p in planted_plans.ALL if p.name == name)
    said = planted_plans.find(one)
    assert said, "not found"
    case = next(line for line in said.splitlines() if "CASE=" in line).split('"')[1]
    driver = fuzz_build.BUILD / "planted_plans" / name / "plans"
    again = subprocess.run([str(driver), "--case", case], capture_output=True, text=True)
    assert again.returncode == 1 and again.stdout.startswith("FAILED"), again.stdout
    assert plans(one.kind, "--case", case).returncode == 0


class Traits(ctypes.Structure):
    """IsaTraits in csrc/cpu/plan.h."""

    NUMBERS = ("vector_bytes", "gather_m", "gather_v", "dot_m", "dot_t", "panel_v", "panel_p", "panel_rows")
    _fields_ = [("name", ctypes.c_char_p), *((name, ctypes.c_int64) for name in NUMBERS), ("bf16_dot", ctypes.c_int32)]


def test_the_fuzzers_instruction_sets_are_those_of_the_libraries():
    fuzz_build.build("plain", driver="plans")
    lines = plans("plain", "--traits").stdout.splitlines()
    known = {name: [int(number) for number in numbers] for name, *numbers in map(str.split, lines)}
    libraries = sorted((PACKAGE / "lib").glob("libconv_ext_*.so"))
    libraries = [path for path in libraries if "cuda" not in path.name]
    assert libraries
    for path in libraries:
        entry = ctypes.CDLL(str(path)).conv_ext_kernel_library
        entry.restype = ctypes.POINTER(Traits)
        traits = entry().contents
        name = traits.name.decode()
        numbers = [*(getattr(traits, number) for number in Traits.NUMBERS), traits.bf16_dot]
        assert numbers == known[name.removesuffix("-emulated")], name
