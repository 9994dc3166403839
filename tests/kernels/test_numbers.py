"""The conversions of 16-bit numbers, which the kernels and their reference share: all 65,536 values of both types."""

import subprocess
import sys
from pathlib import Path

import pytest

from conv_ext.library import available_isas

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import fuzz_build  # noqa: E402

HEADER = ROOT / "csrc" / "common" / "numbers.h"
PROGRAM = ROOT / "tests" / "kernels" / "numbers.cpp"
# With the processor's conversions of float16, and without.
FLAGS = [pytest.param([], id="plain")]
if "avx2" in available_isas():
    FLAGS.append(pytest.param(["-mf16c"], id="f16c"))

pytestmark = pytest.mark.skipif(not HEADER.is_file(), reason="needs a checkout")


def judged(folder: Path, flags: list[str], text: str) -> subprocess.CompletedProcess:
    """What the program says of numbers.h with this text."""
    (folder / "numbers.h").write_text(text)
    command = [fuzz_build.compiler(), "-std=c++17", "-O1", *flags, f"-I{folder}", str(PROGRAM)]
    subprocess.run([*command, "-o", str(folder / "numbers")], check=True)
    return subprocess.run([str(folder / "numbers")], capture_output=True, text=True)


@pytest.mark.parametrize("flags", FLAGS)
def test_every_number_and_what_lies_between_two(tmp_path, flags):
    done = judged(tmp_path, flags, HEADER.read_text())
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[-4]) > 1_500_000, done.stdout


PLANTED = {
    "ties_away_from_zero": ("(u + 0x7fffu + ((u >> 16) & 1))", "(u + 0x8000u)"),
    "nan_that_becomes_infinite": ("(u >> 16) | 0x40u", "(u >> 16) & 0xff80u"),
    "subnormal_halves_lost": (
        "float_of(rest << 13) * 0x1p112f",
        "float_of(rest << 13) * (rest < 0x400u ? 0 : 0x1p112f)",
    ),
    "an_infinite_half_lost": ("rest >= 0x477ff000u", "rest > 0x7f800000u"),
    "rounded_twice": ("bits_of(f) % 2 == 1", "true"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_an_error_is_found(tmp_path, name):
    right, error = PLANTED[name]
    text = HEADER.read_text()
    assert text.count(right) == 1
    done = judged(tmp_path, [], text.replace(right, error))
    assert done.returncode == 1, done.stdout
