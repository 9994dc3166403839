"""Makes the pictures of docs/mathematics.md: `python docs/make_mathematics.py`, some ten seconds.

Every number in them is computed by torch or by conv_ext from the operands below, which are those of the page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import conv_ext  # noqa: E402
from conv_ext import visualize  # noqa: E402
from conv_ext.demo.data import load_digits  # noqa: E402
from conv_ext.visualize.sliding import _cells as cells  # noqa: E402  (a map as cells with its numbers)

PICTURES = HERE / "mathematics"
LINE, TAPS = torch.tensor([0.0, 1, 2, -1, 3]), torch.tensor([1.0, 1, 0])
X = torch.tensor([[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]])
W = torch.tensor([[1.0, -2], [3, 4]])
G = torch.tensor([[2.0, 1], [-1, 3]])
ROW = torch.tensor([1.0, 2, -1, 3, 0, 4])
MAPS = torch.tensor([[[1.0, 2, 0], [-1, 3, 1], [2, 0, -2]], [[0, 1, 1], [2, 0, 1], [1, -1, 0]]])
KERNELS = torch.tensor([[[1.0, -2], [3, 4]], [[1, 0], [0, -1]], [[0, 2], [1, 1]]])  # of the pairs 00, 01, 11
POOLED = torch.tensor([[1.0, 3, 2, 0], [4, 2, 1, 5], [0, 1, 3, 2], [2, 1, 0, 1]])
FILTERED, FILTER = torch.tensor([1.0, 2, 3, 5]), torch.tensor([1.0, -2, 4])  # the example of F(2, 3)
COLOURS = ("#fdba74", "#93c5fd", "#86efac", "#f0abfc")
INK, GREY, MARK = "#171717", "#a8a29e", "#c2410c"


def sliding() -> dict:
    """The kernel on its way, a few frames of each."""
    taps, g = torch.tensor([2.0, -1, 1]), torch.tensor([1.0, 3])
    rows = {
        "correlation": visualize.convolution(LINE, TAPS).strip([0, 1, 2]),
        "full": visualize.convolution(LINE, TAPS.flip(0), padding=(0, 2)).strip([0, 2, 5]),
        "strided": visualize.convolution(ROW, taps, stride=2, of="input_grad", g=g).strip([0, 1, 2]),
    }
    return rows | {
        "forward": visualize.convolution(X, W).strip([0, 3]),
        "input_grad": visualize.convolution(X, W, of="input_grad", g=G).strip([0, 4]),
        "weight_grad": visualize.convolution(X, W, of="weight_grad", g=G).strip([0, 3]),
    }


def sizes():
    """Valid, same, full: the first and the last place of a 3 x 3 kernel on an input of 4 x 4."""
    from matplotlib.patches import Rectangle

    figure = visualize.new_figure(8.6, 4.4)
    values = torch.arange(16.0).reshape(4, 4)
    for axes, (name, padding) in zip(
        figure.subplots(1, 3, width_ratios=(4, 6, 8)), (("valid", 0), ("same", 1), ("full", 2))
    ):
        padded = F.pad(values, (padding,) * 4)
        real = F.pad(torch.ones(4, 4, dtype=torch.bool), (padding,) * 4)
        out = conv_ext.conv2d(values[None, None], torch.ones(1, 1, 3, 3), padding=name if name != "valid" else 0)
        rows, columns = out.shape[2:]
        cells(axes, padded, f"{name}: padding {padding}, {rows} × {columns} places", real)
        for place, style in ((0, "-"), (rows - 1, "--")):
            box = Rectangle((place - 0.5, place - 0.5), 3, 3, fill=False, edgecolor=MARK, linewidth=2, linestyle=style)
            box.set_clip_on(False)
            axes.add_patch(box)
    return figure


def filters():
    """A digit through a box filter, and through one that finds edges."""
    image = load_digits().test_images[3, 0].double() / 255
    box = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    edge = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    figure = visualize.new_figure(8.6, 2.9)
    panels = figure.subplots(1, 3)
    for axes, kernel, title in zip(panels, (None, box, edge), ("input", "3 × 3 box filter", "left minus right")):
        shown = image if kernel is None else conv_ext.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0]
        limit = shown.abs().max().item()
        signed = bool((shown < 0).any())
        axes.imshow(shown.numpy(), cmap="RdBu_r" if signed else "gray", vmin=-limit if signed else 0, vmax=limit)
        axes.set_title(title, fontsize=9)
        visualize.bare(axes)
    return figure


def shifts():
    """A digit, moved and filtered, in either order."""
    digit = load_digits().test_images[3, 0].double() / 255
    image = F.pad(digit[None, None, 4:28, 8:24], (8, 16, 4, 12))
    edge = torch.tensor([[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]], dtype=torch.float64)
    moved = image.roll((8, 8), (2, 3))
    of_image, of_moved = (conv_ext.conv2d(each, edge) for each in (image, moved))
    assert torch.equal(of_moved, of_image.roll((8, 8), (2, 3)))
    figure = visualize.new_figure(6.2, 5.9)
    shown = ((image, "x"), (of_image, "y"), (moved, "x, moved"), (of_moved, "its y: moved as well"))
    for axes, (each, title) in zip(figure.subplots(2, 2).flat, shown):
        limit = each.abs().max().item()
        signed = bool((each < 0).any())
        axes.imshow(each[0, 0].numpy(), cmap="RdBu_r" if signed else "gray", vmin=-limit if signed else 0, vmax=limit)
        axes.set_title(title, fontsize=9)
        visualize.bare(axes)
    return figure


def maps():
    """Two input maps and two output maps, of which the second sees one: three kernels."""
    layer = conv_ext.MappedConv2d([[0, 1], [1]], 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(KERNELS)
        y = layer(MAPS.double())
    figure = visualize.new_figure(7.4, 4.4)
    figure.set_layout_engine("none")
    places = {"x0": (0.04, 0.55), "x1": (0.04, 0.08), "w00": (0.41, 0.7), "w01": (0.41, 0.4), "w11": (0.41, 0.1),
              "y0": (0.76, 0.58), "y1": (0.76, 0.11)}  # fmt: skip
    values = {"x0": MAPS[0], "x1": MAPS[1], "w00": KERNELS[0], "w01": KERNELS[1], "w11": KERNELS[2],
              "y0": y[0], "y1": y[1]}  # fmt: skip
    side = {"x": 0.34, "w": 0.18, "y": 0.24}
    for name, (left, bottom) in places.items():
        height = side[name[0]]
        axes = figure.add_axes((left, bottom, height * 4.4 / 7.4, height))
        cells(axes, values[name], name)

    def arrow(begin: str, end: str) -> None:
        (left, bottom), (to, level) = places[begin], places[end]
        start = (left + side[begin[0]] * 4.4 / 7.4 + 0.01, bottom + side[begin[0]] / 2)
        stop = (to - 0.01, level + side[end[0]] / 2)
        figure.add_artist(_line(start, stop, figure))

    for pair in ("00", "01", "11"):
        arrow(f"x{pair[1]}", f"w{pair}")
        arrow(f"w{pair}", f"y{pair[0]}")
    return figure


def _line(start, stop, figure):
    from matplotlib.patches import FancyArrowPatch

    return FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=11, color=GREY, linewidth=1.3,
                           transform=figure.transFigure)  # fmt: skip


def product():
    """A 1 x 1 convolution as a product of matrices."""
    x = torch.tensor([[1.0, 2, 0, -1], [3, 1, 2, 0], [2, 0, -2, 1]])
    w = torch.tensor([[1.0, -2, 0], [3, 4, 1]])
    y = conv_ext.conv2d(x.reshape(1, 3, 2, 2), w[:, :, None, None]).reshape(2, 4)
    figure = visualize.new_figure(7.6, 2.2)
    named = ((w, "w (K × C)"), (x, "x (C × H·W): a map to a row"), (y, "y (K × P·Q)"))
    for index, (axes, (matrix, title)) in enumerate(zip(figure.subplots(1, 3, width_ratios=(3, 4, 4)), named)):
        cells(axes, matrix, title)
        if index:
            axes.text(-0.13, 0.5, "·="[index - 1], transform=axes.transAxes, fontsize=16, ha="center", va="center")
    return figure


def _jacobian(w: Tensor, x_shape: Sequence[int], **options) -> Tensor:
    """The matrix of a convolution (P·Q x H·W), read off its derivatives."""
    function: Callable = conv_ext.conv1d if len(x_shape) == 1 else conv_ext.conv2d

    def flat(x: Tensor) -> Tensor:
        return function(x.reshape(1, 1, *x_shape), w[None, None], **options).flatten()

    return torch.autograd.functional.jacobian(flat, torch.zeros(torch.Size(x_shape).numel()))


def _taps(axes, matrix: Tensor, names: Sequence[str], title: str, letters: str) -> None:
    """A matrix whose entry t + 1 is tap t, in that tap's colour."""
    from matplotlib.colors import ListedColormap

    axes.imshow(
        matrix.numpy(), cmap=ListedColormap(["white", *COLOURS[: len(names)]]), vmin=-0.5, vmax=len(names) + 0.5
    )
    rows, columns = matrix.shape
    for i, j in matrix.nonzero().tolist():
        axes.text(j, i, names[int(matrix[i, j]) - 1], ha="center", va="center", fontsize=8, color=INK)
    axes.set_xticks(range(columns), [f"{letters[1]}{j}" for j in range(columns)], fontsize=7)
    axes.set_yticks(range(rows), [f"{letters[0]}{i}" for i in range(rows)], fontsize=7)
    axes.xaxis.tick_top()
    axes.set_xticks([j - 0.5 for j in range(columns + 1)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(rows + 1)], minor=True)
    axes.grid(which="minor", color="#d4d4d4", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#d4d4d4")
    axes.set_title(title, fontsize=9)


def matrices():
    """The matrices of four convolutions of six positions, and their transposes, tap by tap in colours."""
    w = torch.tensor([1.0, 2, 3])  # tap t is t + 1: the colour says which it is
    kinds = {"no padding": {}, "padding 1": {"padding": 1}, "stride 2": {"stride": 2}, "dilation 2": {"dilation": 2}}
    figure = visualize.new_figure(10.4, 4.7)
    panels = figure.subplots(2, 4)
    for column, (title, options) in enumerate(kinds.items()):
        matrix = _jacobian(w, (6,), **options)
        _taps(panels[0, column], matrix, ("w0", "w1", "w2"), title, "yx")
        _taps(panels[1, column], matrix.T, ("w0", "w1", "w2"), "transposed", "xg")
    return figure


def blocks():
    """The matrix of a 2 x 2 kernel on 3 x 3 positions: blocks, each the matrix of one row of the kernel."""
    figure = visualize.new_figure(5.4, 2.9)
    axes = figure.subplots()
    matrix = _jacobian(torch.tensor([[1.0, 2], [3, 4]]), (3, 3))
    _taps(axes, matrix, ("w00", "w01", "w10", "w11"), "a 2 × 2 kernel on 3 × 3", "yx")
    axes.set_xticks(range(9), [f"x{j // 3}{j % 3}" for j in range(9)])
    axes.set_yticks(range(4), [f"y{i // 2}{i % 2}" for i in range(4)])
    for line in (2.5, 5.5):
        axes.axvline(line, color=INK, linewidth=1.2)
    axes.axhline(1.5, color=INK, linewidth=1.2)
    return figure


def pooling():
    """Maximum and average over windows of 2 x 2, and where each sends the upstream gradient."""
    figure = visualize.new_figure(9.2, 4.3)
    panels = figure.subplots(2, 4, width_ratios=(4, 2.6, 2.6, 4))
    for row, (name, function) in enumerate({"maximum": F.max_pool2d, "average": F.avg_pool2d}.items()):
        x = POOLED.clone()[None, None].requires_grad_()
        y = function(x, 2)
        y.backward(4 * G[None, None])
        shown = ((POOLED, "x"), (y.detach()[0, 0], f"y, {name}"), (4 * G, "g"), (x.grad[0, 0], f"dx, {name}"))
        for axes, (map_, title) in zip(panels[row], shown):
            cells(axes, map_, title)
            if map_.shape[0] == 4:
                axes.axhline(1.5, color=INK, linewidth=1)
                axes.axvline(1.5, color=INK, linewidth=1)
    return figure


def check():
    """The error of a numerical derivative by the width of its step."""

    def loss(w0: float) -> float:
        return (w0 * 0.5 + 0.3 * -0.2) ** 3

    exact = 3 * (-0.46) ** 2 * 0.5
    steps = [10 ** (-n / 4) for n in range(4, 53)]
    one = [abs((loss(-0.8 + h) - loss(-0.8)) / h - exact) for h in steps]
    two = [abs((loss(-0.8 + h) - loss(-0.8 - h)) / (2 * h) - exact) for h in steps]
    figure = visualize.new_figure(6.4, 3.7)
    axes = figure.subplots()
    for errors, colour, label in ((one, MARK, "one side: error ∝ h"), (two, "#1d4ed8", "both sides: error ∝ h²")):
        axes.loglog(steps, [max(error, 1e-17) for error in errors], color=colour, label=label, linewidth=1.6)
    axes.set_xlabel("step h")
    axes.set_ylabel("error of the derivative")
    axes.grid(color="#e5e5e5")
    axes.legend(frameon=False)
    return figure


def minimal():
    """F(2, 3) as a network of sums and four products."""
    x, w = FILTERED.tolist(), FILTER.tolist()
    of_x = [x[2] - x[0], x[1] + x[2], x[2] - x[1], x[3] - x[1]]
    of_w = [-w[0], sum(w) / 2, (w[0] - w[1] + w[2]) / 2, w[2]]
    products = [a * b for a, b in zip(of_x, of_w)]
    y = [products[0] + products[1] + products[2], products[1] - products[2] + products[3]]
    assert y == conv_ext.conv1d(FILTERED[None, None], FILTER[None, None]).flatten().tolist()
    figure = visualize.new_figure(8.4, 3.7)
    axes = figure.subplots()
    axes.set_axis_off()
    columns = (0.0, 2.0, 3.2, 4.6, 6.6)
    rows = [3.0, 2.0, 1.0, 0.0]

    def box(column: int, level: float, text: str, colour: str) -> None:
        style = {"boxstyle": "round,pad=0.28", "facecolor": colour, "edgecolor": GREY}
        axes.text(columns[column], level, text, ha="center", va="center", fontsize=8.5, bbox=style)

    def lines(begin: int, end: int, signs: Sequence[tuple[float, float, int]]) -> None:
        for start, stop, sign in signs:
            axes.plot([columns[begin] + 0.42, columns[end] - 0.5], [start, stop], linewidth=1.4,
                      color=INK if sign > 0 else MARK, linestyle="-" if sign > 0 else "--")  # fmt: skip

    lines(
        0,
        1,
        [
            (rows[2], rows[0], 1),
            (rows[0], rows[0], -1),
            (rows[1], rows[1], 1),
            (rows[2], rows[1], 1),
            (rows[2], rows[2], 1),
            (rows[1], rows[2], -1),
            (rows[3], rows[3], 1),
            (rows[1], rows[3], -1),
        ],
    )
    lines(3, 4, [(rows[0], 2.3, 1), (rows[1], 2.3, 1), (rows[2], 2.3, 1), (rows[1], 0.7, 1), (rows[2], 0.7, -1),
                 (rows[3], 0.7, 1)])  # fmt: skip
    for n, level in enumerate(rows):
        box(0, level, f"x{n} = {x[n]:g}", "#dbeafe")
        box(1, level, f"{of_x[n]:g}", "#eff6ff")
        box(2, level, f"× {of_w[n]:g}", "#ffedd5")
        box(3, level, f"{products[n]:g}", "#f5f5f4")
    for n, level in enumerate((2.3, 0.7)):
        box(4, level, f"y{n} = {y[n]:g}", "#dcfce7")
    titles = ("input", "sums", "of the kernel", "products", "output")
    for place, title in zip(columns, titles):
        axes.text(place, 3.65, title, ha="center", fontsize=9, color=INK)
    axes.set_xlim(-0.7, 7.3)
    axes.set_ylim(-0.5, 3.95)
    return figure


def costs():
    """Products for each output and pair of maps, by the side of the tile."""
    figure = visualize.new_figure(9.0, 3.4)
    sides = list(range(4, 65, 2))
    for axes, taps in zip(figure.subplots(1, 2), (3, 11)):
        tiles = [n for n in sides if n > taps]
        axes.axhline(taps**2, color=INK, linewidth=1.4, label="direct")
        spectrum = [3 * n * (n // 2 + 1) / (n - taps + 1) ** 2 for n in tiles]
        axes.plot(tiles, spectrum, color="#1d4ed8", marker=".", label="Fourier transform")
        few = [n for n in tiles if n <= 8]
        if few:
            values = [n**2 / (n - taps + 1) ** 2 for n in few]
            axes.plot(few, values, color=MARK, marker="o", label="minimal filtering", linewidth=2)
        axes.set_yscale("log")
        axes.set_xlabel("side of the tile")
        axes.set_title(f"{taps} × {taps} kernel: products for an output", fontsize=9)
        axes.set_yticks([1, 2, 4, 9, 20, 50, 121], ["1", "2", "4", "9", "20", "50", "121"])
        axes.minorticks_off()
        axes.grid(color="#e5e5e5")
        axes.legend(frameon=False, fontsize=8)
    return figure


MAKERS = (sliding, sizes, filters, shifts, maps, product, matrices, blocks, pooling, check, minimal, costs)

if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for make in MAKERS:
        made = make()
        for name, figure in made.items() if isinstance(made, dict) else [(make.__name__, made)]:
            (PICTURES / f"{name}.png").write_bytes(visualize.png(figure))
