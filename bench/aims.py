"""How fast conv_ext is meant to be: the one table of aims, and whether a set of measured cases reaches them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from bench.tables import geometric_mean, number


@dataclass(frozen=True)
class Aim:
    """Ratios, torch's time over ours: the geometric mean over all cases, of each class, and of any single case."""

    mean: float
    each_class: float
    each_case: float


# (dtype, precision, instruction set that both sides are held to, or None)
LAYERS = {
    ("float32", "ieee", None): Aim(1.6, 1.0, 0.8),
    ("float32", "tf32", None): Aim(2.5, 1.2, 0.9),
    ("float64", "ieee", None): Aim(1.5, 1.1, 0.9),
    ("bfloat16", "ieee", None): Aim(1.5, 1.0, 0.8),
    ("float32", "ieee", "avx2"): Aim(1.0, 0.9, 0.7),
}
# (network, precision) of a training step; and of every network's forward at batch 1.
TRAINING_STEP = {
    ("lenet5", "ieee"): 1.2, ("alexnet", "ieee"): 1.2, ("vgg16", "ieee"): 1.3,
    ("lenet5", "tf32"): 1.3, ("alexnet", "tf32"): 1.5, ("vgg16", "tf32"): 1.8,
}
FORWARD_OF_ONE = 1.0


def word(value: float, aim: float) -> str:
    return "reached" if value >= aim else "MISSED"


def judged(rows: list[dict], aim: Aim) -> list[str]:
    """One line for each of the three aims, with what stands furthest below it."""
    classes = defaultdict(list)
    for row in rows:
        classes[row["kind"]].append(row["ratio"])
    mean = geometric_mean([row["ratio"] for row in rows])
    means = {kind: geometric_mean(ratios) for kind, ratios in classes.items()}
    lowest = min(means, key=means.get)
    worst = min(rows, key=lambda row: row["ratio"])
    below = sum(row["ratio"] < aim.each_case for row in rows)
    return [
        f"{word(mean, aim.mean)}: geometric mean of all {len(rows)} cases {number(mean)}, aim {aim.mean}",
        f"{word(means[lowest], aim.each_class)}: lowest class mean {number(means[lowest])} ({lowest}), aim "
        f"{aim.each_class}; below it: {', '.join(sorted(k for k in means if means[k] < aim.each_class)) or 'none'}",
        f"{word(worst['ratio'], aim.each_case)}: worst case {number(worst['ratio'])} ({worst['suite']}/{worst['name']} "
        f"n={worst['n']} {worst['pass']} {worst['layout']}), aim {aim.each_case}; below it: {below}",
    ]


def text(rows: list[dict], cap: str | None) -> str:
    """For each (dtype, precision) of the rows, over all their layouts and batches."""
    groups = defaultdict(list)
    for row in rows:
        if "ratio" in row:
            groups[row["dtype"], row["precision"]].append(row)
    lines = []
    for (dtype, precision), members in groups.items():
        aim = LAYERS.get((dtype, precision, cap))
        held = f", both sides held to {cap}" if cap else ""
        lines.append(f"Aims for {dtype}, {precision}{held}:" + ("" if aim else " none is set"))
        lines += [f"  {line}" for line in judged(members, aim)] if aim else []
    return "\n".join(lines)
