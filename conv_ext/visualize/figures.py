"""What the pictures are drawn with: figures, images as colours, mosaics of them, scale bars, progress bars."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .picture import Picture

__all__ = ["as_colours", "at_least_one", "bare", "has_values", "images_for", "layer_of", "mosaic", "new_figure", "png",
           "progress", "run_on", "scale_bar", "signed_colours"]  # fmt: skip

Item = TypeVar("Item")
NICE = (1, 2, 5)  # lengths of scale bars, times a power of ten


def figure_class() -> type[Picture]:
    """What figures are; ImportError where matplotlib is missing. Called first by what computes for long."""
    try:
        from .picture import Picture
    except ImportError as error:
        raise ImportError("conv_ext.visualize needs matplotlib: pip install 'conv_ext[demo]'") from error
    return Picture


def new_figure(width: float, height: float) -> Picture:
    """An empty figure of so many inches, each above 0 (else ValueError); ImportError where matplotlib is missing."""
    for name, inches in (("width", width), ("height", height)):
        if isinstance(inches, bool) or not isinstance(inches, (int, float)) or not 0 < inches < math.inf:
            raise ValueError(f"{name} must be a number of inches above 0, got {inches!r}")
    return figure_class()(figsize=(width, height), layout="constrained", facecolor="white")


def png(figure: Picture) -> bytes:
    """The figure, one that a function here has made, as the bytes of a PNG file; TypeError for anything else."""
    if not isinstance(figure, figure_class()):
        raise TypeError(f"png takes a figure of conv_ext.visualize, got {type(figure).__name__}")
    return figure._repr_png_()


def bare(axes: Axes) -> None:
    """An axes without ticks, in a light frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#d4d4d4")


def scale_bar(axes: Axes, pixels: int) -> None:
    """A bar of a round number of pixels, about half of `pixels`, under the left end of an image."""
    aim = max(1.0, pixels / 2)
    power = 10 ** math.floor(math.log10(aim))
    length = max(n * power for n in NICE if n * power <= aim)
    from matplotlib.transforms import ScaledTranslation

    # As long as its pixels, and 9 points below the axes: the layout leaves room for what lies outside them.
    below = axes.get_xaxis_transform() + ScaledTranslation(0, -9 / 72, axes.figure.dpi_scale_trans)
    style: dict[str, Any] = {"color": "#262626", "linewidth": 2.5, "solid_capstyle": "butt", "clip_on": False}
    axes.plot([-0.5, length - 0.5], [0, 0], transform=below, scalex=False, scaley=False, **style)
    text = f"{length} pixel{'s' * (length != 1)}"
    beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    axes.annotate(text, (length - 0.5, 0), xycoords=below, annotation_clip=False, **beside)


def as_colours(image: Tensor, low: float, high: float) -> Tensor:
    """An image (C, H, W) with `low` black and `high` white: (H, W, 4). Other than three channels show their mean."""
    image = ((image - low) / (high - low if high > low else 1.0)).clamp(0, 1)
    rgb = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    return torch.cat([rgb, torch.ones_like(rgb[:1])]).permute(1, 2, 0)


def signed_colours(image: Tensor, limit: float | None = None) -> Tensor:
    """An image (C, H, W) of both signs: (H, W, 4), zero in the middle, `limit` (None: its largest) at the ends.

    Three channels are colours, with grey for zero; others show their mean, red above zero, blue below.
    """
    limit = (image.abs().max().item() if limit is None else limit) or 1.0
    if len(image) == 3:
        return as_colours(image, -limit, limit)
    from matplotlib import colormaps

    scaled = (image.mean(0) / limit / 2 + 0.5).clamp(0, 1)
    return torch.from_numpy(colormaps["RdBu_r"](scaled.numpy())).float()


def mosaic(tiles: Sequence[Tensor], columns: int) -> Tensor:
    """Tiles (H, W, 4) of one size side by side in rows of `columns`, with a transparent line between them."""
    h, w = tiles[0].shape[:2]
    gap = max(1, round(min(h, w) / 16))
    rows = math.ceil(len(tiles) / columns)
    whole = torch.zeros(rows * (h + gap) - gap, columns * (w + gap) - gap, 4)
    for index, tile in enumerate(tiles):
        i, j = index // columns * (h + gap), index % columns * (w + gap)
        whole[i : i + h, j : j + w] = tile
    return whole


def framed(tile: Tensor, size: tuple[int, int], window: tuple[slice, slice]) -> Tensor:
    """A tile (h, w, 4) in a grey one of `size`, on that side of it that lies within the image."""
    missing = [n - m for n, m in zip(size, tile.shape)]
    top, left = (gone if part.start == 0 else 0 for gone, part in zip(missing, window))
    whole = torch.tensor([0.86, 0.86, 0.86, 1.0]).expand(*size, 4).clone()
    whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return whole


def progress(items: Sequence[Item], text: str, shown: bool = True) -> Iterable[Item]:
    """The items with a progress bar, once it takes longer than a second; without one where tqdm is missing."""
    if not shown or importlib.util.find_spec("tqdm") is None:
        return items
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(items, desc=text, delay=1, leave=False, dynamic_ncols=True)
    return bar


def at_least_one(**numbers: int) -> None:
    """ValueError, with the name, unless each is an int from 1 on."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {number!r}")


def has_values(what: str, tensor: Tensor) -> None:
    """TypeError unless a tensor has real numbers that can be looked at; ValueError where some are NaN or infinite."""
    if tensor.is_meta:
        raise TypeError(f"{what} must have values to look at, got a tensor on the meta device")
    if tensor.is_complex():
        raise TypeError(f"{what} must be real, got {tensor.dtype}")
    odd = tensor.numel() - int(tensor.isfinite().count_nonzero())
    if odd:
        raise ValueError(f"{what} must be finite, got {odd} of {tensor.numel():,} numbers that are NaN or infinite")


def _checked(model: nn.Module) -> None:
    """TypeError unless a model is a module whose parameters have values."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise TypeError(f"the model must be complete, but {name!r} has no size before the first call: call it once")
        if parameter.is_meta:
            raise TypeError(f"the model must have values to look at, but {name!r} is on the meta device")


def layer_of(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """A submodule by itself or by its name, with that name; ValueError, with the names there are, for any other.

    TypeError unless the model is a module whose parameters have values.
    """
    _checked(model)
    modules = dict(model.named_modules(remove_duplicate=False))  # a layer that is there twice has two names
    for name, module in modules.items():
        if layer is module or isinstance(layer, str) and layer == name:
            return name or type(module).__name__, module
    names = [name for name in modules if name]
    more = ", …" if len(names) > 12 else ""
    shown = repr(layer) if isinstance(layer, str) else type(layer).__name__
    raise ValueError(f"the model has no layer {shown}; it has {', '.join(names[:12])}{more}")


def images_for(images: Tensor, model: nn.Module, *, several: bool = False) -> Tensor:
    """Images as a batch, where the model's first parameter is and of its dtype; ValueError unless there are such.

    several: any number from 1; else a single one, (C, H, W) or (1, C, H, W). TypeError where they are no real numbers
    that can be looked at, or the model has none.
    """
    _checked(model)
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    has_values("images", images)
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or not len(images) or not several and len(images) != 1:
        wanted = "images (N, C, H, W) or one (C, H, W)" if several else "one image (C, H, W) or (1, C, H, W)"
        raise ValueError(f"expected {wanted}, got {list(images.shape)}")
    if images.is_inference() and not torch.is_inference_mode_enabled():
        images = images.clone()  # which may have a gradient
    parameter = next(model.parameters(), None)
    if parameter is None:
        return images
    return images.to(parameter.device, parameter.dtype if parameter.is_floating_point() else None)


def run_on(model: nn.Module, x: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Any:
    """What a model makes of x, with other parameters if given. Its buffers stay as they are: the statistics of a batch
    normalisation in training mode, say, which a picture is not to move."""
    if isinstance(model, nn.DataParallel):  # which torch.func does not take
        inner = {name.removeprefix("module."): tensor for name, tensor in (parameters or {}).items()}
        return run_on(model.module, x, inner)
    buffers = {}
    if model.training or any(module.training for module in model.modules()):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if not buffers and not parameters:  # models that torch.func does not take (TorchScript's) are called as they are
        return model(x)
    return torch.func.functional_call(model, {**buffers, **(parameters or {})}, (x,))


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) under a Gaussian of `sigma` pixels, zero outside."""
    reach = max(1, min(math.ceil(2.5 * sigma), max(images.shape[2:]) - 1))  # further nothing is
    taps = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    taps = (-0.5 * (taps / sigma) ** 2).exp()
    line = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    along = F.conv2d(images, line, padding=(0, reach), groups=images.shape[1])
    return F.conv2d(along, line.transpose(2, 3), padding=(reach, 0), groups=images.shape[1])
