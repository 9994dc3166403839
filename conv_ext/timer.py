"""Times functions by turns in one process, so that a drift of the machine falls on all of them alike."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _C
from ._version import __version__

MIN_ROUNDS = 3
MAX_ROUNDS = 41
MAX_TRIES = 3
SAMPLE_SECONDS = 0.02  # one sample lasts at least this long: far above the clock's resolution and one interrupt


@dataclass
class Timing:
    """`samples[name][i]`: seconds per call of that function in round i."""

    samples: dict[str, list[float]]
    others: float | None  # cores that other processes kept busy meanwhile; None where that cannot be told
    disturbed: bool = False  # they wanted cores that were being measured

    @property
    def rounds(self) -> int:
        return len(next(iter(self.samples.values())))

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def ratio(self, numerator: str, denominator: str) -> float:
        """The median of the ratios round by round, not of medians: neighbours in time saw the same machine."""
        return statistics.median(a / b for a, b in zip(self.samples[numerator], self.samples[denominator]))

    def spread(self, numerator: str, denominator: str) -> float:
        """Half the distance between the quartiles of that ratio, relative to it: how far to trust it."""
        ratios = [a / b for a, b in zip(self.samples[numerator], self.samples[denominator])]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return (high - low) / 2 / middle


def undisturbed(
    functions: dict[str, Callable[[], object]],
    seconds: float,
    threads: int,
    prepare: Callable[[str], object] | None = None,
    sample_seconds: float = SAMPLE_SECONDS,
) -> Timing:
    """`alternate`, repeated up to MAX_TRIES times where other processes wanted one of the `threads` cores.

    Libraries whose threads spin while they wait suffer from that far more than others: the ratio would be wrong too.
    """
    for _ in range(MAX_TRIES):
        timing = alternate(functions, seconds, prepare, sample_seconds)
        timing.disturbed = disturbs(timing.others, threads)
        if not timing.disturbed:
            break
    return timing


def disturbs(others: float | None, threads: int) -> bool:
    """Whether other processes wanted cores that so many threads were measured on; `others`: how many were busy."""
    return others is not None and others > (os.cpu_count() or 1) - threads + 0.1


class Others:
    """How many cores the rest of the machine keeps busy: the kernel's count of busy time less our own."""

    def __init__(self) -> None:
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - time.process_time()

    def cores(self) -> float | None:
        end = self._now()
        if self.start is None or end is None:
            return None
        return max(0.0, (end[1] - self.start[1]) / (end[0] - self.start[0]))


def alternate(
    functions: dict[str, Callable[[], object]],
    seconds: float,
    prepare: Callable[[str], object] | None = None,
    sample_seconds: float = SAMPLE_SECONDS,
) -> Timing:
    """Runs every function in each round, in alternating order, until `seconds` are over and MIN_ROUNDS are done.

    `prepare(name)` is called, and then the function once more without being timed, before each sample: for whatever
    has to be switched between them. A case so slow that four times its limit pass before MIN_ROUNDS ends earlier.
    """

    def sample(name: str, repeats: int) -> float:
        function = functions[name]
        if prepare:
            prepare(name)
            function()
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - start) / repeats

    collecting = gc.isenabled()
    gc.disable()
    try:
        repeats = {}
        for name, function in functions.items():
            function()  # the first call pays for pages, caches and lazy initialisation
            repeats[name] = max(1, math.ceil(sample_seconds / max(sample(name, 1), 1e-9)))
            if repeats[name] > 1:  # one call alone says too much of caches that were cold
                repeats[name] = max(1, math.ceil(sample_seconds / max(sample(name, repeats[name]), 1e-9)))
        samples: dict[str, list[float]] = {name: [] for name in functions}
        others = Others()
        start = time.perf_counter()
        for done in range(MAX_ROUNDS):
            elapsed = time.perf_counter() - start
            if elapsed > seconds and done >= MIN_ROUNDS or elapsed > 4 * seconds and done >= 1:
                break
            for name in list(functions)[:: -1 if done % 2 else 1]:
                samples[name].append(sample(name, repeats[name]))
        busy = others.cores()
    finally:
        if collecting:
            gc.enable()
    return Timing(samples, busy)


# Of processors that a virtual machine names by their brand alone: (vendor, family): first model of a generation, name.
_GENERATIONS = {
    ("AuthenticAMD", 23): ((0x00, "Zen"), (0x30, "Zen 2")),
    ("AuthenticAMD", 25): ((0x00, "Zen 3"), (0x10, "Zen 4"), (0x20, "Zen 3"), (0x60, "Zen 4")),
    ("AuthenticAMD", 26): ((0x00, "Zen 5"),),
    ("GenuineIntel", 6): (
        (0x55, "Skylake or Cascade Lake"),
        (0x6A, "Ice Lake"),
        (0x6D, ""),
        (0x8F, "Sapphire Rapids"),
        (0x90, ""),
        (0xAD, "Granite Rapids"),
        (0xAE, ""),
        (0xCF, "Emerald Rapids"),
        (0xD0, ""),
    ),
}


def processor(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo; its generation behind it where the name has no number."""
    lines = (line.split(":", 1) for line in cpuinfo.split("\n\n", 1)[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines}
    name = fields.get("model name", "unknown CPU")
    family, model = fields.get("cpu family", ""), fields.get("model", "")
    if any(c.isdigit() for c in name) or not family.isdigit() or not model.isdigit():
        return name
    known = _GENERATIONS.get((fields.get("vendor_id", ""), int(family)), ())
    generation = next((text for first, text in reversed(known) if int(model) >= first), "")
    return f"{name} ({generation or f'family {family}, model {model}'})"


def machine() -> dict[str, Any]:
    """Names and numbers of what is measured on; no host name and no path."""
    try:
        cpu = processor(Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = "unknown CPU"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": _C.isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "conv_ext": __version__,
    }
