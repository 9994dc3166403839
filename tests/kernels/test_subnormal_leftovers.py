"""Lanes that belong to no output are multiplied, too: with zeros, and not with what an earlier call left there.

Subnormal numbers take some processors a hundred times as long, and indices are subnormal where they are read as
float32. A processor notes in its status word whether an operand was subnormal: so a call with subnormal numbers, then
one with others, must not leave that note.
"""

import ctypes
import platform
import sys

import pytest
import torch

from passes import PASSES, applicable, call, laid_out, operands
from problems import Problem

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="the status word is x86's, as glibc keeps it"
    ),
]

SUBNORMAL, EXCEPTIONS = 0x2, 0x3F
PROBLEMS = [
    Problem("one_chain", 1, 12, 24, 24, 24, 3, 3, padding=(1, 1, 1, 1)),
    Problem("two_images", 2, 16, 14, 14, 20, 3, 3),
    Problem("wide", 1, 3, 6, 28, 40, 1, 1),
    Problem("strided", 2, 12, 17, 9, 16, 3, 3, (2, 2), (1, 1, 1, 1)),
    Problem("taps", 3, 5, 9, 11, 7, 5, 2, padding=(2, 2, 0, 1)),
    Problem("small_maps", 5, 24, 4, 4, 33, 3, 3, padding=(1, 1, 1, 1)),
    Problem("groups", 2, 32, 9, 9, 48, 3, 3, padding=(1, 1, 1, 1), groups=4),
    Problem("depthwise", 2, 20, 11, 13, 20, 3, 3, padding=(1, 1, 1, 1), groups=20),
]


class StatusWord:
    """MXCSR of this thread, which computes everything here."""

    def __init__(self):
        self.libm, self.environment = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(32)  # fenv_t: MXCSR is last

    def read(self) -> int:
        self.libm.fegetenv(self.environment)
        return int.from_bytes(self.environment.raw[28:32], "little")

    def clear(self) -> None:
        self.environment[28:32] = (self.read() & ~EXCEPTIONS).to_bytes(4, "little")
        self.libm.fesetenv(self.environment)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.usefixtures("one_thread")
def test_no_operand_is_a_leftover(pass_name, layout):
    status = StatusWord()
    for z in PROBLEMS:
        numbers = [laid_out(t.abs() + 0.5, layout) for t in operands(pass_name, z, torch.float32, "signed")]
        leftovers = [torch.full_like(t, 1e-42) for t in numbers]
        for algorithm in applicable(pass_name, z, torch.float32):
            if algorithm in ("reference", "implicit_gemm"):  # the definitions; tiles take subnormal numbers for zero
                continue
            call(pass_name, *numbers, z, None, algorithm)
            call(pass_name, *leftovers, z, None, algorithm)
            status.clear()
            call(pass_name, *numbers, z, None, algorithm)
            assert not status.read() & SUBNORMAL, (z, algorithm)


def test_the_status_word_tells():
    status, number = StatusWord(), torch.full((64,), 1e-42)
    status.clear()
    assert not status.read() & SUBNORMAL
    number.mul_(1.5)
    assert status.read() & SUBNORMAL
