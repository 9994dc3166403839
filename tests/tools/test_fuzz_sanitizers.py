"""All kernel libraries that this processor runs, under AddressSanitizer with UBSan and under ThreadSanitizer, longer.

For `make test-all`: each library takes minutes to compile. test_fuzz_runs.py has one of them for every run.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conv_ext.library import EMULATED, available_isas

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import fuzz_build

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(shutil.which("g++") is None or shutil.which("ninja") is None, reason="needs g++ and ninja"),
]
CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus" / "runs.txt"
TESTED = [isa for isa in available_isas() if isa != "amx"] + [EMULATED] * ("avx512" in available_isas())
PROCESSES = str(len(os.sched_getaffinity(0)))
LINE_UP = ["setarch", "-R"]  # addresses that are not drawn: ThreadSanitizer needs them on some systems


def draws(folder, isa, *options, before=()):
    """Runs the driver of `folder` with its library of one instruction set."""
    command = [*before, str(folder / "runs"), "--libraries", str(folder), "--isa", isa, "--cpu-limit", "120",
               "--processes", PROCESSES, *options]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("isa", TESTED)
def test_no_case_fails_under_address_sanitizer(isa):
    folder = fuzz_build.build("address", [isa])
    child = draws(folder, isa, "--count", "10000", "--seed", "3")
    assert child.returncode == 0, child.stdout + child.stderr
    child = draws(folder, isa, "--corpus", str(CORPUS))
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.parametrize("isa", [isa for isa in ("avx2", "avx512") if isa in available_isas()])
def test_no_case_races_under_thread_sanitizer(isa):
    folder = fuzz_build.build("thread", [isa])
    before = LINE_UP if subprocess.run([*LINE_UP, "true"], capture_output=True).returncode == 0 else []
    child = draws(folder, isa, "--threads", "--count", "2000", "--seed", "4", before=before)
    if "unexpected memory mapping" in child.stderr:
        pytest.skip("ThreadSanitizer finds no room for its memory on this system, even with setarch -R")
    assert child.returncode == 0, child.stdout + child.stderr
