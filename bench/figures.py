"""Figures of results: bars of the ratio for each class, and each case under the machine's ceilings (a roofline)."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from pathlib import Path

from bench.compare import by_case
from bench.peaks import peak_of
from bench.readme import LAYOUT, setting, state
from bench.shapes import CLASSES
from bench.tables import geometric_mean

OURS, THEIRS = "#0072b2", "#d55e00"


def pyplot():
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("figures need matplotlib: python -m pip install matplotlib; or --no-figures") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def grouped(runs: list[dict], name) -> dict[str, list[tuple[dict, dict]]]:
    """(row, ceilings of its run) of the timed cases, by name(row, machine); of a case measured twice, the last."""
    last = {(state(run["machine"]), *key): (row, run["machine"]) for run in runs for key, row in by_case(run).items()}
    groups = defaultdict(list)
    for row, machine in last.values():
        groups[name(row, machine)].append((row, machine["peaks"]))
    if not groups:
        raise SystemExit("there is no timed case to draw")
    return groups


def ratios(runs: list[dict]):
    """Bars of the geometric mean for each class, with the range of its cases."""
    plt = pyplot()
    series = grouped(runs, lambda row, machine: f"{setting(row)}, {LAYOUT[row['layout']]}{state(machine)}")
    present = {row["kind"] for members in series.values() for row, _ in members}
    kinds = [kind for kind in CLASSES if kind in present] + sorted(present - set(CLASSES))
    labels = [*kinds, "all"]
    figure, axes = plt.subplots(figsize=(2 + 0.9 * len(labels), 4.5), layout="constrained")
    width = 0.8 / len(series)
    for index, (name, members) in enumerate(series.items()):
        drawn = defaultdict(list)
        for position, kind in enumerate(labels):
            values = [row["ratio"] for row, _ in members if kind in (row["kind"], "all")]
            if values:
                mean = geometric_mean(values)
                drawn["x"].append(position + (index - (len(series) - 1) / 2) * width)
                drawn["mean"].append(mean)
                drawn["below"].append(mean - min(values))
                drawn["above"].append(max(values) - mean)
        # From 1 upwards where ours is faster, downwards where it is slower.
        axes.bar(drawn["x"], [mean - 1 for mean in drawn["mean"]], width * 0.9, bottom=1, label=name)
        axes.errorbar(drawn["x"], drawn["mean"], [drawn["below"], drawn["above"]], fmt="none", ecolor="0.4", lw=0.8)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_ylabel("time of torch / time of conv_ext")
    axes.set_title("Geometric mean of each class, and the range of its cases")
    figure.legend(fontsize="small", loc="outside lower center", ncols=min(4, len(series)))
    return figure


def roofline(runs: list[dict]):
    """Rate over arithmetic intensity, a panel for each dtype and precision, under the ceilings that were measured."""
    plt = pyplot()
    panels = grouped(runs, lambda row, machine: setting(row) + state(machine))
    columns = math.ceil(math.sqrt(len(panels)))
    figure, grid = plt.subplots(math.ceil(len(panels) / columns), columns, squeeze=False, layout="constrained",
                                figsize=(6 * columns, 4.5 * math.ceil(len(panels) / columns)))
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    for axes, (name, members) in zip(grid.flat, panels.items()):
        intensity = [row["flops"] / row["bytes"] for row, _ in members]
        for side, label, color in (("theirs", "torch", THEIRS), ("ours", "conv_ext", OURS)):
            axes.scatter(intensity, [row[f"{side}_gflops"] for row, _ in members], s=10, alpha=0.6, color=color,
                         label=label, linewidths=0)
        row, peaks = members[0]
        peak = peak_of(row, peaks)
        if peak:
            knee, low, high = peak / peaks["copy"], min(intensity), max(intensity)
            axes.plot([low, max(low, knee), max(high, knee)],
                      [min(peak, low * peaks["copy"]), peak, peak], color="black", lw=1,
                      label=f"copy {peaks['copy']:.0f} GB/s, product {peak:.0f} GFLOP/s")
        axes.set(xscale="log", yscale="log", title=name,
                 xlabel="FLOP of the direct convolution per byte of its tensors",
                 ylabel="GFLOP/s")
        axes.legend(fontsize="small")
    return figure


def draw(runs: list[dict], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    plt, paths = pyplot(), []
    for name, make in (("ratios", ratios), ("roofline", roofline)):
        figure = make(runs)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        paths.append(os.path.relpath(path))
    return paths
