"""Rows as tables: as text, which is printed, and as HTML, which a notebook shows."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Shown", "Table", "as_html", "text_table"]


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, total: bool = False) -> str:
    """Columns side by side, the first `left` of them aligned on the left; total: a rule stands before the last row."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = (text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths)))
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [line(heads), rule, *map(line, rows)]
    return "\n".join(lines[:-1] + [rule, lines[-1]] if total else lines)


class Table(NamedTuple):
    """A table as `text_table` prints it; without heads it is HTML's alone."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    total: bool = False

    def __str__(self) -> str:
        return text_table(self.heads, self.rows, self.left, self.total)

    def html(self) -> str:
        """The same as an HTML table; a notebook's own style sheet does the rest."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ["left" if i < self.left else "right" for i in range(len(cells))]
            inside = (f'<{tag} style="text-align:{s}">{html.escape(c)}</{tag}>' for c, s in zip(cells, sides))
            return f"<tr>{''.join(inside)}</tr>"

        body = [line(row, "td") for row in self.rows]
        if self.total:
            body[-1] = line(self.rows[-1], "th")
        head = f"<thead>{line(self.heads, 'th')}</thead>" if self.heads else ""
        return f"<table>{head}<tbody>{''.join(body)}</tbody></table>"


class Shown:
    """What prints as lines and tables and shows itself in a notebook as the same in HTML: `_parts` gives them."""

    def _parts(self) -> list[str | Table]:
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(map(str, self._parts()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self._parts())


def as_html(parts: Sequence[str | Table]) -> str:
    """Lines as paragraphs, those that follow one another in one, and tables; an indented line is code."""
    pieces: list[str] = []
    lines: list[str] = []

    def paragraph() -> None:
        if lines:
            pieces.append(f"<p>{'<br>'.join(lines)}</p>")
        lines.clear()

    for part in parts:
        if isinstance(part, Table):
            paragraph()
            pieces.append(part.html())
        elif not part.strip():
            paragraph()
        else:
            text = html.escape(part.strip())
            lines.append(f"<code>{text}</code>" if part.startswith("    ") else text)
    paragraph()
    return "".join(pieces)
