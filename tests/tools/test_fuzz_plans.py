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


class Machine(ctypes.Structure):
    """Machine in csrc/cpu/machine.h."""

    CACHES, RATES = ("l1_bytes", "l2_bytes", "last_bytes"), ("multiply_adds", "loads", "latency", "l2_cycles")
    _fields_ = [
        ("name", ctypes.c_char_p), ("vector_bytes", ctypes.c_int64), ("registers", ctypes.c_int64),
        ("fuses", ctypes.c_bool), ("bf16_dot", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in CACHES), *((name, ctypes.c_double) for name in RATES),
    ]  # fmt: skip


def test_each_library_has_its_row_of_the_machines():
    fuzz_build.build("plain", driver="plans")
    lines = plans("plain", "--machines").stdout.splitlines()
    known = {name: [float(number) for number in numbers] for name, *numbers in map(str.split, lines)}
    libraries = sorted((PACKAGE / "lib").glob("libconv_ext_*.so"))
    libraries = [path for path in libraries if "cuda" not in path.name]
    assert libraries
    for path in libraries:
        entry = ctypes.CDLL(str(path)).conv_ext_kernel_library
        entry.restype = ctypes.POINTER(Machine)
        machine = entry().contents
        name = path.stem.removeprefix("libconv_ext_")
        assert machine.name.decode() == name
        assert [float(getattr(machine, field)) for field, _ in Machine._fields_[1:]] == known[name], name
