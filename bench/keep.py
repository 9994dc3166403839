"""`python -m bench keep`: results as small tables, which the repository keeps in place of the files that a run writes.

A table has what reports, figures, comparisons and the README read, one case a line, ratios to five digits, times
to four, errors to two. What is the same in every case stands once, and what follows from the rest is left out.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from bench import environment

SUFFIX = ".table.json"
# Of a case: its geometry, which bench/shapes has under its name, and what no report reads.
LEFT_OUT = {"c", "h", "w", "k", "r", "s", "p", "q", "stride", "padding", "dilation", "groups"}
LEFT_OUT |= {"rms_ours", "rms_theirs", "ours_gflops", "theirs_gflops"}
MISSING = "-"  # a field that a case does not have


def _rounded(name: str, value):
    if isinstance(value, float):
        return float(f"{value:.{5 if name == 'ratio' else 2 if 'error' in name else 4}g}")
    return [_rounded(name, each) for each in value] if isinstance(value, list) else value


def table_of(result: dict) -> str:
    """A result as the text of a table."""
    cases = [{n: _rounded(n, v) for n, v in case.items() if n not in LEFT_OUT} for case in result["cases"]]
    for case in cases:
        if not case.get("disturbed"):
            case.pop("others", None)
    columns = list(dict.fromkeys(name for case in cases for name in case))
    same = {n: cases[0].get(n) for n in columns if all(n in case and case[n] == cases[0].get(n) for case in cases)}
    columns = [name for name in columns if name not in same]
    rows = [json.dumps([case.get(name, MISSING) for name in columns], separators=(",", ":")) for case in cases]
    head = {name: value for name, value in result.items() if name != "cases"} | {"same": same, "columns": columns}
    return json.dumps(head)[:-1] + ',\n"rows": [\n' + ",\n".join(rows) + "\n]}\n"


def cases_of(table: dict) -> list[dict]:
    """The cases that `table_of` was given, as far as it keeps them."""
    cases = []
    for row in table["rows"]:
        case = table["same"] | {name: value for name, value in zip(table["columns"], row) if value != MISSING}
        for side in ("ours", "theirs"):
            if "flops" in case and isinstance(case.get(f"{side}_ms"), float):
                case[f"{side}_gflops"] = case["flops"] / case[f"{side}_ms"] / 1e6
        cases.append(case)
    return cases


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench keep", allow_abbrev=False, description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="result files")
    parser.add_argument("--folder", type=Path, default=environment.RESULTS, help="default: bench/results")
    options = parser.parse_args(arguments)
    for path in options.files:
        kept = options.folder / f"{path.name.removesuffix(SUFFIX).removesuffix('.json')}{SUFFIX}"
        kept.write_text(table_of(environment.load(path)), encoding="utf-8")
        print(os.path.relpath(kept))
    return 0
