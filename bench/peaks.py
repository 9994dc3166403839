"""The machine's ceilings as torch itself reaches them, so that a rate can be read as a part of what is there.

Proxies, stated as such: the fastest large matrix product that this torch has (MKL's or oneDNN's) stands for the
multiply-adds of a dtype, and a copy of a large tensor for memory. A kernel that does less arithmetic than the direct
convolution, by whose count its rate is given, can be above them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

SIZES = (512, 1024, 2048)  # of square matrices
COPY_BYTES = 256 << 20  # read and written: far beyond the caches
SECONDS = 0.15  # of sampling for each


def best_seconds(function: Callable[[], object]) -> float:
    """The least of the samples: a ceiling is what the machine can do, not what it did in between."""
    function()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def product_rate(dtype: torch.dtype, sizes=SIZES) -> float:
    """FLOP/s of the fastest product."""
    rates = []
    for size in sizes:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        ways = [lambda: torch.mm(a, b)]
        if dtype is not torch.float64:  # which oneDNN does not have
            ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], None))
        for way in ways:
            with contextlib.suppress(RuntimeError, AttributeError):  # a torch without oneDNN, a dtype without code
                rates.append(2 * size**3 / best_seconds(way))
    return max(rates)


def copy_rate(count: int = COPY_BYTES) -> float:
    """Bytes per second, read and written ones together, as a pass over tensors has both."""
    source = torch.zeros(count // 8)
    target = torch.empty_like(source)
    return count / best_seconds(lambda: target.copy_(source))


def has_bfloat16(isa: str) -> bool:
    """Whether the processor multiplies bfloat16 itself, under the instruction set that is in use."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return False
    return isa not in ("avx2", "baseline") and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def measure(isa: str) -> dict[str, float]:
    """GFLOP/s by dtype, and "copy" in GB/s, with the threads that torch has now."""
    rates = {"float32": product_rate(torch.float32), "float64": product_rate(torch.float64)}
    # A vector holds half as many doubles, and every x86-64 multiplies them at the same pace: where torch's product of
    # doubles is slower than that (MKL leaves AVX-512 aside on some processors), the ceiling is not.
    rates["float64"] = max(rates["float64"], rates["float32"] / 2)
    if has_bfloat16(isa):
        rates["bfloat16"] = product_rate(torch.bfloat16)
    return {name: rate / 1e9 for name, rate in {**rates, "copy": copy_rate()}.items()}


def peak_of(row: dict, peaks: dict[str, float]) -> float | None:
    """The ceiling of the arithmetic that a case may use: bfloat16's where that is allowed and there, else float32's."""
    if row["dtype"] == "float64":
        return peaks.get("float64")
    bfloat16 = row["dtype"] == "bfloat16" or row.get("precision") == "bf16"
    return peaks.get("bfloat16", peaks.get("float32")) if bfloat16 else peaks.get("float32")
