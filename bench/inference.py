"""`python -m bench inference`: the forward pass of whole networks, ours beside what else a user could run it with."""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor, nn

from bench import aims, environment, peers, precision, report
from bench.network import ONE, distance, limit
from bench.networks import FOREIGN, NETWORKS, data, made, present
from conv_ext import timer
from conv_ext.subjects import settled

DEFAULT = ["resnet18", "resnet50", "vgg16", "alexnet", "googlenet", "mobilenet_v2", "timm/mobilenetv3_large_100"]
QUICK = ["resnet18", "mobilenet_v2"]
SETTINGS = {"ieee": ("float32", "ieee"), "tf32": ("float32", "tf32"), "bfloat16": ("bfloat16", "ieee")}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench inference", allow_abbrev=False, description=__doc__,
        epilog="All sides of a case run by turns in one process, each once unmeasured before every sample, after their "
               "scores were compared with float64's. onnxruntime and openvino are used where they are installed (pip "
               "install conv_ext[peers]). The exit status is 1 where scores of ours are further from float64 than they "
               "may be; a missed aim does not count.")
    parser.add_argument("--network", nargs="+", choices=[*NETWORKS, *FOREIGN], metavar="NAME",
                        help=f"of {', '.join([*NETWORKS, *FOREIGN])} (default: {' '.join(DEFAULT)}, timm's where it is "
                             f"installed; with --quick {' '.join(QUICK)})")
    parser.add_argument("--batch", nargs="+", type=environment.positive, metavar="N",
                        help="images of a call (default: 1 8; with --quick 1)")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS),
                        help="float32 as it is, float32 whose operands may be rounded to TF32, or bfloat16")
    parser.add_argument("--side", nargs="+", choices=peers.GROUPS, default=list(peers.GROUPS),
                        help="who is measured (default: all); compiled: torch.compile with freezing, of torch's layers "
                             "and of ours")
    parser.add_argument("--seconds", type=environment.seconds, help="time limit of one case (default: 30)")
    parser.add_argument("--quick", action="store_true", help="few networks, one image, 5 seconds for each case")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    options.network = options.network or (QUICK if options.quick else DEFAULT)
    options.network = present(options.network)
    options.batch = options.batch or ([1] if options.quick else [1, 8])
    options.seconds = options.seconds or (5.0 if options.quick else 30.0)
    return options


def chosen(groups: list[str], dtype: str) -> list[peers.Side]:
    names = {name for group in groups for name in peers.GROUPS[group]}
    return [side for side in peers.SIDES if side.name in names and dtype in side.dtypes]


class Case:
    """A network with its images and its float64 scores, at one setting."""

    def __init__(self, name: str, n: int, setting: str):
        self.name, self.n, self.setting = name, n, setting
        self.dtype, self.precision = SETTINGS[setting]
        self.model = settled(made(name), data(name, max(n, 4))[0])
        self.x, _ = data(name, n)
        self.reference: Tensor = self.model.double()(self.x.double())
        self.model.float()
        layers = sum(isinstance(module, nn.Conv2d) for module in self.model.modules())
        rounding = "bf16" if self.dtype == "bfloat16" else self.precision
        self.subject = peers.Subject(self.model, self.x, self.dtype, torch.get_num_threads())
        self.refused = self._refused()
        theirs = distance([self.model(self.x)], [self.reference])
        self.limit = limit(ONE, rounding, theirs, layers)

    def _refused(self) -> str:
        """Why torch's own layers cannot compute it, "" where they can: then ours, among which they stand, cannot."""
        model, x = self.subject.in_layout("nchw")
        try:
            model(x)
        except NotImplementedError as error:
            return f"torch's layers cannot: {error}"
        return ""

    def row(self, side: peers.Side) -> dict:
        return {"network": self.name, "n": self.n, "dtype": self.dtype, "precision": self.precision,
                "side": side.name, "layout": side.layout, "ours": side.ours, "counts": side.counts, "right": True}

    def prepared(self, side: peers.Side) -> tuple[dict, peers.Forward | None]:
        """The side's row as far as it is known before it is timed; no function where it is wrong or left out."""
        row = self.row(side)
        if self.refused:
            return row | {"skipped": self.refused}, None
        try:
            forward = side.make(self.subject, side.layout)
            scores = forward()
        except peers.Skipped as reason:
            return row | {"skipped": str(reason)}, None
        except Exception as error:
            if side.ours:
                raise
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            return row | {"skipped": f"{type(error).__name__}: {text[:200]}"}, None
        row["error"] = distance([scores], [self.reference])
        row |= {"limit": self.limit, "right": row["error"] <= self.limit}
        return row, forward if row["right"] else None


def measure(case: Case, groups: list[str], seconds: float) -> list[dict]:
    """A row for each side of a case. ratio: the side's time over that of the fastest of ours."""
    sides = chosen(groups, case.dtype)
    with torch.no_grad(), precision.allowed(case.precision) as torch_precision:
        found = environment.collect(sides, case.prepared, lambda side: f"{case.name}: {side.label}")
        if len(found) < len(sides):
            raise KeyboardInterrupt
        functions = {side.label: forward for side, (_, forward) in zip(sides, found) if forward is not None}
        rows = {side.label: row | {"torch_precision": torch_precision} for side, (row, _) in zip(sides, found)}
        if functions:
            timing = timer.undisturbed(functions, seconds, torch.get_num_threads(), prepare=lambda name: None)
            of_ours = [label for label in functions if rows[label]["ours"]]
            best = min(of_ours, key=timing.median, default=None)
            for label in functions:
                rows[label] |= {"ms": timing.median(label) * 1e3, "least_ms": min(timing.samples[label]) * 1e3,
                                "rounds": timing.rounds, "others": timing.others, "disturbed": timing.disturbed}
                if best is not None:
                    rows[label] |= {"ratio": timing.ratio(label, best), "spread": timing.spread(label, best)}
    torch._dynamo.reset()  # compiled code keeps its model
    return list(rows.values())


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    todo = list(itertools.product(options.network, options.batch, options.setting))
    result = {"command": "inference", "machine": environment.machine() | {"peers": peers.versions()}, "left_out": []}

    def measured(item) -> list[dict]:
        name, n, setting = item
        try:
            with torch.no_grad():
                case = Case(name, n, setting)
        except (ImportError, RuntimeError) as error:
            if name not in FOREIGN:
                raise
            result["left_out"].append(f"{name}: {str(error).splitlines()[0]}")
            return []
        return measure(case, options.side, options.seconds)

    found = environment.collect(todo, measured, lambda item: f"{item[0]}, {item[1]} images, {item[2]}")
    result["cases"] = [row for rows in found for row in rows]
    path = environment.save(result, options.out)
    print(report.text(result))
    wrong = sum(not row["right"] and row["ours"] for row in result["cases"])
    print(f"\n{len(found)} of {len(todo)} cases, {wrong} of ours wrong; written to {path}")
    return 1 if wrong or len(found) < len(todo) else 0


def grouped(cases: list[dict]) -> dict[tuple, list[dict]]:
    """The rows of each case: of a network, a number of images, a dtype and a precision."""
    groups: dict[tuple, list[dict]] = {}
    for row in cases:
        groups.setdefault((row["network"], row["n"], row["dtype"], row["precision"]), []).append(row)
    return groups


def best_peer(rows: list[dict]) -> dict | None:
    """Of the rows of one case the fastest that aims count, if there is one."""
    return min((row for row in rows if row["counts"] and "ratio" in row), key=lambda row: row["ms"], default=None)


def text(result: dict) -> str:
    """A table for each case, then the aims."""
    from bench.tables import number, spread, table

    machine = result["machine"]
    there = ", ".join(f"{name} {version}" for name, version in machine.get("peers", {}).items())
    parts = [report.machine_line(machine) + (f"; {there}" if there else ""),
             "Forward pass in eval mode. ratio: the side's time over that of the fastest of ours. error: of the "
             "scores, relative to float64."]
    judged = []
    for (name, n, dtype, chosen_precision), rows in grouped(result["cases"]).items():
        setting = dtype if dtype != "float32" else f"float32, {chosen_precision}"
        parts.append(f"## {name}, {n} image{'s' if n > 1 else ''}, {setting}")
        timed = sorted((row for row in rows if "ms" in row), key=lambda row: row["ms"])
        lines = [[f"{row['side']}, {row['layout']}", number(row["ms"]), number(row["least_ms"]),
                  number(row["ratio"]) if "ratio" in row else "", spread(row) if "ratio" in row else "",
                  f"{row['error']:.1e}"] for row in timed]
        parts += [table(["side", "ms", "least ms", "ratio", "spread", "error"], lines)] if lines else []
        parts += [f"left out: {row['side']}: {row['skipped']}" for row in rows if "skipped" in row]
        parts += [f"WRONG: {row['side']}, {row['layout']}: {row['error']:.1e} from float64, limit {row['limit']:.1e}"
                  for row in rows if not row["right"]]
        aim = aims.inference(name, n, dtype, chosen_precision, machine.get("isa") == "amx", machine.get("cap"))
        peer = best_peer(rows)
        if aim is not None and peer is not None:
            judged.append(f"  {aims.word(peer['ratio'], aim, aims.all_disturbed(timed))}: {name}, {n}, {setting}: "
                          f"{number(peer['ratio'])} against {peer['side']}, {peer['layout']}; aim {aim}")
    parts += [f"left out: {line}" for line in dict.fromkeys(result.get("left_out", []))]
    parts += ["\n".join(["Aims, the best of the peers over ours:", *judged])] if judged else []
    return "\n\n".join(parts)
