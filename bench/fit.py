"""`python -m bench fit`: the cycles by which the CPU's plan chooses (csrc/cpu/cost_table.h), fitted to sweeps' times.

An algorithm counts what it does (csrc/cpu/costs.h); the plan takes the one with the fewest cycles. The cycles of each
count begin as non-negative least squares and go down the gradient of what the choice loses against the fastest
algorithm, the choice taken as a softmax, and of how far the estimates are off. The table says what the choice loses
with them: fitted to all rows; "held out", with those fitted to the other problems alone; and with the table in force.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import cost_table, environment, sweep, sweep_problems, tables
from bench.cost_table import COUNTS, KINDS, Table
from bench.counts import asked

PART_OF_TABLE = {"baseline": 0, "avx2": 0, "amx": 2, "amx-emulated": 2}  # by processor; 1: those in between
TYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 2, "complex64": 3, "complex128": 3}
# Cycles of a nominal core: only their proportions decide, but people compare them with cycles.
CLOCK = 3.5e9
LEAST_ITEMS = 12  # times of a row of the table; with fewer the other layout's has them, too
LEAST_SHARE = 0.003  # of an estimate: what is less everywhere counts as nothing
SOFTNESS = 0.04  # of the softmax: algorithms that differ by 4 % are nearly equal to it
# LAYER_WEIGHT: of a network's layer beside a random problem. START_SHARE: of the cycles, that each count begins with
# at least: from less the descent hardly comes up again.
ERROR_WEIGHT, START_WEIGHT, LAYER_WEIGHT, START_SHARE = 0.05, 1e-4, 12.0, 1e-3
STEPS, RATES = 1500, ((0.7, 0.02), (1.0, 0.005))  # Adam's rate up to that part of the steps
NOT_TIMED, MEASURED_BY_NOBODY = 1e6, 1e5  # logarithms of cycles: never taken, and taken last


# ---- The rows


@dataclass
class Data:
    """R rows and A algorithms. What is not timed, or has no counts of its own, is False in `fitted`.

    seconds (R, A), inf where it was not timed. counts (R, A, COUNTS), of all images; key (R, A, 4): the table's row.
    base (R, A): logarithms of the cycles of what has no row. in_force (R): the index of the plan's choice, or -1.
    """

    rows: list[dict]
    names: list[str]
    seconds: np.ndarray
    counts: np.ndarray
    key: np.ndarray
    base: np.ndarray
    fitted: np.ndarray
    in_force: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """How many times as long as the fastest one each took; inf where it was not timed."""
        return self.seconds / self.seconds.min(1, keepdims=True)


def read(paths: list[Path]) -> list[dict]:
    """The rows of sweeps that say something, each with `isa` and `file`."""
    rows = []
    for path in paths:
        head, own = sweep.read(path)
        if head.get("threads") != "1":
            raise SystemExit(f"cycles are those of one core: a sweep must be measured with --threads 1, {path} was "
                             f"measured with {head.get('threads', 'an unknown number')}")
        if not head.get("isa"):
            raise SystemExit(f"the head of a sweep must name its instruction set, that of {path} does not")
        rows += [{**row, "isa": head["isa"], "file": path} for row in own if row["disturbed"] == "0"]
    if not rows:
        raise SystemExit("nothing to fit: other processes disturbed every row of these files")
    unknown = sorted({row["dtype"] for row in rows} - set(TYPES))
    if unknown:
        raise SystemExit(f"a dtype must be one of {', '.join(TYPES)}, got {', '.join(unknown)}")
    return rows


def times(row: dict) -> dict[str, float]:
    """Seconds of our algorithms."""
    own = {*sweep.FIXED, sweep.TORCH, "isa", "file"}
    return {name: float(ms) / 1e3 for name, ms in row.items() if name not in own and ms}


def counted(rows: list[dict]) -> list[dict]:
    """What the plans say of each row (counts.of), under the instruction set of its sweep."""
    found: list[dict] = [{}] * len(rows)
    for isa in sorted({row["isa"] for row in rows}):
        places = [i for i, row in enumerate(rows) if row["isa"] == isa]
        for i, plan in zip(places, asked([rows[i] for i in places], isa), strict=True):
            found[i] = plan
    return found


def data_of(rows: list[dict], plans: list[dict], nests: list[str]) -> tuple[Data, Counter, Counter]:
    """The rows in which something can be fitted; the algorithms whose times have no counts; the rows left out."""
    names = sorted({name for row in rows for name in times(row)})
    without, left_out, kept = Counter(), Counter(), []
    for row, plan in zip(rows, plans):
        timed = times(row)
        if foreign := sorted(set(timed) - set(plan["names"])):
            raise SystemExit(f"{row['file']} has times of {', '.join(foreign)}, which is no algorithm of this build")
        without.update(name for name in timed if name not in plan["works"])
        if any(plan["works"].get(name, ("",))[0] in nests for name in timed):
            kept.append((row, timed, plan))
        else:
            left_out[", ".join(timed) or "the reference alone"] += 1
    if not kept:
        raise SystemExit("nothing to fit: no algorithm that was timed has counts of its own")
    shape = len(kept), len(names)
    data = Data([row for row, *_ in kept], names, np.full(shape, np.inf), np.zeros((*shape, COUNTS)),
                np.zeros((*shape, 4), int), np.full(shape, NOT_TIMED), np.zeros(shape, bool), np.full(len(kept), -1))
    for i, (row, timed, plan) in enumerate(kept):
        images = 1 if row["pass"] == "weight_grad" else int(row["n"])
        for name, seconds in timed.items():
            j = names.index(name)
            data.seconds[i, j] = seconds
            nest, counts = plan["works"].get(name, ("Never", []))
            if nest in nests:
                data.fitted[i, j], data.counts[i, j] = True, np.array(counts) * images
                data.key[i, j] = (PART_OF_TABLE.get(row["isa"], 1), TYPES[row["dtype"]], nests.index(nest),
                                  plan["channels_last"])
            elif nest == "Unknown":
                data.base[i, j] = MEASURED_BY_NOBODY
        data.in_force[i] = names.index(plan["chosen"]) if plan["chosen"] in timed else -1
    return data, without, left_out


# ---- The fit


def logarithms(data: Data, table: Table) -> np.ndarray:
    """(R, A): of the estimated cycles."""
    cycles = (data.counts * np.nan_to_num(table.cycles[tuple(np.moveaxis(data.key, -1, 0))])).sum(-1)
    return np.where(data.fitted, np.log(cycles + 1e-3), data.base)


def losses(data: Data, table: Table) -> np.ndarray:
    """(R): how many times as long as the fastest one takes what the plan would choose."""
    return data.ratio[np.arange(len(data.rows)), logarithms(data, table).argmin(1)]


def start(counts: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    """Non-negative least squares of relative errors, large ones damped: multiplicative updates, as counts are >= 0.

    Lee and Seung, Algorithms for non-negative matrix factorization, 2000, with one factor given.
    """
    used, scale = counts.max(0) > 0, np.maximum(counts.mean(0), 1e-30)
    weight, found = 1 / cycles, np.full(COUNTS, cycles.mean() / max(1, used.sum()))
    for _ in range(6):
        a = counts / scale * weight[:, None]
        gram, target = a.T @ a, a.T @ (cycles * weight)
        for _ in range(500):
            found *= target / np.maximum(gram @ found, 1e-300)
        error = np.abs(np.log(np.maximum(counts / scale @ found, 1) / cycles))
        weight = 1 / cycles / np.sqrt(np.maximum(0.03, error))
    return np.where(used, np.maximum(found / scale, cycles.mean() * START_SHARE / scale), 0)


def merged_keys(data: Data) -> np.ndarray:
    """The keys of what is fitted, (items, 4); a row with few times joins that of the other layout where it has more."""
    keys = data.key[data.fitted]
    sizes = Counter(map(tuple, keys))
    for item, (*front, layout) in enumerate(keys.tolist()):
        own, other = sizes[(*front, layout)], sizes[(*front, 1 - layout)]
        if own < LEAST_ITEMS and other > own:
            keys[item, 3] = 1 - layout
    return keys


def fit(data: Data, nests: list[str], train: np.ndarray, steps: int = STEPS, tick=lambda: None) -> Table:
    """The cycles of every row of the table that the rows `train` (R, bool) of the data say something of."""
    import torch

    shown = np.nonzero(data.fitted)
    keys, seen = merged_keys(data), train[shown[0]]
    groups: dict[tuple, np.ndarray] = {}
    for key in sorted(set(map(tuple, keys[seen]))):
        groups[key] = np.nonzero((keys == key).all(1))[0]
    items = np.concatenate(list(groups.values()))
    counts, rows, columns = data.counts[shown][items], shown[0][items], shown[1][items]
    cycles = data.seconds[shown][items] * CLOCK
    pieces = np.split(np.arange(len(items)), np.cumsum([len(own) for own in groups.values()])[:-1])
    first = np.array([start(counts[p][seen[items[p]]], cycles[p][seen[items[p]]]) for p in pieces])

    tensor = torch.from_numpy
    used, blocks = tensor(first > 0), [tensor(counts[p]) for p in pieces]
    begin = tensor(np.log(np.maximum(first, 1e-12)))
    weights = begin.clone().requires_grad_()
    width = len(data.names)
    place, base = tensor(rows * width + columns), tensor(data.base.reshape(-1).copy())
    extra = np.minimum(np.where(np.isfinite(data.ratio), data.ratio - 1, 1), 1)
    extra = tensor(extra * (1 + 2 * (extra > 0.1) + 4 * (extra > 0.2)))
    logs, several = tensor(np.log(cycles)), tensor(data.fitted.sum(1))
    weight = tensor(np.where([is_random(row) for row in data.rows], 1.0, LAYER_WEIGHT))
    chosen = tensor(np.nonzero(train)[0])
    optimizer = torch.optim.Adam([weights], lr=RATES[0][1])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = next(rate for part, rate in RATES if step < part * steps)
        own = weights.exp() * used
        guess = (torch.cat([block @ row for block, row in zip(blocks, own.unbind())]) + 1e-3).log()
        estimates = base.index_put((place,), guess).view(-1, width)
        lost = (torch.softmax(-estimates / SOFTNESS, 1) * extra).sum(1) * weight
        off = torch.zeros(len(data.rows), dtype=torch.double).index_add(0, tensor(rows), (guess - logs) ** 2)
        error = (off / several + 1e-4).sqrt()
        loss = (lost[chosen].mean() + ERROR_WEIGHT * error[chosen].mean()
                + START_WEIGHT * ((weights - begin) ** 2 * used).sum(1).mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tick()
    table = Table.unknown(nests)
    for key, p, row in zip(groups, pieces, (weights.exp() * used).detach().numpy()):
        parts = counts[p] * row
        parts /= np.maximum(parts.sum(1, keepdims=True), 1e-30)
        table.cycles[key] = [float(cost_table.number(x)) for x in np.where(parts.max(0) > LEAST_SHARE, row, 0)]
    return table


def fits(data: Data, nests: list[str], trainings: list[np.ndarray], steps: int) -> list[Table]:
    """`fit` for each of them, on one thread, so that sums have the same order on every machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with environment.progress(len(trainings) * steps) as tick:
            return [fit(data, nests, train, steps, tick) for train in trainings]
    finally:
        torch.set_num_threads(threads)


def is_random(row: dict) -> bool:
    return row["layer"].startswith(f"{sweep_problems.SUITE}/")


def folds_of(data: Data, folds: int) -> np.ndarray:
    """(R): the part that a row's problem belongs to; all its passes, layouts and dtypes are in one."""
    return np.array([zlib.crc32(f"{row['layer']} {row['n']}".encode()) % folds for row in data.rows])


# ---- The report


def report(data: Data, fitted: np.ndarray, held_out: np.ndarray | None, worst: int, table: Table) -> str:
    """What the choice loses, by group, and where most; (R) each."""
    groups = defaultdict(list)
    for i, row in enumerate(data.rows):
        source = "random" if is_random(row) else "layers"
        passes = "weight_grad" if row["pass"] == "weight_grad" else "forward, input_grad"
        groups[row["isa"], row["dtype"], row["precision"], source, row["layout"], passes].append(i)
    everything = np.arange(len(data.rows))
    known = np.where(data.in_force >= 0, data.ratio[everything, data.in_force], np.nan)

    def numbers(one: np.ndarray | None, places) -> str:
        own = one[places] if one is not None else np.array([])
        own = own[~np.isnan(own)]
        if not len(own):
            return "-"
        return f"{own.mean():.3f} {(own > 1.1).mean():6.1%} {(own > 1.25).mean():6.1%} {own.max():5.2f}"

    head = ["group", "cases", "fitted: mean, > 1.10, > 1.25, most", "held out", "in force"]
    body = [[" ".join(name), len(places), numbers(fitted, places), numbers(held_out, places), numbers(known, places)]
            for name, places in (*sorted(groups.items()), (("all",), everything))]
    lines = ["What the choice takes, in times of the fastest algorithm:", "", tables.table(head, body)]
    estimates, rows = logarithms(data, table), []
    for i in np.argsort(-fitted, kind="stable")[:worst]:
        taken, fastest, row = estimates[i].argmin(), data.seconds[i].argmin(), data.rows[i]

        def said(j: int, i: int = i) -> str:
            off = math.exp(estimates[i, j]) / (data.seconds[i, j] * CLOCK) if data.fitted[i, j] else None
            return data.names[j] + (f" ({off:.2f})" if off else "")

        rows.append([f"{row['layer']} n={row['n']} {row['pass']} {row['dtype']} {row['precision']} {row['layout']} "
                     f"{row['isa']}", said(taken), said(fastest), f"{data.seconds[i, fastest] * 1e3:.3g}",
                     f"{fitted[i]:.2f}"])
    lines += ["", "Where it loses most (in brackets: the estimate in times of what was measured):", "",
              tables.table(["case", "chosen", "fastest", "ms", "loss"], rows)]
    return "\n".join(lines)


def notes(nests: list[str], taken: dict[tuple, tuple | None], without: Counter, left_out: Counter) -> list[str]:
    """Sentences on what the files say nothing of."""
    lines = [f"Times of {name} that have no counts, so that no choice takes it: {count}."
             for name, count in sorted(without.items())]
    lines += [f"Rows left out, for what was timed has no cycles in the table ({what}): {count}."
              for what, count in sorted(left_out.items())]
    each = 2 * cost_table.PROCESSORS * KINDS  # rows of the table for the same loops
    empty = Counter(nests[key[2]] for key in taken)
    kept = Counter(nests[key[2]] for key, whose in taken.items() if whose is None)
    unmeasured = [nest for nest in nests if empty[nest] == each]
    if unmeasured:
        lines.append(f"Loops that nothing was measured of: {', '.join(unmeasured)}.")
    for title, counts in (("the cycles in force", kept), ("those of what is nearest", empty - kept)):
        if counts:
            rows = ", ".join(f"{nest} {count}" for nest, count in counts.items())
            lines.append(f"Rows without measurements (of {each} each) that have {title}: {rows}.")
    return lines


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench fit", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv",
                        help="what `python -m bench sweep --threads 1` has written, of any instruction sets")
    parser.add_argument("--write", action="store_true", help="write csrc/cpu/cost_table.h")
    parser.add_argument("--keep", action="store_true",
                        help="what these files do not measure keeps its cycles, instead of those of what is nearest")
    parser.add_argument("--folds", type=int, default=3,
                        help="parts of the problems that are held out by turns (default: 3); 0: none")
    parser.add_argument("--steps", type=environment.positive, default=STEPS, help=f"of the descent (default: {STEPS})")
    parser.add_argument("--worst", type=environment.positive, default=10, help="cases that are printed (default: 10)")
    options = parser.parse_args(arguments)
    if options.folds < 0 or options.folds == 1:
        parser.error(f"--folds must be 0, or 2 or more, got {options.folds}")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    nests = cost_table.nests_of(cost_table.COSTS.read_text())
    in_force = cost_table.read(cost_table.TABLE.read_text(), nests)
    rows = read(options.files)
    data, without, left_out = data_of(rows, counted(rows), nests)
    parts = folds_of(data, options.folds or 1)
    trainings = [np.ones(len(data.rows), bool), *(parts != fold for fold in range(options.folds))]
    if not all(train.any() for train in trainings):
        raise SystemExit("there are too few problems to hold some out: give --folds 0")
    found = fits(data, nests, trainings, options.steps)
    table, taken = cost_table.filled(found[0], in_force, options.keep)
    held_out = None
    if options.folds:
        held_out = np.full(len(data.rows), np.nan)
        fallback = Table(nests, np.where(np.isnan(in_force.cycles), table.cycles, in_force.cycles))
        for fold, own in enumerate(found[1:]):
            places = parts == fold
            held_out[places] = losses(data, cost_table.filled(own, fallback, options.keep)[0])[places]
    print(report(data, losses(data, table), held_out, options.worst, table))
    print("\n".join(["", *notes(nests, taken, without, left_out)]))
    if options.write:
        cost_table.TABLE.write_text(cost_table.text(table))
        print("\nWritten: csrc/cpu/cost_table.h. Build again (`make build`): the plans are compiled with it.")
    return 0
