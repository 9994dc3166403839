"""`python -m bench report`: markdown tables from result files; the same that a run prints at its end."""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

from bench import environment
from bench.shapes import PASSES

WORST = 10


def table(head: list[str], rows: list[list]) -> str:
    """A markdown table; the first column is left-aligned, the others right-aligned, and padded to be read as text."""
    cells = [head] + [[str(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.rjust(width) if i else cell.ljust(width)
                                for i, (cell, width) in enumerate(zip(row, widths))) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def layer(row: dict) -> str:
    return f"{row['suite']}/{row['name']} n={row['n']}"


def spread(row: dict, key: str = "spread") -> str:
    return ("! " if row["disturbed"] else "") + f"±{row[key]:.0%}"


def machine_line(machine: dict) -> str:
    return (f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, kernels for {machine['isa']}, "
            f"allocator {'warm' if machine['warm_allocator'] else 'as it comes'}, torch {machine['torch']}, "
            f"conv_ext {machine['conv_ext']}, load {machine['load_average']} at the start, {machine['time']}")


def means(rows: list[dict], key: str) -> str:
    """Geometric means of the ratio: one line per value of `key`, one column per pass; (how many cases)."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    lines = []
    for name, members in [*groups.items(), ("all", rows)]:
        cells = []
        for pass_name in (*PASSES, None):
            ratios = [row["ratio"] for row in members if pass_name in (row["pass"], None)]
            cells.append(f"{number(geometric_mean(ratios))} ({len(ratios)})" if ratios else "")
        lines.append([name, *cells])
    return table([key, *PASSES, "all"], lines)


def layers(rows: list[dict]) -> str:
    lines = [[layer(row), row["pass"], number(row["ours_ms"]), number(row["theirs_ms"]), number(row["ratio"]),
              spread(row), number(row["ours_gflops"]), number(row["theirs_gflops"]),
              number(row["error_ours"]), number(row["error_theirs"])] for row in rows]
    return table(["layer", "pass", "ms ours", "ms torch", "ratio", "spread", "GFLOP/s ours", "GFLOP/s torch",
                  "error ours", "error torch"], lines)


def run_text(result: dict) -> str:
    """The ratio is torch's time over ours: above 1 ours is faster. Errors are in units of unavoidable rounding."""
    parts = [machine_line(result["machine"])]
    sections = defaultdict(list)
    for row in result["cases"]:
        sections[row["dtype"], row["layout"], row["algorithm"]].append(row)
    for (dtype, layout, algorithm), rows in sections.items():
        timed = [row for row in rows if "ratio" in row]
        parts.append(f"## {dtype}, {layout}" + ("" if algorithm == "auto" else f", algorithm {algorithm}"))
        if timed:
            worst = sorted(timed, key=lambda row: row["ratio"])[:WORST]
            parts += [layers(timed), "Geometric mean of the ratio, by suite:", means(timed, "suite"),
                      "By kind of layer:", means(timed, "kind"), "The worst cases:", layers(worst)]
        parts += [f"WRONG: {row['suite']}/{row['name']} {row['pass']}, error {row['error_ours']:.3g} (torch "
                  f"{row['error_theirs']:.3g})" for row in rows if not row["right"]]
    return "\n\n".join(parts)


def call_text(result: dict) -> str:
    def judged(row: dict) -> str:
        return "" if row["limit"] is None else f"{row['limit']} {'kept' if row['cost'] <= row['limit'] else 'EXCEEDED'}"

    rows = [[row["what"], number(row["ours_us"]), number(row["theirs_us"]), number(row["cost"]),
             spread(row), judged(row)] for row in result["cases"]]
    head = ["one call on tiny tensors", "µs ours", "µs torch", "ours / torch", "spread", "limit"]
    return machine_line(result["machine"]) + "\n\n" + table(head, rows)


def scaling_text(result: dict) -> str:
    rows = [[layer(row), row["pass"], *map(number, row["ours_ms"]), number(row["ours_scaling"]),
             number(row["theirs_scaling"]), spread(row, "ours_spread"),
             *("same" if row[f"{side}_same_bits"] else "differ" for side in ("ours", "theirs"))]
            for row in result["cases"]]
    many = result["machine"]["threads"]
    head = ["layer", "pass", "ms ours, 1 thread", f"ms ours, {many}", "ours, times faster", "torch, times faster",
            "spread", "bits ours", "bits torch"]
    return machine_line(result["machine"]) + "\n\n" + table(head, rows)


TEXTS = {"run": run_text, "call": call_text, "scaling": scaling_text}


def disturbance(result: dict) -> str:
    """A warning where other processes wanted the cores that were being measured."""
    cases = result["cases"]
    disturbed = [row["others"] for row in cases if row.get("disturbed")]
    if not disturbed:
        return ""
    return (f"\n\nDISTURBED (marked with !): in {len(disturbed)} of {len(cases)} cases other processes kept up to "
            f"{max(disturbed):.1f} cores busy; neither times nor ratios count, measure again.")


def text(result: dict) -> str:
    return TEXTS[result["command"]](result) + disturbance(result)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="result files (default: the newest of bench/results)")
    files = parser.parse_args(arguments).files
    if not files:
        files = sorted(environment.RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime)[-1:]
    if not files:
        raise SystemExit("there is no result in bench/results yet: run `python -m bench` first")
    print("\n\n".join(text(json.loads(path.read_text())) for path in files))
    return 0
