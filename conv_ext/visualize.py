"""Pictures of what a network has learned: first-layer filters, feature maps, and which part of an image it looks at.

Each function returns a matplotlib figure, which has `savefig` and shows itself in a notebook. matplotlib is imported
when a picture is drawn; ImportError says how to install it where it is missing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["feature_maps", "filters", "occlusion", "occlusion_map"]


def filters(source: nn.Module | Tensor, columns: int | None = None) -> Figure:
    """The filters of a layer as a grid of images.

    source: a layer with a weight (K, C / groups, R, S), a model, of which the first such layer is taken, or the weight
    itself. Filters of three channels are shown as colours, others channel by channel, up to eight side by side, zero in
    the middle of the scale. All share one scale.
    columns: filters in a row (default: nearly a square).

    Raises TypeError where there is no such layer, ValueError where the weight has no filters or columns is below 1.
    """
    weight = _weight(source)
    k, c = weight.shape[:2]
    images = 1 if c == 3 else min(c, 8)  # of a filter
    columns = _columns(columns, k) if images == 1 or columns is not None else max(1, 12 // images)
    rows = math.ceil(k / columns)
    figure = new_figure(min(12.0, 0.7 * columns * images + 0.3), min(24.0, 0.7 * rows + 0.6))
    shown = f", {images} of {c} channels each" if 1 < c != 3 else ""
    figure.suptitle(f"{k} filters of {weight.shape[2]} × {weight.shape[3]}{shown}", fontsize=10)
    places = figure.subplots(rows, columns * images, squeeze=False).flat
    draw_filters(places, weight if c == 3 else weight[:, :images].flatten(0, 1)[:, None])
    return figure


def draw_filters(places: Iterable[Axes], weight: Tensor) -> None:
    """Draw each filter of a weight (K, 3 or 1, R, S) on an axes of its own, and empty the axes that are left."""
    limit = weight.abs().max().item() or 1.0
    places = list(places)
    for axes, kernel in zip(places, weight):
        if len(kernel) == 3:
            axes.imshow((kernel / limit / 2 + 0.5).permute(1, 2, 0).numpy())
        else:
            axes.imshow(kernel[0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        bare(axes)
    for axes in places[len(weight) :]:
        axes.set_axis_off()


def feature_maps(model: nn.Module, layer: str | nn.Module, image: Tensor, columns: int | None = None) -> Figure:
    """The maps that a layer makes of one image, each on its own scale from dark to light.

    model: it runs as it is, without gradients: `model.eval()` first where it has dropout or batch normalisation.
    layer: a submodule, or its name in `model.named_modules()`. image: (C, H, W), or (1, C, H, W).
    columns: maps in a row (default: nearly a square).

    Raises ValueError where the model has no such layer or the image has another rank, RuntimeError where the layer did
    not run or makes no maps (N, K, P, Q).
    """
    name, module = _layer(model, layer)
    batch = _batch(image, model)
    found: list = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        with torch.no_grad():
            model(batch)
    finally:
        handle.remove()
    if not found:
        raise RuntimeError(f"the layer {name!r} did not run on this image")
    if not isinstance(found[0], Tensor) or found[0].dim() != 4:
        raise RuntimeError(f"the layer {name!r} makes no maps (N, K, P, Q)")
    maps = found[0][0].detach().float().cpu()
    columns = _columns(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = new_figure(min(12.0, columns + 0.3), min(24.0, rows + 0.5))
    figure.suptitle(f"{name}: {len(maps)} maps of {maps.shape[1]} × {maps.shape[2]}", fontsize=10)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, each in zip(places, maps):
        axes.imshow(each.numpy(), cmap="viridis")
        bare(axes)
    for axes in places[len(maps) :]:
        axes.set_axis_off()
    return figure


def occlusion_map(
    model: nn.Module, image: Tensor, target: int, patch: int, stride: int = 1, fill: float = 0.0, batch_size: int = 64
) -> Tensor:
    """The probability of class `target` with a square of the image covered, for every place of the square.

    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4.2.

    image: (C, H, W), or (1, C, H, W). patch: the square's side. stride: the step from place to place.
    fill: what covers it (0: the mean of standardised images). batch_size: covered images in one call of the model.

    Returns (rows, columns) in float32, on the CPU: entry (i, j) has the square's upper left corner at (i, j) * stride.
    Raises ValueError for a patch that does not fit, a stride or batch size below 1, a target that is no class.
    """
    batch = _batch(image, model)
    height, width = batch.shape[2:]
    if not 1 <= patch <= min(height, width):
        raise ValueError(f"patch must be from 1 to {min(height, width)}, the image's shorter side, got {patch}")
    if stride < 1 or batch_size < 1:
        raise ValueError(f"stride and batch_size must be at least 1, got {stride} and {batch_size}")
    rows, columns = range(0, height - patch + 1, stride), range(0, width - patch + 1, stride)
    places = [(top, left) for top in rows for left in columns]
    found = []
    with torch.no_grad():
        for first in range(0, len(places), batch_size):
            some = places[first : first + batch_size]
            covered = batch.repeat(len(some), 1, 1, 1)
            for each, (top, left) in zip(covered, some):
                each[:, top : top + patch, left : left + patch] = fill
            scores = model(covered)
            if not 0 <= target < scores.shape[1]:
                raise ValueError(f"target must be a class from 0 to {scores.shape[1] - 1}, got {target}")
            found.append(scores.float().softmax(1)[:, target].cpu())
    return torch.cat(found).reshape(len(rows), len(columns))


def occlusion(
    model: nn.Module, image: Tensor, target: int | None = None, patch: int | None = None, stride: int | None = None,
    fill: float = 0.0,
) -> Figure:  # fmt: skip
    """The image beside the map of `occlusion_map`: where covering it costs the class its probability, it is dark.

    target: None takes the class with the highest score. patch: None takes a quarter of the shorter side; stride: None
    makes some 20 steps. The rest is as in `occlusion_map`. The model runs as it is: `model.eval()` first.
    """
    batch = _batch(image, model)
    side = min(batch.shape[2:])
    patch = max(1, side // 4) if patch is None else patch
    stride = max(1, (side - patch) // 20) if stride is None else stride
    with torch.no_grad():
        scores = model(batch).float().softmax(1)[0]
    target = int(scores.argmax()) if target is None else target
    found = occlusion_map(model, image, target, patch, stride, fill)
    figure = new_figure(8.0, 3.9)
    left, right = figure.subplots(1, 2)
    picture = batch[0].detach().float().cpu()
    low, high = picture.min(), picture.max()
    picture = (picture - low) / (high - low if high > low else 1.0)
    if len(picture) == 3:
        left.imshow(picture.permute(1, 2, 0).numpy())
    else:
        left.imshow(picture.mean(0).numpy(), cmap="gray")
    left.set_title(f"class {target}: probability {scores[target]:.2f}", fontsize=10)
    height, width = batch.shape[2:]
    half, reach = patch / 2 - 0.5, [(n - 1) * stride for n in found.shape]
    extent = (half - stride / 2, half + reach[1] + stride / 2, half + reach[0] + stride / 2, half - stride / 2)
    shown = right.imshow(found.numpy(), cmap="magma", vmin=0.0, vmax=max(found.max().item(), 1e-6), extent=extent)
    right.set_xlim(-0.5, width - 0.5)
    right.set_ylim(height - 0.5, -0.5)
    right.set_title(f"the same with {patch} × {patch} covered there", fontsize=10)
    figure.colorbar(shown, ax=right, shrink=0.8)
    for axes in (left, right):
        bare(axes)
    return figure


def bare(axes: Axes) -> None:
    """An axes without ticks, in a light frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#d4d4d4")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; ImportError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("conv_ext.visualize needs matplotlib: pip install 'conv_ext[demo]'") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _weight(source: nn.Module | Tensor) -> Tensor:
    if isinstance(source, nn.Module):
        weights = (getattr(module, "weight", None) for module in source.modules())
        source = next((w for w in weights if isinstance(w, Tensor) and w.dim() == 4), source)
    if not isinstance(source, Tensor):
        given = type(source).__name__
        raise TypeError(f"filters takes a layer with a weight (K, C, R, S), a model or a weight, got {given}")
    if source.dim() != 4 or not source.numel():
        raise ValueError(f"expected a weight (K, C, R, S) that is not empty, got {list(source.shape)}")
    return source.detach().float().cpu()


def _columns(columns: int | None, count: int) -> int:
    if columns is None:
        return math.ceil(math.sqrt(1.5 * count))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return min(columns, count)


def _layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if layer is module or isinstance(layer, str) and layer == name:
            return name or type(module).__name__, module
    names = [name for name in modules if name]
    more = ", …" if len(names) > 12 else ""
    shown = repr(layer) if isinstance(layer, str) else type(layer).__name__
    raise ValueError(f"the model has no layer {shown}; it has {', '.join(names[:12])}{more}")


def _batch(image: Tensor, model: nn.Module) -> Tensor:
    """The image as a batch of one, where the model's first parameter is."""
    if image.dim() == 3:
        image = image[None]
    if image.dim() != 4 or len(image) != 1:
        raise ValueError(f"expected one image (C, H, W) or (1, C, H, W), got {list(image.shape)}")
    parameter = next(model.parameters(), None)
    return image if parameter is None else image.to(parameter.device)
