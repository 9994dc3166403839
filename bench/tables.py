"""Numbers and rows as text: what every table of the bench is made of."""

import math


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


def counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def layer(row: dict) -> str:
    return f"{row['suite']}/{row['name']} n={row['n']}"


def spread(row: dict, key: str = "spread") -> str:
    """How far to trust a ratio; one round says nothing of that."""
    return ("! " if row["disturbed"] else "") + ("±?" if row.get("rounds") == 1 else f"±{row[key]:.0%}")


def memory(count: int | None) -> str:
    """MiB."""
    return "" if count is None else f"{count / 2**20:.1f}"
