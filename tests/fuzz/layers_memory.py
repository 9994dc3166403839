"""Tensors that lie in memory in every way that torch can express, for the fuzzer of layers.

A description is letters with numbers, joined by "+":

    pORDER  the dimensions from the slowest to the fastest, as in p0231 (channels_last)
    sD      of dimension D only every second element belongs to the tensor
    oN      it begins N elements into its storage
    uN      strides of dimensions of size 1 are odd: they say nothing, and N chooses which
    eD      dimension D is expanded from size 1
    vN      elements are shared by overlapping windows, N apart
    n, c    the negative bit, the conjugate bit
    aN      the first byte lies N bytes behind an aligned address (not of complex128: torch's own copies crash there)
"""

from __future__ import annotations

import torch
from torch import Tensor

_ODD = (0, 1, 7, 1_000_003, 12)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, kind: str, generator: torch.Generator) -> Tensor:
    """Small integers, of which every sum is exact; reals in [-1, 1); or integers of which some are NaN or infinite."""
    if dtype.is_complex:
        real = torch.float64 if dtype == torch.complex128 else torch.float32
        return torch.view_as_complex(numbers((*shape, 2), real, kind, generator))
    if kind == "reals":
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(dtype)
    values = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    if kind == "special" and values.numel():
        flat = values.view(-1)
        for value in (float("nan"), float("inf"), -float("inf")):
            at, wanted = torch.randint(0, 2**31, (2,), generator=generator).tolist()
            if wanted % 3 == 0:
                flat[at % flat.numel()] = value
    return values


def tensor(shape: tuple[int, ...], dtype: torch.dtype, memory: str, kind: str, generator: torch.Generator) -> Tensor:
    """A tensor with these numbers, described by `memory`. What lies between and around its elements is NaN."""
    if not memory:
        return numbers(shape, dtype, kind, generator)
    rank = len(shape)
    order, spread, offset, odd, expanded, windows, misaligned = list(range(rank)), -1, 0, 0, -1, 0, 0
    negative = conjugate = False
    for part in memory.split("+"):
        letter, number = part[:1], part[1:]
        if letter == "p" and sorted(number) == [str(d) for d in range(rank)]:
            order = [int(d) for d in number]
        elif letter == "n":
            negative = True
        elif letter == "c":
            conjugate = dtype.is_complex
        elif letter == "s":
            spread = int(number) % max(rank, 1)
        elif letter == "o":
            offset = int(number)
        elif letter == "u":
            odd = int(number)
        elif letter == "e":
            expanded = int(number)
        elif letter == "v":
            windows = int(number)
        elif letter == "a":
            misaligned = int(number) if dtype != torch.complex128 else 0
        elif letter != "p":  # an order of another rank: a case that was made smaller
            raise ValueError(f"unknown memory {part!r} in {memory!r}")
    strides, step = [0] * rank, 1
    for d in reversed(order):
        strides[d] = 0 if d == expanded else step * (2 if d == spread else 1)
        if d != expanded:
            step *= max(shape[d], 1) * (2 if d == spread else 1)
    if windows:  # the slowest but one dimension of more than one element steps by less than what lies within it
        wide = [d for d in order if shape[d] > 1 and d != expanded]
        if len(wide) > 1:
            strides[wide[-2]] = windows
    last = sum((size - 1) * stride for size, stride in zip(shape, strides)) if 0 not in shape else -1
    count = offset + last + 1
    if odd:
        strides = [_ODD[(odd + d) % 5] if size == 1 else stride for d, (size, stride) in enumerate(zip(shape, strides))]
    if misaligned:
        raw = bytearray(count * dtype.itemsize + 16)
        storage = torch.frombuffer(raw, dtype=dtype, offset=misaligned, count=max(count, 1))
    else:
        storage = torch.empty(max(count, 1), dtype=dtype)
    storage.fill_(float("nan"))
    view = storage.as_strided(shape, strides, offset)
    if windows or expanded >= 0:  # elements are shared: whatever there is at each place
        storage.copy_(numbers(tuple(storage.shape), dtype, kind, generator))
    else:
        view.copy_(numbers(shape, dtype, kind, generator))
    if conjugate:
        view = view.conj()
    return torch._neg_view(view) if negative else view
