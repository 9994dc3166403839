"""The demo's picture: both loss curves, the first layer's filters, and test images with what the network says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..visualize import bare, draw_filters, new_figure, png
from .data import Images

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

    from .training import History

TORCH, OURS, RIGHT, WRONG = "#8fb3d9", "#c2410c", "#15803d", "#b91c1c"


def draw(
    title: str, images: Images, net: nn.Module, scores: Tensor, histories: dict[str, History],
    accuracies: dict[str, float], difference: float, steps: int,
) -> bytes:  # fmt: skip
    """The picture as a PNG file's bytes; `scores` are those of `net`, called `title`, for all test images.

    difference: the largest one of the first `steps` losses, relative.
    """
    figure = new_figure(12, 8.4)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)  # type: ignore[call-arg]
    of_each = ", ".join(f"{name} {100 * value:.2f} %" for name, value in accuracies.items())
    figure.suptitle(f"{title} on {images.title}: test accuracy {of_each}", fontsize=15, fontweight="bold")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    curves, filters = top.subfigures(1, 2, width_ratios=(2.1, 1))
    _draw_losses(curves, histories, difference, steps)
    _draw_filters(filters, next(m for m in net.modules() if isinstance(m, nn.Conv2d)))
    _draw_predictions(bottom, images, scores)
    return png(figure)


def _draw_losses(panel: SubFigure, histories: dict[str, History], difference: float, compared: int) -> None:
    from matplotlib.ticker import LogLocator

    axes, below = panel.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    (first, theirs), (second, mine) = histories.items()
    steps = range(1, len(theirs.losses) + 1)
    axes.plot(steps, mine.losses, color="#e7e5e4", linewidth=0.8, zorder=0)
    axes.plot(steps, _smooth(theirs.losses), color=TORCH, linewidth=5, label=first, solid_capstyle="round")
    axes.plot(steps, _smooth(mine.losses), color=OURS, linewidth=1.4, label=second)
    axes.set_yscale("log")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)
    axes.set_title("The same weights, the same batches, two convolutions (lines: running means)", fontsize=11)
    floor = 1e-9  # below float32's resolution; equal losses are drawn here, as zero has no place on this scale
    relative = [max(abs(a - b) / max(abs(a), 1e-30), floor) for a, b in zip(theirs.losses, mine.losses)]
    below.plot(steps, relative, color="#525252", linewidth=0.8, clip_on=False)
    below.axhline(1e-4, color=WRONG, linestyle="--", linewidth=1)
    below.axvspan(1, min(compared, len(relative)), color="#e5e5e5", zorder=0)
    below.set_yscale("log")
    below.set_ylim(floor, 1)
    below.yaxis.set_major_locator(LogLocator(numticks=4))
    below.set_ylabel("relative\ndifference")
    below.set_xlabel(f"step (first {compared} shaded: at most {difference:.1e}; dashed: the limit there)")
    for each in (axes, below):
        each.spines[["top", "right"]].set_visible(False)
        each.margins(x=0.01)


def _smooth(losses: list[float]) -> list[float]:
    """The mean of the losses around each step, over about a fortieth of the run."""
    reach = len(losses) // 80
    windows = (losses[max(0, step - reach) : step + reach + 1] for step in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def _draw_filters(panel: SubFigure, layer: nn.Conv2d) -> None:
    """The filters of the first layer (up to 32): three channels are shown as colours, one as grey."""
    weight = layer.weight.detach().float().cpu()[:32]
    panel.suptitle(f"First-layer filters ({weight.shape[2]} × {weight.shape[3]})", fontsize=11)
    columns = 2 if len(weight) <= 6 else 4
    draw_filters(panel.subplots(-(-len(weight) // columns), columns).flat, weight)


def _draw_predictions(panel: SubFigure, images: Images, scores: Tensor, rows: int = 2, columns: int = 9) -> None:
    """Test images with the predicted class and its probability: the mistakes first (up to a row), then others."""
    predicted = scores.argmax(1)
    probability = scores.softmax(1).amax(1)
    wrong = (predicted != images.test_labels).nonzero().flatten()
    right = (predicted == images.test_labels).nonzero().flatten()
    chosen = torch.cat([wrong[:columns], right])[: rows * columns]
    panel.suptitle(
        f"Test images with the prediction and its probability (mistakes in red: {len(wrong)} of {len(scores)})",
        fontsize=11,
    )
    places = panel.subplots(rows, columns).flat
    for axes in places[len(chosen) :]:
        axes.set_axis_off()
    for axes, index in zip(places, chosen.tolist()):
        image = images.test_images[index]
        axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray_r", vmin=0, vmax=255)
        guess, truth = predicted[index].item(), images.test_labels[index].item()
        text = f"{images.classes[guess]}  {100 * probability[index].item():.0f} %"
        if guess != truth:
            text += f"\nis {images.classes[truth]}"
        axes.set_title(text, fontsize=9, color=RIGHT if guess == truth else WRONG)
        bare(axes)
