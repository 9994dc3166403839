"""`python -m bench report`: tables and figures from result files; the tables are those that a run prints at its end."""

import argparse
from collections import defaultdict
from pathlib import Path

from bench import aims, compare, environment, readme
from bench.peaks import peak_of
from bench.shapes import CLASSES, PASSES
from bench.tables import counted, geometric_mean, layer, memory, number, spread, table

WORST = 10
FEW = 40  # a section with more cases is told by its means and its worst cases


def machine_line(machine: dict) -> str:
    held = f" (both sides held to {machine['cap']})" if machine.get("cap") else ""
    gpu = f"{machine['gpu']}; " if machine.get("gpu") else ""
    return (f"{gpu}{machine['cpu']}, {counted(machine['cores'], 'core')}, {counted(machine['threads'], 'thread')}, "
            f"kernels for {machine['isa']}"
            f"{held}, allocator {'warm' if machine['warm_allocator'] else 'as it comes'}, torch {machine['torch']}, "
            f"conv_ext {machine['conv_ext']}, load {machine['load_average']} at the start, {machine['time']}")


def peaks_line(peaks: dict) -> str:
    if not peaks:
        return ""
    rates = ", ".join(f"{name} {number(rate)} GFLOP/s" for name, rate in peaks.items() if name != "copy")
    return f"Ceilings measured at the start: products of matrices in {rates}; copy {number(peaks['copy'])} GB/s."


def means(rows: list[dict], key: str, order: tuple = ()) -> str:
    """Geometric means of the ratio: one line per value of `key`, one column per pass; (how many cases)."""
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: order.index(row[key]) if row[key] in order else len(order)):
        groups[row[key]].append(row)
    lines = []
    for name, members in [*groups.items(), ("all", rows)]:
        cells = []
        for pass_name in (*PASSES, None):
            ratios = [row["ratio"] for row in members if pass_name in (row["pass"], None)]
            cells.append(f"{number(geometric_mean(ratios))} ({len(ratios)})" if ratios else "")
        lines.append([name, *cells])
    return table(["class" if key == "kind" else key, *PASSES, "all"], lines)


def suites_mean(rows: list[dict]) -> str:
    """Each suite counts once, however many layers it has."""
    suites = defaultdict(list)
    for row in rows:
        suites[row["suite"]].append(row["ratio"])
    mean = geometric_mean([geometric_mean(ratios) for ratios in suites.values()])
    return f"Mean over {counted(len(suites), 'suite')} (each counts once): {number(mean)}"


def layers(rows: list[dict], peaks: dict) -> str:
    def percent(row: dict, side: str) -> str:
        peak = peak_of(row, peaks)
        return f"{row[f'{side}_gflops'] / peak:.0%}" if peak else ""

    lines = [[layer(row), row["pass"], row["ran"], number(row["ours_ms"]), number(row["theirs_ms"]),
              number(row["ratio"]), spread(row), number(row["ours_gflops"]), number(row["theirs_gflops"]),
              percent(row, "ours"), percent(row, "theirs"), memory(row["extra_bytes"]), number(row["error_ours"]),
              number(row["error_theirs"])] for row in rows]
    return table(["layer", "pass", "algorithm", "ms ours", "ms torch", "ratio", "spread", "GFLOP/s ours",
                  "GFLOP/s torch", "of peak ours", "of peak torch", "extra MiB", "error ours", "error torch"], lines)


def run_text(result: dict, every_row: bool = False) -> str:
    """The ratio is torch's time over ours: above 1 ours is faster. Errors are in units of unavoidable rounding."""
    peaks = result["machine"]["peaks"]
    parts = [machine_line(result["machine"]), *filter(None, [peaks_line(peaks)])]
    sections = defaultdict(list)
    for row in result["cases"]:
        sections[row["dtype"], row["precision"], row["layout"], row["batch"], row["algorithm"]].append(row)
    for (dtype, precision, layout, batch, algorithm), rows in sections.items():
        timed = [row for row in rows if "ratio" in row]
        parts.append(f"## {dtype}, {precision}, {layout}, batch {batch}"
                     + ("" if algorithm == "auto" else f", algorithm {algorithm}"))
        settings = sorted({row["torch_precision"] for row in timed if row.get("torch_precision")})
        if precision != "ieee":
            parts.append(f"torch's own setting, read back: {', '.join(settings)}")
        if timed:
            if every_row or len(timed) <= FEW:
                parts.append(layers(timed, peaks))
            parts += ["Geometric mean of the ratio, by class:", means(timed, "kind", CLASSES),
                      "By suite:", means(timed, "suite"), suites_mean(timed)]
            if len(timed) > WORST:
                parts += ["The worst cases:", layers(sorted(timed, key=lambda row: row["ratio"])[:WORST], peaks)]
        parts += [f"WRONG: {row['suite']}/{row['name']} {row['pass']}, error {row['error_ours']:.3g} (torch "
                  f"{row['error_theirs']:.3g}){': ' + row['failed'] if 'failed' in row else ''}"
                  for row in rows if not row["right"]]
        beyond = sum(not row.get("torch_right", True) for row in rows)
        parts += [f"torch's own result was beyond the bound in {beyond} cases."] if beyond else []
        reasons = sorted({row["declined"] for row in rows if "declined" in row})
        parts += [f"Not computed by {algorithm}: {sum('declined' in row for row in rows)} cases ({'; '.join(reasons)})"
                  ] if reasons else []
    machine = result["machine"]
    return "\n\n".join(filter(None, [*parts, aims.text(result["cases"], machine["cap"], machine.get("isa"))]))


def network_text(result: dict, _: bool = False) -> str:
    rows = []
    for row in result["cases"]:
        aim = row["aim"]
        rows.append([row["network"], row["what"], row["n"], row["precision"], row["layout"], number(row["ours_ms"]),
                     number(row["theirs_ms"]), number(row["ratio"]), spread(row),
                     "" if aim is None else f"{aim} {aims.word(row['ratio'], aim, aims.all_disturbed([row]))}",
                     f"{row['error_ours']:.1e}", f"{row['error_theirs']:.1e}"])
    head = ["network", "what", "images", "precision", "layout", "ms ours", "ms torch", "ratio", "spread", "aim",
            "error ours", "error torch"]
    parts = [machine_line(result["machine"]),
             "Training step: forward, loss and backward, without the optimizer's step. Errors: of all gradients, or of "
             "the scores, together, relative to float64.", *([table(head, rows)] if rows else [])]
    if result.get("memory"):
        on_gpu = "Peak memory of a training step, by torch's allocator on the GPU (MiB):"
        on_cpu = "Peak memory of a process that does two training steps, all of it (MiB, allocator as it comes):"
        parts.append(on_gpu if result["machine"].get("gpu") else on_cpu)
        parts.append(table(["network", "images", "precision", "layout", "ours", "torch"],
                           [[row["network"], row["n"], row["precision"], row["layout"], memory(row["ours"]),
                             memory(row["theirs"])] for row in result["memory"]]))
    parts += [f"WRONG: {line}" for line in result.get("wrong", [])]
    return "\n\n".join(parts)


def call_text(result: dict, _: bool = False) -> str:
    def judged(row: dict) -> str:
        if row["limit"] is None:
            return ""
        word = "kept" if row["cost"] <= row["limit"] else "EXCEEDED"
        return f"{row['limit']} {aims.NOT_JUDGED if row.get('disturbed') else word}"

    rows = [[row["what"], number(row["ours_us"]), number(row["theirs_us"]), number(row["cost"]),
             spread(row), judged(row)] for row in result["cases"]]
    head = ["one call on tiny tensors", "µs ours", "µs torch", "ours / torch", "spread", "limit"]
    return machine_line(result["machine"]) + "\n\n" + table(head, rows)


def scaling_text(result: dict, _: bool = False) -> str:
    rows = [[layer(row), row["pass"], *map(number, row["ours_ms"]), number(row["ours_scaling"]),
             number(row["theirs_scaling"]), spread(row, "ours_spread"),
             *("same" if row[f"{side}_same_bits"] else "differ" for side in ("ours", "theirs"))]
            for row in result["cases"]]
    many = result["machine"]["threads"]
    head = ["layer", "pass", "ms ours, 1 thread", f"ms ours, {many}", "ours, times faster", "torch, times faster",
            "spread", "bits ours", "bits torch"]
    return machine_line(result["machine"]) + "\n\n" + table(head, rows)


def fused_text(result: dict, _: bool = False) -> str:
    rows = [[row["network"], row["n"], row["layout"],
             *(number(row[f"{side}_ms"]) for side in ("torch", "ours", "apart", "fused")),
             *(number(row[ratio]) for ratio in ("ratio", "gain", "epilogues")), spread(row),
             f"{row['error']:.1e}", f"{row['error_theirs']:.1e}"] for row in result["cases"]]
    head = ["network", "images", "layout", "ms torch", "ms ours", "ms without epilogues", "ms fused", "torch / fused",
            "ours / fused", "without / fused", "spread", "error", "error of torch"]
    wrong = [f"WRONG: {row['network']}, {row['n']}, {row['layout']}: {row['error']:.1e} from float64, limit "
             f"{row['limit']:.1e}" for row in result["cases"] if not row["right"]]
    return "\n\n".join([machine_line(result["machine"]), table(head, rows), *wrong])


def mapped_text(result: dict, _: bool = False) -> str:
    rows = [[row["case"], row["connections"], f"{row['share']:.0%}", row.get("way", ""),
             *(number(row[f"{side}_ms"]) for side in ("mapped", "masked")), number(row["ratio"]), spread(row),
             f"{row['error']:.1e}"] for row in result["cases"]]
    head = ["case", "connections", "of all", "way", "ms mapped", "ms masked dense", "ratio", "spread", "error"]
    return machine_line(result["machine"]) + "\n\n" + table(head, rows)


def inference_text(result: dict, _: bool = False) -> str:
    from bench import inference  # which prints by this module

    return inference.text(result)


def pooling_text(result: dict, _: bool = False) -> str:
    from bench import pooling

    return pooling.text(result)


def parts_text(result: dict, _: bool = False) -> str:
    from bench import parts

    return parts.text(result)


TEXTS = {"run": run_text, "network": network_text, "call": call_text, "scaling": scaling_text, "fused": fused_text,
         "mapped": mapped_text, "inference": inference_text, "pooling": pooling_text, "parts": parts_text}


def disturbance(result: dict) -> str:
    """A warning where other processes wanted the cores that were being measured."""
    cases = result["cases"]
    disturbed = [row["others"] for row in cases if row.get("disturbed")]
    if not disturbed:
        return ""
    return (f"\n\nDISTURBED (marked with !): in {len(disturbed)} of {len(cases)} cases other processes kept up to "
            f"{max(disturbed):.1f} cores busy; neither times nor ratios count, measure again.")


def text(result: dict, every_row: bool = False) -> str:
    if result["command"] not in TEXTS:
        raise SystemExit(f"a result must be of one of {', '.join(TEXTS)}, got {result['command']}")
    return TEXTS[result["command"]](result, every_row) + disturbance(result)


def print_aims_of_all(results: list[dict]) -> None:
    """Where layouts, batches or dtypes lie in several files: the aims over all files of one kind of run."""
    groups = defaultdict(list)
    for result in results:
        if result["command"] == "run":
            machine = result["machine"]
            groups[machine["cap"], machine["warm_allocator"], machine.get("isa")].append(result)
    for (cap, warm, isa), members in groups.items():
        if len(members) > 1:
            print(f"\nOver {len(members)} files, allocator {'warm' if warm else 'as it comes'}:")
            print(aims.text(compare.pooled(members), cap, isa))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", allow_abbrev=False, description=__doc__)
    parser.add_argument("files", nargs="*", type=Path,
                        help="result files (default: the newest of bench/results; with --readme its tables)")
    parser.add_argument("--rows", action="store_true", help="print every case, however many there are")
    parser.add_argument("--aims", action="store_true", help="print only the aims, over all files of layers together")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", default=environment.RESULTS,
                        help="where ratios.png and roofline.png go (default: bench/results)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    parser.add_argument("--readme", action="store_true", help="put the table of these files into README.md")
    parser.add_argument("--inference", action="store_true",
                        help="put the table of inference of these files (default: of those kept in bench/results) into "
                             "docs/benchmarks.md")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="what changed since that result")
    options = parser.parse_args(arguments)
    if options.readme and options.inference:
        parser.error("--readme and --inference are made of different files: one at a time")
    files = options.files or (readme.kept() if options.readme else [])
    if options.inference and not files:
        files = readme.kept(("inference",))
        if not files:
            readme.update_inference([])
            return 0
    if not files:
        files = sorted(environment.RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime)[-1:]
    if not files:
        raise SystemExit("there is no result in bench/results yet: run `python -m bench` first")
    if options.compare and len(files) != 1:
        parser.error(f"--compare takes one file to compare with the old one, got {len(files)}")
    results = [environment.load(path) for path in files]
    if options.aims:
        for result in results:
            if result["command"] in ("network", "inference"):
                print(text(result) + "\n")
        pooled = [row for result in results if result["command"] == "run" for row in result["cases"]]
        print(aims.text(pooled, None))
        return 0
    print("\n\n".join(text(result, options.rows) for result in results))
    print_aims_of_all(results)
    if options.compare:
        print("\n" + compare.text(environment.load(options.compare), results[0]))
    runs = [result for result in results if result["command"] == "run"]
    if runs and not options.no_figures:
        from bench import figures

        print(f"\ndrawn: {', '.join(figures.draw(runs, options.figures))}")
    if options.readme:
        readme.update(results)
    if options.inference:
        readme.update_inference(results)
    return 0
