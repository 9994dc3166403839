"""Rows as text: the tables that are printed."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, total: bool = False) -> str:
    """Columns side by side, the first `left` of them aligned on the left; total: a rule stands before the last row."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = (text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths)))
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [line(heads), rule, *map(line, rows)]
    return "\n".join(lines[:-1] + [rule, lines[-1]] if total else lines)
