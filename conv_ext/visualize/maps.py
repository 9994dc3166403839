"""Pictures of filters and of feature maps, and of which part of an image a network looks at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..mapped import MappedConv2d
from .figures import at_least_one, bare, figure_class, has_values, images_for, layer_of, new_figure, run_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from .picture import Picture

__all__ = ["draw_filters", "feature_maps", "filters", "occlusion", "occlusion_map"]

MOST_IMAGES = 128  # of a figure: more would be specks, and take minutes to lay out


def filters(source: nn.Module | Tensor, columns: int | None = None) -> Picture:
    """The filters of a layer as a grid of images.

    source: a layer with a weight (K, C / groups, R, S) or a `MappedConv2d`, a model, of which the first such layer is
    taken, or the weight itself. Filters of three channels are shown as colours, others channel by channel, up to eight
    side by side, zero in the middle of the scale. All share one scale, which stands beside them. Of a `MappedConv2d`
    the places where nothing connects stay empty. A figure has up to 128 images: of more filters it shows the first, and
    says so; `filters(layer.weight[100:130])` shows others.
    columns: filters in a row (default: nearly a square).

    Raises TypeError where there is no such layer, or a weight without real values (on the meta device, say); ValueError
    where the weight has no filters, has NaN or infinities, or columns is no int of at least 1.
    """
    figure_class()
    weight, connected = _weight(source)
    count, c = weight.shape[:2]
    coloured = c == 3 and connected is None
    images = 1 if coloured else min(c, 8)  # of a filter
    weight = weight[: MOST_IMAGES // images]
    k = len(weight)
    columns = _columns(columns, k) if images == 1 or columns is not None else max(1, 12 // images)
    rows = math.ceil(k / columns)
    figure = new_figure(max(3.2, min(12.0, 0.7 * columns * images + 0.9)), min(24.0, 0.7 * rows + 0.6))
    shown = f", {images} of {c} channels each" if c > 1 and not coloured else ""
    first = f"the first {k} of " if k < count else ""
    figure.suptitle(f"{first}{count} filters of {weight.shape[2]} × {weight.shape[3]}{shown}", fontsize=10)
    places = figure.subplots(rows, columns * images, squeeze=False)
    there = None if connected is None else connected[:k, :images].flatten().tolist()
    image = draw_filters(places.flat, weight if coloured else weight[:, :images].flatten(0, 1)[:, None], there)
    if image is not None:
        figure.colorbar(image, ax=places, shrink=min(1.0, 3 / rows) if rows > 3 else 1.0, aspect=12).ax.tick_params(
            labelsize=7
        )
    return figure


def draw_filters(places: Iterable[Axes], weight: Tensor, there: Sequence[bool] | None = None) -> AxesImage | None:
    """Draw each filter of a weight (K, 3 or 1, R, S) on an axes of its own, and empty the axes that are left.

    there: which of the filters there are, None: all. Returns an image that has the scale, None where all are colours.
    """
    limit = weight.abs().max().item() or 1.0
    places, scaled = list(places), None
    for index, (axes, kernel) in enumerate(zip(places, weight)):
        bare(axes)
        if there is not None and not there[index]:
            continue
        if len(kernel) == 3:
            axes.imshow((kernel / limit / 2 + 0.5).permute(1, 2, 0).numpy())
        else:
            scaled = axes.imshow(kernel[0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    for axes in places[len(weight) :]:
        axes.set_axis_off()
    return scaled


def feature_maps(model: nn.Module, layer: str | nn.Module, image: Tensor, columns: int | None = None) -> Picture:
    """The maps that a layer makes of one image, each on its own scale from dark to light.

    model: it runs as it is, without gradients: `model.eval()` first where it has dropout or batch normalisation.
    layer: a submodule, or its name in `model.named_modules()`; what its first call makes where it is called several
    times. image: (C, H, W), or (1, C, H, W). columns: maps in a row (default: nearly a square). A figure has up to 128
    maps: of more it shows the first, and says so. Where a map is NaN it stays empty.

    Raises TypeError where the model is no module or either has no real values (on the meta device, say); ValueError
    where the model has no such layer, the image has another rank or NaN or infinities, or columns is no int of at least
    1; RuntimeError where the layer did not run or makes no maps (N, K, P, Q).
    """
    figure_class()
    name, module = layer_of(model, layer)
    batch = images_for(image, model)
    found: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:  # a copy: a ReLU behind it may work in place
        found.append(output.clone() if isinstance(output, Tensor) else output)

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            run_on(model, batch)
    finally:
        handle.remove()
    if not found:
        raise RuntimeError(f"the layer {name!r} did not run on this image")
    if not isinstance(found[0], Tensor) or found[0].dim() != 4 or not found[0].numel() or found[0].is_complex():
        raise RuntimeError(f"the layer {name!r} makes no maps (N, K, P, Q)")
    maps = found[0][0].detach().float().cpu()
    count, maps = len(maps), maps[:MOST_IMAGES]
    columns = _columns(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = new_figure(min(12.0, columns + 0.3), min(24.0, rows + 0.5))
    first = f"the first {len(maps)} of " if len(maps) < count else ""
    figure.suptitle(f"{name}: {first}{count} maps of {maps.shape[1]} × {maps.shape[2]}", fontsize=10)
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
    Raises ValueError for a patch that does not fit, a stride or batch size below 1, a target that is no class, an image
    of another rank or with NaN or infinities; TypeError where the fill is no finite number, the model is no module, or
    either has no real values; RuntimeError where the model makes no scores (N, classes).
    """
    batch = images_for(image, model)
    height, width = batch.shape[2:]
    if type(patch) is not int or not 1 <= patch <= min(height, width):
        raise ValueError(f"patch must be from 1 to {min(height, width)}, the image's shorter side, got {patch!r}")
    at_least_one(stride=stride, batch_size=batch_size)
    if isinstance(fill, bool) or not isinstance(fill, (int, float)) or not math.isfinite(fill):
        raise TypeError(f"fill must be a finite number, got {fill!r}")
    rows, columns = range(0, height - patch + 1, stride), range(0, width - patch + 1, stride)
    places = [(top, left) for top in rows for left in columns]
    found = []
    with torch.no_grad():
        for first in range(0, len(places), batch_size):
            some = places[first : first + batch_size]
            covered = batch.repeat(len(some), 1, 1, 1)
            for each, (top, left) in zip(covered, some):
                each[:, top : top + patch, left : left + patch] = fill
            found.append(_probabilities(model, covered, target)[:, target].cpu())
    return torch.cat(found).reshape(len(rows), len(columns))


def _probabilities(model: nn.Module, images: Tensor, target: int | None) -> Tensor:
    """What the model's scores (N, classes) say of each class; errors where there are none, or no such class."""
    scores = run_on(model, images)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(images) or not scores.numel():
        given = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RuntimeError(f"occlusion asks for scores: the model must make (N, classes) of images, it makes {given}")
    if target is not None and (type(target) is not int or not 0 <= target < scores.shape[1]):
        raise ValueError(f"target must be a class from 0 to {scores.shape[1] - 1}, got {target!r}")
    return scores.float().softmax(1)


def occlusion(
    model: nn.Module, image: Tensor, target: int | None = None, patch: int | None = None, stride: int | None = None,
    fill: float = 0.0,
) -> Picture:  # fmt: skip
    """The image beside the map of `occlusion_map`: where covering it costs the class its probability, it is dark.

    target: None takes the class with the highest score. patch: None takes a quarter of the shorter side; stride: None
    makes some 20 steps. The rest is as in `occlusion_map`. The model runs as it is: `model.eval()` first.
    """
    figure_class()
    batch = images_for(image, model)
    side = min(batch.shape[2:])
    patch = max(1, side // 4) if patch is None else patch
    at_least_one(patch=patch)
    stride = max(1, (side - patch) // 20) if stride is None else stride
    with torch.no_grad():
        scores = _probabilities(model, batch, target)[0]
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


def _weight(source: nn.Module | Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight (K, C, R, S), and for a MappedConv2d which of its kernels there are: (K, C) of bools."""
    connected = None
    if isinstance(source, nn.Module):
        for module in source.modules():
            if isinstance(module, MappedConv2d):
                source, connected = module.dense_weight(), module.table.matrix()
                break
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and is_lazy(weight):
                raise TypeError("the weight has no size before the layer's first call: call it once")
            if isinstance(weight, Tensor) and weight.dim() == 4:
                source = weight
                break
    if not isinstance(source, Tensor):
        given = type(source).__name__
        raise TypeError(f"filters takes a layer with a weight (K, C, R, S), a model or a weight, got {given}")
    if source.dim() != 4 or not source.numel():
        raise ValueError(f"expected a weight (K, C, R, S) that is not empty, got {list(source.shape)}")
    has_values("the weight", source)
    return source.detach().float().cpu(), connected


def _columns(columns: int | None, count: int) -> int:
    if columns is None:
        return math.ceil(math.sqrt(1.5 * count))
    at_least_one(columns=columns)
    return min(columns, count)
