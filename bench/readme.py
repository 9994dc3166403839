"""Tables written between two markers from result files, so that no figure is typed by hand: the README's of ratios, and
that of inference in docs/benchmarks.md.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from bench import aims, compare
from bench.environment import RESULTS, load
from bench.shapes import CLASSES
from bench.tables import counted, geometric_mean, number, table

README = Path(__file__).resolve().parents[1] / "README.md"
BENCHMARKS = README.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
LAYOUT = {"nchw": "NCHW", "channels_last": "channels_last"}


def state(machine: dict) -> str:
    """What a column has to say beside its dtype and layout, where the run was not the usual one."""
    notes = ["" if machine["warm_allocator"] else "cold", f"{machine['cap']} both" if machine.get("cap") else ""]
    return "".join(f", {note}" for note in notes if note)


def setting(row: dict) -> str:
    return row.get("dtype", "float32") + ("" if row["precision"] == "ieee" else f" {row['precision']}")


def layers_table(runs: list[dict]) -> str:
    """Classes by columns of (dtype, precision, layout): the geometric mean over layers, passes and batches."""
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    alike = defaultdict(list)
    for run in runs:
        alike[state(run["machine"])].append(run)
    batches = dict.fromkeys(row["batch"] for run in runs for row in run["cases"])
    for note, members in alike.items():
        for row in compare.pooled(members):
            column = columns[f"{setting(row)}, {LAYOUT[row['layout']]}{note}"]
            for line in (row["kind"], f"all, batch {row['batch']}", "all"):
                column[line].append(row["ratio"])
    lines = []
    for kind in (*CLASSES, *(f"all, batch {batch}" for batch in batches if len(batches) > 1), "all"):
        if any(column[kind] for column in columns.values()):
            lines.append([kind, *(f"{number(geometric_mean(c[kind]))} ({len(c[kind])})" if c[kind] else ""
                                  for c in columns.values())])
    return table(["class (cases)", *columns], lines)


def networks_table(results: list[dict]) -> str:
    columns: dict[str, dict[str, float]] = defaultdict(dict)
    names = {}
    for result in results:
        for row in result["cases"]:
            name = f"{setting(row)}, {LAYOUT[row['layout']]}{state(result['machine'])}"
            columns[name][f"{row['network']}, {row['what']}"] = row["ratio"]
            names[f"{row['network']}, {row['what']}"] = f"{row['network']}, {row['what']}, batch {row['n']}"
    # Training steps first, whichever file came first.
    names = dict(sorted(names.items(), key=lambda name: not name[0].partition(", ")[2].startswith("training")))
    lines = [[names[key], *(number(c[key]) if key in c else "" for c in columns.values())] for key in names]
    return table(["network", *columns], lines)


def section(results: list[dict]) -> str:
    runs = [result for result in results if result["command"] == "run"]
    networks = [result for result in results if result["command"] == "network" and result["cases"]]
    if not runs and not networks:
        raise SystemExit("the README's table is made of results of `run` and `network`; none was given")
    machines = dict.fromkeys(f"{r['machine']['cpu']}, {counted(r['machine']['cores'], 'core')}, "
                             f"{counted(r['machine']['threads'], 'thread')}, torch {r['machine']['torch']}"
                             for r in runs + networks)
    disturbed = sum(bool(row.get("disturbed")) for r in runs + networks for row in r["cases"])
    parts = [f"How many times as fast as torch's own convolutions, on: {'; '.join(machines)}. Geometric means of the "
             f"ratio of times, each result verified against float64 first."]
    parts += [f"In {disturbed} cases other processes disturbed the measurement."] if disturbed else []
    parts += [layers_table(runs)] if runs else []
    parts += [networks_table(networks)] if networks else []
    return "\n\n".join(parts)


def inference_table(results: list[dict]) -> str:
    """A line for each case: ms of each kind of side, of the layout in which it is fastest, and the aim's ratio."""
    from bench import inference  # whose reports import this module

    lines = []
    for result in results:
        machine = result["machine"]
        for (name, n, dtype, precision), rows in inference.grouped(result["cases"]).items():
            timed = [row for row in rows if "ms" in row]
            columns = [[row["ms"] for row in timed if row["side"] in sides] for sides in SIDES.values()]
            ours = min((row["ms"] for row in timed if row["ours"]), default=None)
            peer = inference.best_peer(rows)
            ratio = peer["ms"] / ours if peer and ours else None
            aim = aims.inference(name, n, dtype, precision, machine.get("isa") == "amx", machine.get("cap"))
            word = f"{aim} {aims.word(ratio, aim, aims.all_disturbed(timed))}" if ratio and aim else ""
            disturbed = "! " if any(row.get("disturbed") for row in timed) else ""
            lines.append([f"{name}, {n}, {setting({'dtype': dtype, 'precision': precision})}",
                          *(number(min(times)) if times else "" for times in columns),
                          disturbed + number(ratio) if ratio else "", word])
    return table(["network, images, numbers", *SIDES, "best peer / ours", "aim"], lines)


# Columns, and the sides that are in them.
SIDES = {"torch": ("torch",), "compiled, frozen": ("torch, compiled, frozen",), "onnxruntime": ("onnxruntime",),
         "openvino": ("openvino, f32", "openvino, bf16"), "ours, fused": ("ours, fused",),
         "ours, fused, compiled": ("ours, fused, compiled",)}
NO_INFERENCE = ("No results are kept: `python -m bench inference --warm`, `python -m bench keep FILES`, "
                "`python -m bench report --inference`.")


def inference_section(results: list[dict]) -> str:
    if not results:
        return NO_INFERENCE
    machines = dict.fromkeys(f"{m['cpu']}, {counted(m['cores'], 'core')}, {counted(m['threads'], 'thread')}, "
                             f"torch {m['torch']}"
                             + "".join(f", {name} {version}" for name, version in m.get("peers", {}).items())
                             for m in (result["machine"] for result in results))
    return f"Medians in ms, of the faster of both layouts; on: {'; '.join(machines)}.\n\n{inference_table(results)}"


def kept(commands: tuple[str, ...] = ("run", "network")) -> list[Path]:
    """Tables in bench/results of these commands: by default what the README's tables are made of."""
    return [path for path in sorted(RESULTS.glob("*.table.json")) if load(path)["command"] in commands]


def replaced(text: str, new: str, name: str = "README.md") -> str:
    """The text of a file with what is between the markers exchanged."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{name} must hold {BEGIN} and, after it, {END}, once each")
    return text[: text.index(BEGIN) + len(BEGIN)] + f"\n{new}\n" + text[text.index(END):]


def update(results: list[dict], path: Path = README) -> None:
    _exchange(path, section(results))


def update_inference(results: list[dict], path: Path = BENCHMARKS) -> None:
    _exchange(path, inference_section([result for result in results if result["command"] == "inference"]))


def _exchange(path: Path, new: str) -> None:
    path.write_text(replaced(path.read_text(encoding="utf-8"), new, path.name), encoding="utf-8")
    print(f"\n{path.name}: table replaced")
