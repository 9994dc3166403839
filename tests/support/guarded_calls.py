"""Run by test_memory.py in a process of its own: calls whose operands and scratch lie against unreadable pages.

Prints each call before it is made, so that the last line names the one that touched what it must not.
"""

import ctypes
import ctypes.util
import itertools
import math
import mmap
import sys

import torch

from conv_ext import _C
from passes import (
    DTYPES,
    PASSES,
    THEIR_OWN,
    algorithms_by_precision,
    call,
    dtype_name,
    fill,
    is_slow,
    operand_shapes,
    repeats,
    same_bits,
)
from problems import CORNERS, NETWORK, SMALL, Problem

PROT_NONE = 0
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# One more, one less than the sizes that blocks and vectors have.
AWKWARD = tuple(
    Problem(f"awkward_{q}x{k}", 2, c, 3, q + s - 1, k, 2, s)
    for (q, k), (c, s) in zip(
        itertools.product((7, 9, 15, 17, 31, 33, 47, 49, 65), (3, 7, 9)), itertools.cycle(((1, 3), (5, 2), (17, 1)))
    )
)


class Guarded:
    """Memory between two pages that cannot be touched."""

    def __init__(self, size: int, at_end: bool):
        page = mmap.PAGESIZE
        inner = max(1, math.ceil(size / page)) * page
        self.map = mmap.mmap(-1, inner + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for edge in (base, base + page + inner):
            if LIBC.mprotect(edge, page, PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.offset = page + (inner - size if at_end else 0)

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        """A copy of `like`, which must be dense, with the same strides, in this memory."""
        if like.numel() == 0:
            return like
        flat = torch.frombuffer(self.map, dtype=like.dtype, offset=self.offset, count=like.numel())
        return flat.as_strided(like.shape, like.stride()).copy_(like)


def guarded(t: torch.Tensor, at_end: bool) -> torch.Tensor:
    return Guarded(t.numel() * t.element_size(), at_end).tensor(t)


def check_guards() -> None:
    """Ends with a fault, or the guards are worth nothing."""
    t = guarded(torch.ones(5), at_end=True)
    ctypes.string_at(t.data_ptr(), 5 * 4)
    ctypes.string_at(t.data_ptr(), 5 * 4 + 1)


def calls(problems, dtypes):
    for z, dtype, pass_name in itertools.product(problems, dtypes, PASSES):
        shapes = operand_shapes(pass_name, z)
        a, b = (fill(shape, dtype, "signed", seed) for seed, shape in enumerate(shapes))
        bias = fill((z.k,), dtype, "signed", 3) if pass_name == "forward" else None
        for memory_format in (torch.contiguous_format, torch.channels_last):
            a, b = (t.contiguous(memory_format=memory_format) for t in (a, b))
            for how in algorithms_by_precision(pass_name, z, dtype):
                if is_slow(how[0], z) or repeats(_C.isa()) and how[0] != THEIR_OWN:
                    continue
                print(pass_name, *how, dtype_name(dtype), memory_format, z, flush=True)
                wanted = call(pass_name, a, b, z, bias, *how)
                for at_end in (True, False):
                    inside = [guarded(t, at_end) if t is not None else None for t in (a, b, bias)]
                    got = call(pass_name, *inside[:2], z, inside[2], *how)
                    assert same_bits(got, wanted), "another result between the guards"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "fault":
        check_guards()
    elif sys.argv[1] == "overrun":
        block = torch.empty(13)
        ctypes.memset(block.data_ptr() + 13 * 4, 1, 1)
        del block
    else:
        _C.set_scratch_guard(True)
        calls(SMALL + CORNERS, DTYPES)
        calls(AWKWARD, DTYPES[:3])
        torch.set_num_threads(3)
        calls(NETWORK, DTYPES[:1])
