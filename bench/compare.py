"""What got faster or slower between two results, case by case, as far as it stands out of the noise."""

from __future__ import annotations

from bench.tables import geometric_mean, layer, number, table

LEAST = 0.05  # a change of the ratio by less is noise, however small the spread of a single run was
KEY = ("suite", "name", "n", "pass", "dtype", "precision", "layout", "algorithm")
# What two results must share for a difference to be the code's.
SAME = ("cpu", "cap", "isa", "threads", "warm_allocator", "torch")


def check(old: dict) -> None:
    if old["command"] != "run":
        raise SystemExit(f"only results of `python -m bench run` can be compared, got one of {old['command']}")


def by_case(result: dict) -> dict[tuple, dict]:
    return {tuple(row.get(name) for name in KEY): row for row in result["cases"] if "ratio" in row}


def pooled(results: list[dict]) -> list[dict]:
    """The timed cases of several results; of one that was measured again, the last."""
    return list({key: row for result in results for key, row in by_case(result).items()}.values())


def changes(old: dict, new: dict) -> list[tuple[float, float, dict, dict]]:
    """(change, noise, old row, new row) of each case in both; change: the new ratio to torch over the old one.

    Of the ratios and not of our times: torch measures the machine's mood in both runs. The noise is what the spreads
    of the two (half their quartiles' distance) add up to, and at least LEAST.
    """
    before, after = by_case(old), by_case(new)
    return [(after[key]["ratio"] / before[key]["ratio"], max(LEAST, before[key]["spread"] + after[key]["spread"]),
             before[key], after[key]) for key in before if key in after]


def text(old: dict, new: dict) -> str:
    check(old)
    check(new)
    found = changes(old, new)
    parts = [f"## Compared with the result of {old['machine']['time']}"]
    parts += [f"NOT ALIKE: {name} was {old['machine'].get(name)}, is {new['machine'].get(name)}"
              for name in SAME if old["machine"].get(name) != new["machine"].get(name)]
    if not found:
        return "\n\n".join([*parts, "The two have no case in common."])
    disturbed = sum(before["disturbed"] or after["disturbed"] for _, _, before, after in found)
    parts.append(f"{len(found)} cases in common ({len(by_case(new)) - len(found)} only here, "
                 f"{len(by_case(old)) - len(found)} only there, {disturbed} disturbed in one of them). Geometric mean "
                 f"of the change: {number(geometric_mean([change for change, *_ in found]))} (above 1: faster now).")
    for title, beyond in (("Slower", [f for f in found if 1 / f[0] > 1 + f[1]]),
                          ("Faster", [f for f in found if f[0] > 1 + f[1]])):
        beyond.sort(key=lambda f: abs(f[0] - 1), reverse=True)
        parts.append(f"{title} beyond the noise: {len(beyond) or 'none'}")
        if beyond:
            rows = [[layer(after), after["pass"], f"{after['dtype']} {after['precision']}", after["layout"],
                     number(before["ours_ms"]), number(after["ours_ms"]), number(before["ratio"]),
                     number(after["ratio"]), f"{change:.2f}", f"±{noise:.0%}"]
                    for change, noise, before, after in beyond]
            parts.append(table(["layer", "pass", "dtype", "layout", "ms then", "ms now", "ratio then", "ratio now",
                                "change", "noise"], rows))
    return "\n\n".join(parts)
