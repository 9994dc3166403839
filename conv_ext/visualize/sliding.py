"""A convolution to watch: the kernel on its way over the input, and the same for both backward passes.

All three passes are one motion: something that slides is laid over a canvas, what lies on each other is multiplied and
summed, and the sum is one number of the result.

| pass | canvas | slides | its cells are apart | a step is | result |
|---|---|---|---|---|---|
| forward | padded input | kernel | dilation | stride | output |
| input_grad | upstream gradient, zeros between and around | rotated kernel | dilation | 1 | gradient of the input |
| weight_grad | padded input | upstream gradient | stride | dilation | gradient of the kernel |
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import Padding, normalize
from ..functional import IntOrPair, conv2d
from .figures import at_least_one, bare, figure_class, has_values, new_figure, progress

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

    from .picture import Picture

__all__ = ["Sliding", "convolution"]

NAMES = {
    "forward": ("input", "kernel", "output"),
    "input_grad": ("upstream gradient", "kernel, rotated", "gradient of\nthe input"),
    "weight_grad": ("input", "upstream gradient", "gradient of\nthe kernel"),
}
MOST_NUMBERS = 14  # cells of a side, up to which numbers are written into them
MOST_CELLS = 64  # of a side that is drawn
MOST_FRAMES, MOST_MOVING = 32, 144  # of a strip, of an animation
SECONDS = (0.02, 600.0)  # of a frame; a GIF has none longer than 655
COVERED, ZERO = "#c2410c", "#f1efec"


@dataclass(frozen=True)
class Sliding:
    """The frames of a pass, one for each number of the result; `convolution` makes it, and says what is drawn.

    canvas, slides, result: the three maps. real: where the canvas has numbers of its own, and no zeros of padding.
    apart, step: how far the cells of what slides lie apart, and how far it moves, each (height, width).

    `strip()` is a figure of some frames, `save("name.gif")` or `.html` the animation, `html()` the same as a page that
    plays by itself. In a notebook it shows itself as the animation.
    """

    of: str
    canvas: Tensor
    real: Tensor
    slides: Tensor
    result: Tensor
    apart: tuple[int, int]
    step: tuple[int, int]

    def __len__(self) -> int:
        return self.result.numel()

    def covered(self, frame: int) -> tuple[Tensor, Tensor]:
        """The rows and the columns of the canvas that lie under what slides in a frame; ValueError for no frame."""
        i, j = self._place(frame)
        rows, columns = (torch.arange(n) * a for n, a in zip(self.slides.shape, self.apart))
        return rows + i * self.step[0], columns + j * self.step[1]

    def _place(self, frame: int) -> tuple[int, int]:
        if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < len(self):
            raise ValueError(f"frames must be from 0 to {len(self) - 1}, got {frame!r}")
        return divmod(frame, self.result.shape[1])

    def products(self, frame: int) -> list[tuple[float, float]]:
        """The pairs of numbers that a frame multiplies, row by row; their products' sum is its number."""
        rows, columns = self.covered(frame)
        under = self.canvas[rows][:, columns]
        return list(zip(self.slides.flatten().tolist(), under.flatten().tolist()))

    def strip(self, frames: int | Sequence[int] = 4) -> Picture:
        """A figure of some frames below each other: so many, evenly spread from the first to the last, or those given.

        Raises ValueError where there are no such frames, or more than 32 of them.
        """
        if isinstance(frames, Sequence) and not isinstance(frames, str):
            chosen = list(frames)
            for frame in chosen:
                self._place(frame)
        else:
            at_least_one(frames=frames)
            chosen = self._spread(frames)
        if not 1 <= len(chosen) <= MOST_FRAMES:
            raise ValueError(
                f"a strip has from 1 to {MOST_FRAMES} frames, got {len(chosen)}; an animation has them all"
            )
        width, height = self._size()
        figure = new_figure(width, height * len(chosen))
        panels = figure.subfigures(len(chosen), 1, squeeze=False).flat
        for frame, panel in zip(chosen, panels):
            _Scene(panel, self).show(frame)
        return figure

    def _spread(self, most: int) -> list[int]:
        """The frames, or so many of them, evenly spread from the first to the last."""
        count = min(most, len(self))
        return [round(i * (len(self) - 1) / max(count - 1, 1)) for i in range(count)]

    def animation(self, seconds: float = 0.6, bar: bool = True) -> FuncAnimation:
        """matplotlib's animation, each frame for so many seconds; ValueError unless from 0.02 to 600.

        Of results of more than 144 numbers it shows 144 frames, evenly spread, or drawing would take minutes.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"seconds must be a number, got {seconds!r}")
        if not SECONDS[0] <= seconds <= SECONDS[1]:
            raise ValueError(f"seconds must be from {SECONDS[0]:g} to {SECONDS[1]:g}, got {seconds}")
        figure_class()
        from matplotlib.animation import FuncAnimation

        figure, chosen = new_figure(*self._size()), self._spread(MOST_MOVING)
        scene = _Scene(figure, self)

        def frames() -> Generator[int, None, None]:
            yield from progress(chosen, "frames", bar)

        def draw(frame: int) -> list[Any]:
            scene.show(frame)
            return []

        draw(len(self) - 1)  # all is laid out once, with every number there
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return FuncAnimation(figure, draw, frames, init_func=list, save_count=len(chosen), interval=1000 * seconds)

    def save(self, path: str | Path, seconds: float = 0.6, bar: bool = True) -> Path:
        """Write the animation: a .gif (matplotlib's Pillow writer) or an .html page. Returns the path.

        seconds: for each frame, from 0.02 to 600. bar: whether long work shows a progress bar. The file is written when
        all is drawn, so that a call that ends early leaves it as it was. ValueError for another ending;
        FileNotFoundError, before anything is drawn, where there is no such folder.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (".gif", ".html"):
            raise ValueError(f"an animation is saved as .gif or .html, got {path.name!r}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
        if ending == ".gif":
            with TemporaryDirectory() as folder:  # where the writer leaves what it has when it is interrupted
                made = Path(folder) / "frames.gif"
                self.animation(seconds, bar).save(made, writer="pillow", dpi=80)
                path.write_bytes(made.read_bytes())
        else:
            page = f"<!DOCTYPE html>\n<meta charset='utf-8'><title>{html.escape(self._title())}</title>\n"
            path.write_text(page + self.html(seconds, bar), encoding="utf-8")
        return path

    def html(self, seconds: float = 0.6, bar: bool = True) -> str:
        """The animation as HTML with all its frames, and buttons to play it and to go frame by frame.

        The buttons (matplotlib's) take their icons from the network, and work without them.
        """
        return self.animation(seconds, bar).to_jshtml(default_mode="loop")

    def _repr_html_(self) -> str:
        return self.html()

    def _title(self) -> str:
        return f"{self.of}: {' '.join(NAMES[self.of][2].split())}, {self.result.shape[0]} × {self.result.shape[1]}"

    def _size(self) -> tuple[float, float]:
        """Inches of a frame: half an inch a cell where that fits."""
        across = sum(map_.shape[1] for map_ in (self.canvas, self.slides, self.result)) + 3
        down = max(map_.shape[0] for map_ in (self.canvas, self.slides, self.result)) + 1
        cell = min(0.46, 11 / across)
        height = 0.5 if down == 2 else max(1.6, down * cell)  # a row is no higher than its numbers
        return max(5.0, across * cell), height + 0.75

    def formula(self, frame: int) -> str:
        """The sum that a frame computes, as text: its products where they are few, else its value alone."""
        i, j = self._place(frame)
        value = _short(self.result[i, j].item())
        where = f"[{j}]" if len(self.canvas) == 1 else f"[{i}, {j}]"  # a row counts one way alone
        pairs = self.products(frame)
        if len(pairs) > 9 or max(len(_short(n)) for pair in pairs for n in pair) > 4:
            return f"{where} = {value}"
        return f"{where} = {' + '.join(f'{_signed(a)}·{_signed(b)}' for a, b in pairs)} = {value}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e4 else f"{value:.2g}"


def _signed(value: float) -> str:
    return f"({_short(value)})" if value < 0 else _short(value)


class _Scene:
    """The three maps on a figure or a part of one; `show` puts a frame there, in place of the one before."""

    def __init__(self, panel: FigureBase, sliding: Sliding) -> None:
        self.sliding = sliding
        maps = sliding.canvas, sliding.slides, sliding.result
        self.left, middle, self.right = panel.subplots(1, 3, width_ratios=[map_.shape[1] for map_ in maps])
        canvas, slides, result = NAMES[sliding.of]
        padded = "" if bool(sliding.real.all()) else ", with zeros" if sliding.of == "input_grad" else ", padded"
        _cells(self.left, sliding.canvas, canvas + padded, sliding.real)
        _cells(middle, sliding.slides, slides)
        self.texts, self.image = _cells(self.right, sliding.result, result)
        self.title = panel.suptitle(" ", fontsize=8.5, y=0.02, va="bottom")
        self.passing: list[Any] = []  # what the next frame takes away

    def show(self, frame: int) -> None:
        """Draw a frame."""
        sliding = self.sliding
        for artist in self.passing:
            artist.remove()
        self.passing = [_frame(self.right, *divmod(frame, sliding.result.shape[1]), 2.2)]
        done = torch.arange(len(sliding)).reshape(sliding.result.shape) <= frame
        self.image.set_data(sliding.result.masked_fill(~done, torch.nan).numpy())
        for text, there in zip(self.texts, done.flatten().tolist()):
            text.set_visible(there)
        rows, columns = sliding.covered(frame)
        small = _is_small(sliding.canvas) and sliding.slides.numel() > 1
        for r, i in enumerate(rows.tolist()):
            for s, j in enumerate(columns.tolist()):
                self.passing.append(_frame(self.left, i, j, 1.6))
                if small:  # the number that this one is multiplied with, small in its corner
                    text = _short(sliding.slides[r, s].item())
                    where: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 6, "color": COVERED}
                    where["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                    self.passing.append(self.left.text(j + 0.44, i + 0.46, text, **where))
        self.title.set_text(sliding.formula(frame))


def _is_small(map_: Tensor) -> bool:
    return max(map_.shape) <= MOST_NUMBERS


def _cells(axes: Axes, map_: Tensor, title: str, real: Tensor | None = None) -> tuple[list[Any], AxesImage]:
    """A map as cells, red above zero and blue below, zeros of padding grey; returns the numbers and the image."""
    limit = 1.6 * max(map_.abs().max().item(), 1e-12)
    shown = map_ if real is None else map_.masked_fill(~real, torch.nan)
    axes.set_facecolor("white" if real is None else ZERO)
    image = axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=8.5)
    bare(axes)
    height, width = map_.shape
    axes.set_xticks([n - 0.5 for n in range(width + 1)], minor=True)
    axes.set_yticks([n - 0.5 for n in range(height + 1)], minor=True)
    axes.grid(which="minor", color="#d4d4d4", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    texts = []
    for i, j in itertools.product(range(height), range(width)) if _is_small(map_) else ():
        colour = "#171717" if real is None or bool(real[i, j]) else "#a8a29e"
        where: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5, "color": colour}
        texts.append(axes.text(j, i, _short(map_[i, j].item()), **where))
    return texts, image


def _frame(axes: Axes, i: int, j: int, width: float) -> Rectangle:
    from matplotlib.patches import Rectangle

    frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=COVERED, linewidth=width, clip_on=False)
    axes.add_patch(frame)
    return frame


def convolution(
    x: Tensor, w: Tensor, stride: IntOrPair = 1, padding: Padding | IntOrPair = 0, dilation: IntOrPair = 1, *,
    of: str = "forward", g: Tensor | None = None,
) -> Sliding:  # fmt: skip
    """The kernel on its way over the input, a frame for each number of the result; or one of the backward passes.

    of:
        "forward": the kernel over the padded input.
        "input_grad": the kernel, rotated by 180 degrees, over the upstream gradient, which has stride - 1 zeros between
        its numbers and zeros around it: the gradient of the input. (What computes it multiplies none of these zeros.)
        "weight_grad": the upstream gradient over the padded input, its numbers a stride apart: the gradient of the
        kernel.

    Args:
        x: one map (H, W), or a row (W,). w: a kernel (R, S), or (S,) for a row. In a picture small whole numbers can be
            followed; up to 14 cells of a side are written out.
        stride, padding, dilation: as in `conv_ext.conv2d`, padding strings included; of a row a padding is that of its
            two ends, as in `conv_ext.conv1d`.
        g: the upstream gradient (P, Q) of a backward pass, or (Q,); None: ones, the gradient of the output's sum.

    Returns:
        Sliding: the animation, which shows itself in a notebook; `.strip()` is a figure of some frames,
        `.save("convolution.gif")` (or .html) writes it. Its numbers are those that conv_ext computes, in float64.

    Raises:
        ValueError: `of` is none of the three, x or w are no single map, have NaN or infinities, g has another size than
        the output or is given for "forward", a side would have more than 64 cells, a result is too large for float64.
        TypeError: an operand is no tensor, or has no real values. RuntimeError: as `conv_ext.conv2d`.
    """
    if not isinstance(of, str) or of not in NAMES:
        raise ValueError(f"of must be one of {', '.join(map(repr, NAMES))}, got {of!r}")
    if of == "forward" and g is not None:
        raise ValueError("g is the upstream gradient of a backward pass, not of 'forward'")
    with torch.inference_mode(False), torch.enable_grad():
        row = isinstance(x, Tensor) and isinstance(w, Tensor) and x.dim() == w.dim() == 1
        if row and isinstance(padding, int):
            padding = (0, padding)  # as conv1d has it
        x, w = _map("x", x), _map("w", w)
        x4, w4 = x[None, None].requires_grad_(), w[None, None].requires_grad_()
        steps, pads, gaps, _ = normalize("convolution", x4, w4, stride, padding, dilation, 1)
        apart, dilated, (top, bottom, left, right) = (steps[0], steps[1]), (gaps[0], gaps[1]), pads
        padded = area = (x.shape[0] + top + bottom, x.shape[1] + left + right)
        around = (top, left)
        if of == "input_grad":
            reach = dilated[0] * (w.shape[0] - 1), dilated[1] * (w.shape[1] - 1)
            area = x.shape[0] + reach[0], x.shape[1] + reach[1]
            around = reach[0] - top, reach[1] - left
        _fits(*padded, *area)
        y = conv2d(x4, w4, None, stride, padding, dilation)
        if not y.numel():
            raise ValueError(f"the output has no numbers: {list(y.shape[2:])}")
        g = torch.ones_like(y[0, 0]) if g is None else _map("g", g)
        if g.shape != y.shape[2:]:
            raise ValueError(f"g must be as large as the output, {list(y.shape[2:])}, got {list(g.shape)}")
        dx, dw = torch.autograd.grad(y, (x4, w4), g[None, None])
    of_input, of_kernel, kernel = dx[0, 0], dw[0, 0], w.detach()
    if of == "input_grad":
        parts = (*_laid(g, area, around, apart), kernel.flip(0, 1), of_input, dilated, (1, 1))
    elif of == "forward":
        parts = (*_laid(x.detach(), area, around, (1, 1)), kernel, y.detach()[0, 0], dilated, apart)
    else:
        parts = (*_laid(x.detach(), area, around, (1, 1)), g, of_kernel, apart, dilated)
    has_values("the result", parts[3])
    return Sliding(of, *parts)


def _fits(*cells: int) -> None:
    """ValueError, before anything so large is made, where a side has more cells than are drawn."""
    if max(cells) > MOST_CELLS:
        raise ValueError(f"a picture has up to {MOST_CELLS} cells a side, this would have {max(cells)}")


def _map(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    value = value[None] if value.dim() == 1 else value
    if value.dim() != 2 or not value.numel() or value.is_complex():
        raise ValueError(f"{name} must be one real map (rows, columns) that is not empty, got {list(value.shape)}")
    _fits(*value.shape)
    has_values(name, value)
    return value.detach().double().cpu().clone()  # a clone: a tensor of inference mode has no gradient


def _laid(map_: Tensor, sizes: Sequence[int], begin: Sequence[int], apart: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A map on a canvas of zeros, its first number at `begin` (below 0: cut off), and where its numbers are."""
    canvas, real = torch.zeros(*sizes, dtype=map_.dtype), torch.zeros(*sizes, dtype=torch.bool)
    places = [begin[axis] + apart[axis] * torch.arange(map_.shape[axis]) for axis in (0, 1)]
    inside = [(place >= 0) & (place < size) for place, size in zip(places, sizes)]
    rows, columns = (place[there] for place, there in zip(places, inside))
    canvas[rows[:, None], columns] = map_[inside[0]][:, inside[1]]
    real[rows[:, None], columns] = True
    return canvas, real
