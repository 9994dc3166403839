"""The text of csrc/cpu/cost_table.h and its numbers: read, filled where nothing was measured, and written."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from bench import sweep

TABLE = sweep.CSRC / "cpu" / "cost_table.h"
COSTS = sweep.CSRC / "cpu" / "costs.h"
COUNTS, KINDS = 10, 4  # KINDS: float32, float64, 16 bits, complex
PROCESSORS = 3  # with vectors of less than 64 bytes, of 64, and of 64 with AMX
HEAD = """\
// Cycles of each count of the algorithms' loops (costs.h), fitted to measured times by `python -m bench fit`: for
// vectors of less than 64 bytes, of 64, and of processors with AMX; for float32, float64, numbers of 16 bits and
// complex ones; for NCHW and channels_last. What was not measured has the numbers of what is nearest.
#pragma once

#include "costs.h"

namespace conv_ext {

// clang-format off
constexpr float kCycles[3][4][kNests][2][kCounts] = {"""


@dataclass
class Table:
    """cycles[processor][type][nest][channels_last][count]; NaN where nothing is known."""

    nests: list[str]
    cycles: np.ndarray

    @classmethod
    def unknown(cls, nests: list[str]) -> Table:
        return cls(nests, np.full((PROCESSORS, KINDS, len(nests), 2, COUNTS), np.nan))


def nests_of(costs: str) -> list[str]:
    """The loops that the text of costs.h lists."""
    return re.findall(r"^  NEST\((\w+)\)", costs, re.MULTILINE)


def read(text: str, nests: list[str]) -> Table:
    """The text of cost_table.h; rows of loops that are no longer there are left out, those of new ones unknown."""
    table = Table.unknown(nests)
    found = re.findall(r"// (\w+)\n *\{\{([^}]*)\},\s*\{([^}]*)\}\}", text)
    listed = len(found) // (PROCESSORS * KINDS)
    if not found or [name for name, *_ in found] != [name for name, *_ in found[:listed]] * (PROCESSORS * KINDS):
        raise SystemExit(f"{TABLE.name} must have the same loops for each kind of processor and type")
    for place, (name, *layouts) in enumerate(found):
        if name in nests:
            processor, kind = divmod(place // listed, KINDS)
            table.cycles[processor, kind, nests.index(name)] = [[float(x) for x in row.split(",")] for row in layouts]
    return table


def number(cycles: float) -> str:
    return f"{cycles:.3g}".replace("e+0", "e") if cycles >= 1e-3 else "0"


def text(table: Table) -> str:
    """The text of cost_table.h."""
    def row(cycles: np.ndarray) -> str:
        return "{" + ", ".join(map(number, cycles)) + "}"

    lines = [HEAD]
    for processor in table.cycles:
        lines.append("  {")
        for kind in processor:
            lines.append("    {")
            for name, (nchw, channels_last) in zip(table.nests, kind):
                lines += [f"      // {name}", f"      {{{row(nchw)},", f"       {row(channels_last)}}},"]
            lines.append("    },")
        lines.append("  },")
    return "\n".join([*lines, "};", "// clang-format on", "", "}  // namespace conv_ext", ""])


def filled(measured: Table, in_force: Table, keep: bool) -> tuple[Table, dict[tuple, tuple | None]]:
    """The table with every row; and for those without measurements whose numbers they got, None: those in force.

    The nearest is the same loops of the other layout, else of another kind of processor, else of another type; where
    nobody has measured a loop, what is in force. keep: what is in force comes first.
    """
    whole, taken = Table(measured.nests, measured.cycles.copy()), {}
    known = [key for key in np.ndindex(measured.cycles.shape[:4]) if not np.isnan(measured.cycles[key]).any()]
    for key in np.ndindex(measured.cycles.shape[:4]):
        processor, kind, nest, layout = key
        if key in known:
            continue
        near = sorted((8 * (k[1] != kind) + 2 * abs(k[0] - processor) + (k[3] != layout), k)
                      for k in known if k[2] == nest)
        has_old = not np.isnan(in_force.cycles[key]).any()
        if has_old and (keep or not near):
            whole.cycles[key], taken[key] = in_force.cycles[key], None
        elif near:
            whole.cycles[key], taken[key] = measured.cycles[near[0][1]], near[0][1]
        else:
            raise SystemExit(f"the loops {measured.nests[nest]} have neither measurements in these files nor cycles in "
                             f"{TABLE.name}: sweep problems that their algorithm can compute")
    return whole, taken
