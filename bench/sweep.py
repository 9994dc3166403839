"""`python -m bench sweep`: is the chosen algorithm the fastest? All that can compute a layer, by turns with torch.

Each result is judged before it is timed. A line is written for each case as it is done, into a CSV file whose first
lines say what it was measured with; `--judge FILES` reads such files again. Rows that other processes disturbed do not
count; a case whose choice seems to lose much is measured again, longer. `--random COUNT` draws problems in place of
networks' layers and leaves torch out: quick samples of many, for `python -m bench fit`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import math
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from bench import environment, precision, shapes, sweep_problems, tables

KEPT = environment.RESULTS / "sweeps"  # those that the repository keeps, and that the tests judge
CSRC = Path(__file__).parents[1] / "csrc"
COSTS = Path("cpu", "cost_table.h")
FIXED = ("layout", "dtype", "precision", "layer", "n", "kind", "pass", "chosen", "disturbed")
TORCH = "torch_ms"
DTYPES = (*shapes.DTYPES, "complex64")
SECONDS = 0.1  # of sampling a case
RANDOM_SECONDS, RANDOM_SAMPLE_SECONDS = 0.05, 0.002  # many problems tell more than exact times of few
# What the choice may lose against the fastest algorithm, over the undisturbed rows of a sweep.
MOST_MEAN, MOST_USUAL, USUAL_SHARE, MOST = 1.03, 1.10, 0.95, 1.25
LONGER = 5  # times as long a case is sampled again whose choice seems to lose more than is usual


def kernels_digest(csrc: Path = CSRC) -> str:
    """Twelve digits that change with any source of the CPU's plans and kernels.

    But for the table of costs, which says what is chosen, and not how long anything takes.
    """
    digest = hashlib.sha256()
    for path in sorted(file for folder in ("common", "cpu") for file in (csrc / folder).rglob("*") if file.is_file()):
        if path == csrc / COSTS:
            continue
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def measure(case, seconds: float) -> dict:
    """The times in milliseconds of torch and of each algorithm that can compute the case, all judged first.

    Of a random problem torch's stays empty: it takes many times as long where groups are small and numbers are float64.
    """
    import torch

    import conv_ext
    from bench import cases
    from conv_ext import timer

    o = cases.operands(case)
    plan = cases.plan(case, o)
    possible = [name for name, _, can, _ in plan.candidates if can and name != "reference"]
    row = {
        "layout": case.layout,
        "dtype": case.dtype,
        "precision": case.precision,
        "layer": case.shape.full_name,
        "n": case.shape.n,
        "kind": case.shape.kind,
        "pass": case.pass_name,
        "chosen": plan.algorithm,
    }

    def ours(name: str):
        function = cases.ours(replace(case, algorithm=name), o)

        def under_setting():
            with conv_ext.algorithm(name):
                return function()

        return under_setting

    is_random = case.shape.suite == sweep_problems.SUITE
    functions = {name: ours(name) for name in possible}
    if not is_random:
        functions = {TORCH: cases.theirs(case, o)} | functions
    sample_seconds = RANDOM_SAMPLE_SECONDS if is_random else timer.SAMPLE_SECONDS
    with precision.allowed(case.precision, case.device):
        judge = cases.judge(case)
        for name in possible:
            if not judge(functions[name](), case.precision).right:
                raise SystemExit(f"{case.name}: the result of {name} is wrong; nothing was timed")
        timing = timer.undisturbed(functions, seconds, torch.get_num_threads(), sample_seconds=sample_seconds)
    times = {name: f"{timing.median(name) * 1e3:.4g}" for name in functions}
    return row | {"disturbed": int(timing.disturbed)} | times


def measure_twice(case, seconds: float) -> dict:
    """As `measure`; again and longer where the choice loses more than MOST_USUAL.

    A neighbour on a shared machine seldom comes twice at the same place, and a wrong choice stays wrong.
    """
    row = measure(case, seconds)
    lost = row["chosen"] != "reference" and not int(row["disturbed"]) and loss(row)[0] > MOST_USUAL
    return measure(case, LONGER * seconds) if lost else row


def loss(row: dict) -> tuple[float, str]:
    """How many times as long the chosen algorithm took as the fastest one, and which that is."""
    times = {name: float(ms) for name, ms in row.items() if name not in (*FIXED, TORCH) and ms}
    fastest = min(times, key=times.__getitem__)
    return times[row["chosen"]] / times[fastest], fastest


def chosen_today(head: dict, rows: list[dict], isa: str = "") -> list[dict]:
    """The rows with what today's plans choose, which a table that was fitted later may have changed.

    The kernels must be those that were measured. isa: whose plans are asked, when not those of the sweep.
    """
    from bench import counts

    if head["kernels"] != kernels_digest():
        raise SystemExit(f"these kernels ({kernels_digest()}) are not those of the sweep ({head['kernels']})")
    plans = counts.asked(rows, isa or head["isa"])
    return [row | {"chosen": plan["chosen"]} for row, plan in zip(rows, plans)]


def judged(rows: list[dict]) -> dict:
    """What the choice loses: mean, the share of cases within MOST_USUAL, and the largest loss; None without rows."""
    losses = [loss(row)[0] for row in rows if row["chosen"] != "reference" and not int(row["disturbed"])]
    if not losses:
        return {"cases": 0, "mean": None, "usual": None, "worst": None, "good": None}
    mean, worst = statistics.fmean(losses), max(losses)
    usual = sum(one <= MOST_USUAL for one in losses) / len(losses)
    return {
        "cases": len(losses),
        "mean": mean,
        "usual": usual,
        "worst": worst,
        "good": mean <= MOST_MEAN and usual >= USUAL_SHARE and worst <= MOST,
    }


def text(head: dict, rows: list[dict]) -> str:
    """Tables of one sweep: the choice by class and pass, the fastest algorithms, and where the choice loses most."""
    groups, fastest = defaultdict(list), defaultdict(Counter)
    for row in rows:
        key = tuple(row[name] for name in ("layout", "dtype", "precision", "kind", "pass"))
        groups[key].append(row)
        if row["chosen"] != "reference" and not int(row["disturbed"]):
            fastest[key][loss(row)[1]] += 1
    lines = [", ".join(f"{name} {value}" for name, value in head.items()), ""]
    body = []
    for key, several in groups.items():
        found = judged(several)
        numbers = ["-", "-"] if not found["cases"] else [f"{found['mean']:.3f}", f"{found['worst']:.2f}"]
        names = ", ".join(f"{name} {count}" for name, count in fastest[key].most_common())
        body.append([" ".join(key), found["cases"], *numbers, names])
    lines.append(tables.table(["class", "undisturbed", "loss", "most", "fastest"], body))
    worst = sorted(
        (row for row in rows if row["chosen"] != "reference" and not int(row["disturbed"])),
        key=lambda row: -loss(row)[0],
    )[:10]
    lines += ["", "Where the choice loses most:", ""]
    lines.append(
        tables.table(
            ["case", "chosen", "fastest", "loss"],
            [
                [
                    f"{row['layer']} n={row['n']} {row['pass']} {row['dtype']} {row['precision']} {row['layout']}",
                    row["chosen"],
                    loss(row)[1],
                    f"{loss(row)[0]:.2f}",
                ]
                for row in worst
            ],
        )
    )
    found = judged(rows)
    if not found["cases"]:
        verdict = "Nothing can be said of the choice: every case was disturbed, or left to the reference."
    else:
        verdict = (
            f"In {found['cases']} undisturbed cases of {len(rows)} the choice loses {found['mean'] - 1:.1%} in the mean"
            f" (at most {MOST_MEAN - 1:.0%}), {found['usual']:.1%} of them at most {MOST_USUAL - 1:.0%} (at least "
            f"{USUAL_SHARE:.0%}), and {found['worst'] - 1:.0%} at most ({MOST - 1:.0%}): "
            f"{'as it should be' if found['good'] else 'NOT as it should be'}."
        )
    lines += ["", verdict]
    return "\n".join(lines)


def read(path: Path) -> tuple[dict, list[dict]]:
    """The head and the rows of a sweep's file."""

    def refuse(why) -> SystemExit:
        return SystemExit(f"a sweep must be a CSV file that `python -m bench sweep` has written: {path}: {why}")

    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(error.strerror if isinstance(error, OSError) else "it is no text") from None
    lines = content.splitlines()
    head = dict(line[1:].strip().split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    if "kernels" not in head or not rows or not {*FIXED, TORCH} <= set(rows[0]):
        raise refuse("its head has to name the kernels, and rows have to follow")
    if not content.endswith("\n"):
        raise refuse("its last line is cut off")
    for row in rows:
        if not _is_whole(row):
            raise refuse(f"this row is not whole: {', '.join(str(value) for value in row.values())}")
    return head, rows


def _is_whole(row: dict) -> bool:
    if None in row or None in row.values() or row["disturbed"] not in ("0", "1"):
        return False
    if row["chosen"] != "reference" and not row.get(row["chosen"]):
        return False
    try:
        return all(0 < float(ms) < math.inf for name, ms in row.items() if name not in FIXED and ms)
    except ValueError:
        return False


def head_of(machine: dict) -> dict:
    return {
        "cpu": machine["cpu"],
        "isa": machine["isa"],
        "threads": machine["threads"],
        "warm_allocator": machine["warm_allocator"],
        "torch": machine["torch"],
        "kernels": kernels_digest(),
        "date": datetime.date.today().isoformat(),
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench sweep",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The exit status is 1 where the choice loses more than it may, or cases are missing.",
    )
    environment.add_case_options(parser, suites=shapes.suites(), only=[], dtypes=DTYPES)
    environment.add_common_options(parser)
    parser.add_argument(
        "--random",
        type=environment.positive,
        metavar="COUNT",
        help="draw so many problems, instead of --suite, --only and --batch; each is a case for every "
        "pass, layout and dtype",
    )
    parser.add_argument("--seed", type=int, help="of --random: the same problems for the same number (default: 0)")
    parser.add_argument(
        "--kinds",
        choices=list(sweep_problems.KINDS),
        help="of --random: all (default), or groups, depthwise and grouped problems nearly alone",
    )
    parser.add_argument("--judge", nargs="+", type=Path, metavar="FILE.csv", help="measure nothing, judge these files")
    parser.add_argument(
        "--today",
        action="store_true",
        help="of --judge: what today's plans choose, in place of what those that measured did",
    )
    options = parser.parse_args(arguments)
    if options.today and not options.judge:
        parser.error("--today says what --judge judges: give --judge FILE.csv")
    named = options.only or options.suite != shapes.suites() or options.batch != [shapes.TRAIN]
    if options.random and named:
        parser.error("--random draws its own problems: leave out --suite, --only and --batch")
    if not options.random and (options.seed is not None or options.kinds):
        parser.error("--seed and --kinds say which problems --random draws: give --random COUNT")
    options.seed, options.kinds = options.seed or 0, options.kinds or "all"
    options.seconds = options.seconds or (RANDOM_SECONDS if options.random else SECONDS)
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.judge:
        found = [read(path) for path in options.judge]
        if options.today:
            found = [(head, chosen_today(head, rows)) for head, rows in found]
        print("\n\n".join(text(*one) for one in found))
        return int(not all(judged(rows)["good"] for _, rows in found))
    import torch

    from bench import cases
    from conv_ext.settings import ALGORITHMS

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.random:
        chosen = sweep_problems.draw(options.random, options.seed, options.kinds)
    else:
        chosen = shapes.distinct(shapes.load(options.suite, options.only, options.batch))
    todo = cases.cases(chosen, options.passes, options.dtype, options.layout, "auto", options.precision)
    names = [name for name in ALGORITHMS["cpu"] if name not in ("auto", "reference")]
    head = head_of(environment.machine())
    if options.random:
        head["random"] = f"{options.random}, seed {options.seed}, kinds {options.kinds}"
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    name = f"{'sweep-random' if options.random else 'sweep'}-{head['isa']}-{head['threads']}threads-{stamp}.csv"
    path = environment.with_suffix(options.out, ".csv") or environment.RESULTS / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise SystemExit(f"--out must be a file that can be written, got {path}: {error.strerror}") from None
    with opened as file, torch.no_grad():
        file.writelines(f"# {name}={value}\n" for name, value in head.items())
        writer = csv.DictWriter(file, [*FIXED, TORCH, *names], restval="", lineterminator="\n")
        writer.writeheader()

        def one(case) -> dict:
            row = (measure if options.random else measure_twice)(case, options.seconds)
            writer.writerow(row)
            file.flush()
            return row

        rows = environment.collect(todo, one, lambda case: case.name)
    if not rows:
        print("nothing was measured", file=sys.stderr)
        return 1
    head, rows = read(path)
    print(text(head, rows))
    print(f"\n{len(rows)} of {len(todo)} cases; written to {path}")
    return int(len(rows) < len(todo) or not judged(rows)["good"])
