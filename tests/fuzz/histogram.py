"""Adds up the histograms that runs of the fuzzer wrote: python tests/fuzz/histogram.py FILE ... [--fewest N]

Prints for each instruction set how often each algorithm ran in each pass, dtype and layout, and names the cells of
which there are fewer than N.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path


def added(files: list[Path]) -> tuple[Counter, Counter, Counter, int]:
    """Cases by instruction set; runs and choices by (instruction set, algorithm, pass, dtype, layout); failures."""
    cases, ran, chosen, failures = Counter(), Counter(), Counter(), 0
    for file in files:
        content = json.loads(file.read_text())
        cases.update(content["cases"])
        failures += content["failures"]
        for cell, (times, choices) in content["ran"].items():
            ran[tuple(cell.split())] += times
            chosen[tuple(cell.split())] += choices
    return cases, ran, chosen, failures


def table(ran: Counter, isa: str) -> list[str]:
    """A line for each algorithm, pass and dtype: how often in each layout."""
    layouts = ("nchw", "nhwc", "strided")
    lines = [f"{isa:16}{'pass':12}{'dtype':12}" + "".join(f"{layout:>10}" for layout in layouts)]
    for algorithm, pass_name, dtype in sorted({cell[1:4] for cell in ran if cell[0] == isa}):
        counts = (ran[isa, algorithm, pass_name, dtype, layout] for layout in layouts)
        lines.append(f"{algorithm:16}{pass_name:12}{dtype:12}" + "".join(f"{count:10}" for count in counts))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--fewest", type=int, default=1000)
    arguments = parser.parse_args()
    cases, ran, _, failures = added(arguments.files)
    for isa in cases:
        print("\n".join(table(ran, isa)), "\n")
    for isa, count in cases.items():
        print(f"{isa}: {count} cases, algorithms ran {sum(v for k, v in ran.items() if k[0] == isa)} times")
    few = sorted((count, " ".join(cell)) for cell, count in ran.items() if count < arguments.fewest)
    print(f"{failures} failures; {len(few)} of {len(ran)} cells below {arguments.fewest}")
    for count, cell in few:
        print(f"  {count:6} {cell}")


if __name__ == "__main__":
    main()
