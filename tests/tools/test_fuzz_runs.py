"""The fuzzer of runs (tests/fuzz/runs.cpp): its fixed part, the cases that failed once, and that it finds errors.

`make fuzz` runs it for as long as one likes; tests/fuzz/fuzz_build.py builds it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conv_ext.library import EMULATED, PACKAGE, available_isas
from conv_ext.settings import ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
FUZZ = ROOT / "tests" / "fuzz"
sys.path.insert(0, str(FUZZ))

import fuzz_build
import histogram
import planted
import planted_plans

import emulated

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("ninja") is None, reason="needs g++ and ninja"
)
LIBRARIES = PACKAGE / "lib"
ANY_ISA = available_isas()[-1]  # a library that is there, however few were built
PROCESSES = str(min(2, len(os.sched_getaffinity(0))))


def fuzz(folder, libraries, *options):
    """Runs the driver; its output as lines."""
    command = [folder / "runs", "--libraries", libraries, "--processes", PROCESSES, *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def plain():
    if EMULATED in isas_here():
        emulated.build()
    return fuzz_build.build("plain")


def isas_here():
    """Those that this processor runs, and the emulation of AMX, which is tried on AVX-512."""
    isas = [isa for isa in available_isas() if isa != "amx"] or available_isas()
    return isas + [EMULATED] * emulated.possible(isas)


def test_no_case_fails(plain, tmp_path):
    """The same cases each time, on every instruction set, and every algorithm among them."""
    child = fuzz(
        plain,
        LIBRARIES,
        "--isa",
        ",".join(isas_here()),
        "--count",
        3000,
        "--seed",
        1,
        "--histogram",
        tmp_path / "h.json",
    )
    assert child.returncode == 0, child.stdout + child.stderr
    cases, ran, _, failures = histogram.added([tmp_path / "h.json"])
    assert failures == 0 and set(cases) == set(isas_here()) and set(cases.values()) == {3000}
    for isa in isas_here():
        algorithms = {cell[1] for cell in ran if cell[0] == isa}
        without_pairs = set() if isa in ("avx512_bf16", "amx", EMULATED) else {"implicit_gemm"}
        assert algorithms == set(ALGORITHMS["cpu"]) - without_pairs
    assert len({cell[2:] for cell in ran}) == 3 * 6 * 3  # passes, dtypes, layouts


def test_cases_that_failed_once(plain):
    child = fuzz(plain, LIBRARIES, "--isa", ",".join(isas_here()), "--corpus", FUZZ / "corpus" / "runs.txt")
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.count("ok ") >= 30


def test_no_case_fails_under_the_sanitizers():
    """AddressSanitizer and UBSan in the kernels themselves, which take minutes to compile the first time."""
    if "avx2" not in available_isas():
        pytest.skip("needs a build with avx2 in it (CONV_EXT_ISAS=all), and a processor that has it")
    folder = fuzz_build.build("address", ["avx2"])
    child = fuzz(folder, folder, "--isa", "avx2", "--count", 1500, "--seed", 2, "--cpu-limit", 60)
    assert child.returncode == 0, child.stdout + child.stderr
    child = fuzz(folder, folder, "--isa", "avx2", "--cpu-limit", 60, "--corpus", FUZZ / "corpus" / "runs.txt")
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.parametrize("name", ["a_tail_off_by_one", "a_workspace_short_by_one", "a_wrong_split"])
def test_a_planted_error_is_found(name):
    """And named by a line that shows it again. All of them: python tests/fuzz/planted.py."""
    one = next(p for p in planted.ALL if p.name == name)
    if one.isa not in available_isas() or not (ROOT / "build" / "kernels" / one.isa).is_dir():
        pytest.skip(f"needs a build with {one.isa} in it (CONV_EXT_ISAS=all), and a processor that has it")
    said = planted.find(one)
    assert said, "not found"
    line = next(line.split(None, 1)[1] for line in said.splitlines() if line.startswith("  case "))
    folder = fuzz_build.BUILD / "planted" / name
    again = fuzz(folder, folder, "--isa", one.isa, "--case", line)
    assert again.returncode == 1 and again.stdout.startswith("FAILED"), again.stdout


def test_what_hangs_or_crashes_is_named_and_the_run_goes_on(plain, tmp_path):
    """A library whose kernels never come back for one dtype, and touch what is not there for another."""
    source = tmp_path / "bad.cpp"
    source.write_text(
        f'''#include "{ROOT / "csrc" / "cpu" / "kernels.h"}"
using namespace conv_ext;
static void run(const ConvProblem& z, Pass, const Plan&, const Buffers&, const Executor&) {{
  if (z.dtype == DType::Float64) for (volatile int i = 0;; ++i) {{}}
  if (z.dtype == DType::BFloat16) *reinterpret_cast<volatile int*>(8) = 1;
}}
static const KernelLibrary library = {{machine_of(Isa::Baseline), run}};
extern "C" const KernelLibrary* conv_ext_kernel_library() {{ return &library; }}
'''
    )
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", source, "-o", tmp_path / "libconv_ext_baseline.so"], check=True
    )
    child = fuzz(plain, tmp_path, "--isa", "baseline", "--count", 40, "--seed", 1, "--cpu-limit", 0.2, "--examples", 0,
                 "--histogram", tmp_path / "h.json")  # fmt: skip
    kinds = {line.split()[2] for line in child.stdout.splitlines() if " x " in line}
    assert child.returncode == 1 and kinds == {"hang", "crash", "unplanned"}, child.stdout
    assert json.loads((tmp_path / "h.json").read_text())["cases"] == {"baseline": 40}


@pytest.mark.parametrize("line, said", [
    ("n=1 c", 'it is written as key=value, got "c"'),
    ("n=0 c=1 groups=2", "groups must be at least 1 and divide c and k, and k must be at least groups: n=0 c=1"),
    ("n=1 c=4 h=x", 'h must be an integer, got "x"'),
    ("n=9223372036854775808", 'n must be an integer, got "9223372036854775808"'),
    ("kernel=3", "kernel must be 2 integers with 'x' between them, got \"3\""),
    ("pad=0,0,0", "pad must be 4 integers with ',' between them, got \"0,0,0\""),
    ("stride=0x1", "kernel, stride and dilation must be at least 1"),
    ("h=2 kernel=3x1", "dilation * (kernel - 1) + 1 must not exceed the padded h and w"),
    ("layout=nchv", 'layout must be one of nchw, nhwc, got "nchv"'),
    ("data=odd", "data must be one of integers, signed, positive, special, wide"),
    ("inputs=0123", "unknown key: inputs"),
    ("input=0122", 'a layout begins with the order of the dimensions, as 0231, got "0122"'),
    ("input=0123/gap:1+2", "gap must be 4 integers with '+' between them"),
    ("cut=1", "cut must be 2 integers with '-' between them"),
    ("n=0", "empty tensors never reach a kernel"),
])  # fmt: skip
def test_a_case_that_is_not_one_is_an_error(plain, line, said):
    child = fuzz(plain, LIBRARIES, "--isa", ANY_ISA, "--case", line)
    assert child.returncode == 2 and f"bad case: {said}" in child.stderr, child.stdout + child.stderr


def test_options(plain, tmp_path):
    """Without --libraries those of the package are run, where the command is given in its folder."""

    def outcome(*words, cwd=ROOT):
        child = subprocess.run([plain / "runs", *words], capture_output=True, text=True, cwd=cwd)
        return child.returncode, child.stdout + child.stderr

    if PACKAGE.parent == ROOT:
        code, said = outcome("--isa", ANY_ISA, "--count", "3")
        assert code == 0 and "0 failures" in said
    code, said = outcome(cwd=tmp_path)
    assert code == 2 and "no kernel library in conv_ext/lib that this processor runs: --libraries says" in said
    for option, value in (("--count", "x"), ("--seconds", "-1"), ("--processes", "0"), ("--seed", "1e")):
        code, said = outcome(option, value)
        assert code == 2 and f'{option} must be a number, and not too small, got "{value}"' in said


@pytest.mark.parametrize("script", ["planted.py", "planted_plans.py"])
def test_the_planted_errors_are_called_by_their_names(script):
    def outcome(word):
        child = subprocess.run([sys.executable, FUZZ / script, word], capture_output=True, text=True)
        return child.returncode, child.stdout + child.stderr

    known = {"planted.py": planted, "planted_plans.py": planted_plans}[script].ALL
    code, said = outcome("a_name_of_none")
    assert code == 2 and "there is no error 'a_name_of_none'; there are " in said and known[-1].name in said
    code, said = outcome("--help")
    assert code == 0 and all(each.name in said for each in known)
    assert fuzz_build.chosen(known, [known[1].name]) == [known[1]] and fuzz_build.chosen(known, []) == list(known)
