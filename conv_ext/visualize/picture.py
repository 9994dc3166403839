"""The figure that every picture is, which a notebook shows; the one module here that imports matplotlib at once."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["DPI", "Picture"]

DPI = 110


class Picture(Figure):
    """A matplotlib figure that belongs to no window and to no list of open figures, and shows itself in a notebook."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """What a notebook asks for; %matplotlib inline, where it is on, draws the figure by itself."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()
