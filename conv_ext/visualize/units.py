"""What single units look for: the patches that excite them most, the way back to the image, and images made for them.

A unit is one position of one channel of a layer. `find_patches`, `deconvnet_maps` and `maximised` compute;
`top_patches`, `deconvnet` and `maximise` draw.
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..convert import override
from ..functional import conv1d, conv2d
from ..summary import field_of
from .figures import (
    as_colours,
    at_least_one,
    blurred,
    figure_class,
    framed,
    images_for,
    layer_of,
    mosaic,
    new_figure,
    progress,
    run_on,
    scale_bar,
    signed_colours,
)  # fmt: skip

if TYPE_CHECKING:
    from ..fields import Field
    from .picture import Picture

__all__ = ["Patch", "deconvnet", "deconvnet_maps", "find_patches", "maximise", "maximised", "top_patches"]

Channels = int | Sequence[int]
Place = tuple[int, int]
Window = tuple[slice, slice]
Picker = Callable[[Tensor], Tensor]  # of maps (N, P, Q) what counts: (N,)


@dataclass(frozen=True)
class Patch:
    """What excites a channel most within one image.

    image: its index. value: the activation. place: the row and column of the unit in its map, (0, 0) in a vector.
    rows, columns: the part of the image that this unit depends on, its exact receptive field, or the whole image where
    that is not known: ``images[patch.image, :, patch.rows, patch.columns]``.
    """

    image: int
    value: float
    place: tuple[int, int]
    rows: slice
    columns: slice


class _Reached(BaseException):
    """Ends a forward pass at the layer that was asked for."""


def _activations(model: nn.Module, module: nn.Module, name: str, x: Tensor, *, graph: bool = False) -> Tensor:
    """What `module` makes in `model` of a batch, (N, K, P, Q) or (N, K, 1, 1); the model runs no further.

    graph: whether derivatives by x are wanted. Those by parameters never are: the model gets constants in their place.
    """
    found: list[Any] = []

    def reach(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise _Reached

    handle = module.register_forward_hook(reach)
    try:
        with torch.set_grad_enabled(graph):
            # A clone of what was made in inference mode, which has no gradient; of the rest what it is.
            held = ((name, p.detach()) for name, p in model.named_parameters())
            constants = {name: p.clone() if p.is_inference() else p for name, p in held}
            run_on(model, x, constants)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not found:
        raise RuntimeError(f"the layer {name!r} did not run on these images")
    y = found[0]
    if not isinstance(y, Tensor) or y.dim() not in (2, 4) or len(y) != len(x) or not y.numel():
        raise RuntimeError(f"the layer {name!r} makes neither maps (N, K, P, Q) nor vectors (N, K)")
    if y.is_complex() or y.dtype == torch.bool:
        raise RuntimeError(f"the layer {name!r} makes {y.dtype}, of which none is larger than another")
    return y if y.dim() == 4 else y[:, :, None, None]


def _no_nan(values: Tensor, name: str) -> Tensor:
    """Activations (N, …), as they are; RuntimeError where one is NaN, which is neither more nor less than another."""
    images = values.detach().flatten(1).isnan().any(1).nonzero().flatten().tolist()
    if images:
        raise RuntimeError(f"the layer {name!r} makes NaN of {len(images)} of {len(values)} images")
    return values


def _chosen(channel: Channels) -> list[int]:
    """The channels as ints; TypeError where there is anything else."""
    given = channel.tolist() if hasattr(channel, "tolist") else channel  # of a tensor, of an array
    given = given if isinstance(given, Sequence) else [given]
    try:
        if any(isinstance(c, bool) for c in given):
            raise TypeError
        return [operator.index(c) for c in given]
    except TypeError:
        raise TypeError(f"channel must be an int or a sequence of ints, got {channel!r}") from None


def _channels(channel: Channels, count: int, name: str) -> list[int]:
    """The channels as ints; ValueError for one that the layer has not."""
    chosen = _chosen(channel)
    wrong = [c for c in chosen if not 0 <= c < count]
    if wrong or not chosen:
        raise ValueError(f"channel must be from 0 to {count - 1}, the maps of {name!r}, got {channel}")
    return chosen


def _window(field: Field | None, count: Sequence[int], place: tuple[int, int], size: Sequence[int]) -> Window:
    """The rows and columns that the unit at `place` of maps of `count` sees; all of `size` where that is not known."""
    window = field.window(*place) if field is not None and field.count == tuple(count) else None
    return (slice(0, size[0]), slice(0, size[1])) if window is None else window


# ---- the strongest patches


def find_patches(
    model: nn.Module, layer: str | nn.Module, images: Tensor, channel: Channels, k: int = 9, *, batch_size: int = 64,
    bar: bool = True,
) -> list[list[Patch]]:  # fmt: skip
    """The `k` images in which a channel is excited most, and where: for each channel a list, the strongest first.

    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4. Of one image
    the strongest place counts alone; of equal activations the earlier image, and the earlier place in it.

    Args:
        model: it runs as it is, without gradients, up to the layer: `model.eval()` first where it has dropout or batch
            normalisation.
        layer: a submodule that makes maps (N, K, P, Q) or vectors (N, K), or its name in `model.named_modules()`; what
            its first call makes where it is called several times.
        images: (N, C, H, W), as the model takes them; they are moved to the device and dtype of its parameters.
        channel: one or several, from 0. k: how many images; all where there are fewer.
        batch_size: images in one call. bar: whether long work shows a progress bar (tqdm).

    The receptive field follows from the layers' geometry (`conv_ext.summary`); statistics that a normalisation takes
    over positions (nn.GroupNorm, nn.InstanceNorm2d) are left out of it.

    Raises:
        TypeError: the model is no module, images are no tensor, either has no values (on the meta device) or complex
        ones, or a channel is no int. ValueError: no such layer or channel, images of another rank or with NaN or
        infinities, k or batch_size below 1. RuntimeError: the layer does not run, makes no maps or vectors, or NaN.
    """
    name, module = layer_of(model, layer)
    at_least_one(k=k, batch_size=batch_size)
    images = images_for(images, model, several=True)
    values, places = [], []
    chosen: list[int] = []
    with override():
        for batch in progress(images.split(batch_size), f"images to {name}", bar):
            y = _activations(model, module, name, batch)
            chosen = chosen or _channels(channel, y.shape[1], name)
            best, at = _no_nan(y[:, chosen], name).flatten(2).max(2)
            values.append(best.float().cpu())
            places.append(torch.stack([at // y.shape[3], at % y.shape[3]], 2).cpu())
    value, place = torch.cat(values), torch.cat(places)
    order = value.argsort(stable=True, dim=0, descending=True)[:k]
    field = field_of(model, module, images.shape[1:])
    windows: dict[tuple[int, int], Window] = {}
    found: list[list[Patch]] = []
    for column, indices in enumerate(order.T.tolist()):
        found.append([])
        for index in indices:
            p, q = place[index, column].tolist()
            if (p, q) not in windows:
                windows[p, q] = _window(field, y.shape[2:], (p, q), images.shape[2:])
            found[-1].append(Patch(index, value[index, column].item(), (p, q), *windows[p, q]))
    return found


def top_patches(
    model: nn.Module, layer: str | nn.Module, images: Tensor, channel: Channels, k: int = 9, *, batch_size: int = 64,
    bar: bool = True,
) -> Picture:  # fmt: skip
    """The image patches that excite a channel most, each as large as the unit's receptive field; `find_patches` draws.

    Each channel is a square of its `k` patches, the strongest first, with its largest and its k-th activation above.
    All images share one scale from black to white; what lies outside an image is grey. The bar under the last row
    tells the size in pixels of the input. Arguments and errors are those of `find_patches`.
    """
    figure_class()
    name, _ = layer_of(model, layer)
    found = find_patches(model, layer, images, channel, k, batch_size=batch_size, bar=bar)
    pictures = images_for(images, model, several=True).detach().float().cpu()
    low, high = pictures.min().item(), pictures.max().item()
    size = _largest(found)
    columns = math.ceil(math.sqrt(len(found[0])))
    blocks = []
    for patches in found:
        tiles = [as_colours(pictures[p.image, :, p.rows, p.columns], low, high) for p in patches]
        tiles = [framed(tile, size, (p.rows, p.columns)) for tile, p in zip(tiles, patches)]
        blocks.append((_caption(patches), mosaic(tiles, columns)))
    chosen = _chosen(channel)
    text = f"{name}: what excites {_named(chosen)} most in {len(pictures)} images, in fields of {size[0]} × {size[1]}"
    return _draw_blocks(text, [(f"channel {c}: {t}", [b]) for c, (t, b) in zip(chosen, blocks)], size[1])


def _named(chosen: list[int]) -> str:
    return f"channel {chosen[0]}" if len(chosen) == 1 else f"each of {len(chosen)} channels"


def _caption(patches: list[Patch]) -> str:
    first, last = patches[0].value, patches[-1].value
    return f"{first:.3g}" if len(patches) == 1 else f"{first:.3g} … {last:.3g}"


def _largest(found: list[list[Patch]]) -> tuple[int, int]:
    """The size that holds every patch."""
    every = [patch for patches in found for patch in patches]
    height = max(1, *(patch.rows.stop - patch.rows.start for patch in every))
    return height, max(1, *(patch.columns.stop - patch.columns.start for patch in every))


def _draw_blocks(title: str, blocks: list[tuple[str, list[Tensor]]], pixels: int) -> Picture:
    """Blocks of one or two mosaics side by side, each with a caption; a bar under the last row is part of `pixels`."""
    wide = len(blocks[0][1])
    h, w = blocks[0][1][0].shape[:2]
    across = max(1, min(len(blocks), math.ceil(math.sqrt(1.6 * len(blocks) * h / (w * wide)))))
    down = math.ceil(len(blocks) / across)
    across = math.ceil(len(blocks) / down)  # four blocks are two rows of two, not three and one
    side = 3.6 if len(blocks) == 1 else max(1.6, min(3.0, 11.5 / (across * wide)))
    width = max(across * wide * side + 0.2, 0.07 * len(title) + 0.4)
    figure = new_figure(min(width, 14.0), min(30.0, down * (side * h / w + 0.3) + 0.6))
    figure.suptitle(title, fontsize=10)
    figure.get_layout_engine().set(wspace=0.09)  # type: ignore[union-attr, call-arg]
    places = figure.subplots(down, across * wide, squeeze=False)
    for axes in places.flat:
        axes.set_axis_off()
    for index, (caption, pictures) in enumerate(blocks):
        row = places[index // across][index % across * wide :]
        row[0].set_title(caption, fontsize=9, loc="left")
        for axes, picture in zip(row, pictures):
            axes.imshow(picture.numpy(), interpolation="nearest")
    scale_bar(places[-1][0], pixels)
    return figure


# ---- the way back: the deconvnet


class _Rectified(torch.autograd.Function):
    """A ReLU whose way back is a ReLU, too: of what comes back the positive part passes, whatever went forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.relu(grads[0])


def _rectified(x: Tensor, *_arguments: Any, **_keywords: Any) -> Tensor:
    apply: Callable[[Tensor], Tensor] = _Rectified.apply
    return apply(x)


_RELUS = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, torch.nn.functional.relu_)


class _Deconvnet(TorchFunctionMode):
    """In the block every ReLU is a `_Rectified`, those behind our convolutions included, and convolutions are ours."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _RELUS:
            return _rectified(*args, **kwargs)
        if func in (conv1d, conv2d) and kwargs.get("activation", "none") == "relu":
            return _rectified(func(*args, **{**kwargs, "activation": "none"}))
        with override():
            return func(*args, **kwargs)


def deconvnet_maps(
    model: nn.Module, layer: str | nn.Module, images: Tensor, channel: int, places: Sequence[Place] | None = None,
) -> Tensor:  # fmt: skip
    """The pattern in each image that excites a unit, projected back to the image by a deconvnet: (N, C, H, W), float32.

    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 2.1. All
    activations of the layer but the unit's are set to zero. On the way back a convolution filters with its transposed
    kernels, which is `input_grad`, one of this package's three passes; max pooling puts a value where the maximum was
    (the switches); a ReLU passes the positive part of what comes back, whereas its gradient would ask what came
    forward. Every other layer passes its gradient: other activations, average pooling, normalisation, sums.

    Args:
        images: (N, C, H, W), as the model takes them. channel: one, from 0.
        places: the row and column of the unit in its map, one for each image; None: where it is excited most.
        The rest is as in `find_patches`, with its errors; ValueError for places that are not in the map.

    ReLUs are found where they are called: nn.ReLU, torch's functions and methods, and the `activation="relu"` of our
    layers. A model that torch has compiled is to be given as it was before.
    """
    name, module = layer_of(model, layer)
    with torch.inference_mode(False):
        x = images_for(images, model, several=True).detach()
        x = (x if x.is_floating_point() else x.float()).requires_grad_()
        with _Deconvnet():
            y = _activations(model, module, name, x, graph=True)
            (chosen,) = _channels([channel], y.shape[1], name)
        ours, width = _no_nan(y[:, chosen].detach().flatten(1), name), y.shape[3]
        at = ours.argmax(1) if places is None else _flat_places(places, y)
        signal = torch.zeros_like(ours).scatter(1, at[:, None], ours.gather(1, at[:, None]))
        whole = torch.zeros_like(y)
        whole[:, chosen] = signal.unflatten(1, (-1, width))
        if not y.requires_grad:
            raise RuntimeError(f"the layer {name!r} does not depend on the images by anything that has a gradient")
        back = torch.autograd.grad(y, x, whole)[0].float().cpu()
    if not back.isfinite().all():
        raise RuntimeError(f"the way back from {name!r} is not finite: a weight on it is NaN, infinite or too large")
    return back


def _flat_places(places: Sequence[Place], y: Tensor) -> Tensor:
    """Places as positions of flattened maps; ValueError for another number of them, or where one is none."""
    if not isinstance(places, (Sequence, Tensor)):
        raise TypeError(f"places must be a sequence of rows and columns, got {places!r}")
    if len(places) != len(y):
        raise ValueError(f"places must be one for each of {len(y)} images, got {len(places)}")
    found = [p * y.shape[3] + q for p, q in (_in_maps(place, y) for place in places)]
    return torch.tensor(found, device=y.device)


def _in_maps(place: Any, y: Tensor) -> Place:
    """A place as two ints; TypeError where it is no row and column, ValueError where maps (…, P, Q) have none such."""
    height, width = y.shape[2:]
    try:
        p, q = map(operator.index, place)
    except (TypeError, ValueError):
        raise TypeError(f"a place is the row and the column of a map, two ints, got {place!r}") from None
    if not (0 <= p < height and 0 <= q < width):
        raise ValueError(f"a place must be within maps of {height} x {width}, got {(p, q)}")
    return p, q


def deconvnet(
    model: nn.Module, layer: str | nn.Module, images: Tensor, channel: Channels, k: int = 9, *, batch_size: int = 64,
    bar: bool = True,
) -> Picture:  # fmt: skip
    """The patches that excite a channel most, beside the pattern in each that did it; `deconvnet_maps` tells how.

    Each channel is two squares: its `k` strongest patches and, in the same places, their projections, each on a scale
    of its own with zero in the middle (grey for three channels; else white, red above and blue below). Arguments and
    errors are those of `find_patches`.
    """
    figure_class()
    name, _ = layer_of(model, layer)
    found = find_patches(model, layer, images, channel, k, batch_size=batch_size, bar=bar)
    pictures = images_for(images, model, several=True).detach()
    low, high, chosen = pictures.min().item(), pictures.max().item(), _chosen(channel)
    size, columns = _largest(found), math.ceil(math.sqrt(len(found[0])))
    blocks = []
    for c, patches in progress(list(zip(chosen, found)), f"back from {name}", bar):
        some = pictures[[patch.image for patch in patches]]
        back = torch.cat([
            deconvnet_maps(model, layer, part, c, [patch.place for patch in patches[first : first + len(part)]])
            for first, part in zip(range(0, len(some), batch_size), some.split(batch_size))
        ])  # fmt: skip
        seen, found_there = [], []
        for image, pattern, patch in zip(some.float().cpu(), back, patches):
            window = patch.rows, patch.columns
            seen.append(framed(as_colours(image[:, window[0], window[1]], low, high), size, window))
            found_there.append(framed(signed_colours(pattern[:, window[0], window[1]]), size, window))
        blocks.append((f"channel {c}: {_caption(patches)}", [mosaic(seen, columns), mosaic(found_there, columns)]))
    text = f"{name}: the patches that excite {_named(chosen)} most, and what in them does"
    return _draw_blocks(text, blocks, size[1])


# ---- gradient ascent


def maximised(
    model: nn.Module, layer: str | nn.Module, channel: Channels, size: Sequence[int], *, place: Place | str = "centre",
    steps: int = 200, rate: float = 0.1, decay: float = 0.02, blur: float = 0.5,
    limits: tuple[float, float] | None = None, begin: Tensor | None = None, seed: int = 0, batch_size: int = 16,
    bar: bool = True,
) -> Tensor:  # fmt: skip
    """An input for each channel that excites it, made by gradient ascent: (channels, C, H, W), float32, on the CPU.

    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks", ICLR workshop 2014, section 2, with the
    two regularisers of J. Yosinski, J. Clune, A. Nguyen, T. Fuchs, H. Lipson, "Understanding neural networks through
    deep visualization", ICML workshop 2015, section 3. Each step is

        x ← (1 - decay) · (x + rate · g / rms(g)),

    g being the gradient of the activation by x, and rms(g) its root mean square over the pixels where it is not zero;
    after every fourth step but the last ones x is blurred by a Gaussian, without which high frequencies take over.

    Args:
        model, layer: as in `find_patches`; `model.eval()` first. The parameters get no gradient.
        channel: one or several. size: (C, H, W) of the input.
        place: which unit of the map: "centre", "all" (the mean over the map), or its row and column.
        steps, rate: how many there are, and by how much (rms) each moves the pixels that count.
        decay: from 0 (none) to below 1. blur: the Gaussian's sigma in pixels; 0: none.
        limits: the lowest and the highest value that pixels may have.
        begin: an input (C, H, W) to begin with; None: normal noise of 0.5, drawn by `seed`.
        batch_size: channels in one call. bar: whether long work shows a progress bar (tqdm).

    A unit behind ReLUs that are off has no gradient to follow: a UserWarning names the channels that never had one.
    Take the layer before the ReLU then.

    Raises: as `find_patches`; ValueError for a size that is not three ints of at least 1, a place that is not in the
    map, steps below 1, a rate or sigma below 0, a decay outside [0, 1), limits out of order, a `begin` of another size;
    TypeError where a number is none; RuntimeError where the ascent leaves the finite numbers.
    """
    name, module = layer_of(model, layer)
    if not isinstance(size, Sequence) or len(size) != 3 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"size must be (C, H, W), each an int of at least 1, got {size!r}")
    at_least_one(steps=steps, batch_size=batch_size)
    ascent = _Ascent(rate, decay, blur, limits)
    begin = _noise(size, seed) if begin is None else begin
    if isinstance(begin, Tensor) and tuple(begin.shape) != tuple(size):
        raise ValueError(f"begin must be an input of the size {tuple(size)}, got {list(begin.shape)}")
    with torch.inference_mode(False), override():
        x = images_for(begin, model)
        x = x if x.is_floating_point() else x.float()
        y = _activations(model, module, name, x)
        chosen = _channels(channel, y.shape[1], name)
        picked = _picker(place, y)
        made, dead = [], []
        ticks = iter(progress(range(steps * math.ceil(len(chosen) / batch_size)), f"ascent to {name}", bar))
        for first in range(0, len(chosen), batch_size):
            some = chosen[first : first + batch_size]
            excited = partial(_excited, model, module, name, some, picked)
            reached, lived = ascent.run(excited, x.expand(len(some), -1, -1, -1), steps, ticks)
            made.append(reached)
            dead += [c for c, alive in zip(some, lived) if not alive]
        for _ in ticks:  # ends the bar
            pass
    found = torch.cat(made).float().cpu()
    if not found.isfinite().all():
        lost = [c for c, image in zip(chosen, found) if not image.isfinite().all()]
        raise RuntimeError(f"the ascent to channels {lost} of {name!r} left the finite numbers: is the rate too large?")
    if dead:
        warnings.warn(
            f"no gradient reached the input from channels {dead} of {name!r}, which are off: take the layer before "
            "the ReLU, another seed, or an image to begin with", stacklevel=_outside(),
        )  # fmt: skip
    return found


def _outside() -> int:
    """The stacklevel of a warning that is to name the line that called into this file."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame, level = frame.f_back, level + 1
    return level


def _noise(size: Sequence[int], seed: int) -> Tensor:
    if type(seed) is not int:
        raise TypeError(f"seed must be an int, got {seed!r}")
    return 0.5 * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _excited(model: nn.Module, module: nn.Module, name: str, channels: list[int], picked: Picker, x: Tensor) -> Tensor:
    """What each image of x (channels, C, H, W) makes of its channel."""
    maps = _activations(model, module, name, x, graph=True)
    return picked(maps[torch.arange(len(x), device=x.device), channels])


def _picker(place: Place | str, y: Tensor) -> Picker:
    """What takes the activation of one unit, or the mean of all, from maps (N, P, Q)."""
    if isinstance(place, str):
        if place not in ("centre", "all"):
            raise ValueError(f"place must be 'centre', 'all' or a row and a column, got {place!r}")
        if place == "all":
            return lambda maps: maps.mean((1, 2))
    p, q = _in_maps((y.shape[2] // 2, y.shape[3] // 2) if isinstance(place, str) else place, y)
    return lambda maps: maps[:, p, q]


@dataclass(frozen=True)
class _Ascent:
    """Gradient ascent for some channels at once: an image for each. `maximised` says what the settings are."""

    rate: float = 0.1
    decay: float = 0.02
    blur: float = 0.5
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        rate, decay, blur = self.rate, self.decay, self.blur
        for name, value in {"rate": rate, "decay": decay, "blur": blur}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not (0 < rate < math.inf and 0 <= decay < 1 and 0 <= blur < math.inf):
            rule = "rate must be above 0, decay from 0 to below 1, blur at least 0, all of them finite"
            raise ValueError(f"{rule}: got {rate}, {decay}, {blur}")
        if self.limits is not None:
            pair = isinstance(self.limits, Sequence) and len(self.limits) == 2
            if not pair or not self.limits[0] < self.limits[1]:
                raise ValueError(f"limits must be a lower and a higher number, got {self.limits}")

    def run(
        self, excited: Callable[[Tensor], Tensor], x: Tensor, steps: int, ticks: Iterator[int]
    ) -> tuple[Tensor, list[bool]]:
        """`steps` steps from x (channels, C, H, W), and whether each ever had a gradient; in float32 at least."""
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        lived = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(steps):
            next(ticks, None)
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(excited(x.to(given)).sum(), x)
            counts = grad.count_nonzero((1, 2, 3))[:, None, None, None]
            rms = torch.linalg.vector_norm(grad, dim=(1, 2, 3), keepdim=True) / counts.clamp_min(1).sqrt()
            lived |= counts.flatten() > 0
            with torch.no_grad():
                x = (x + self.rate * grad / rms.clamp_min(torch.finfo(grad.dtype).tiny)) * (1 - self.decay)
                if self.blur and step % 4 == 3 and step < steps - 8:
                    x = blurred(x, self.blur)
                if self.limits is not None:
                    x = x.clamp(*self.limits)
        return x.detach(), lived.tolist()


def maximise(
    model: nn.Module, layer: str | nn.Module, channel: Channels, size: Sequence[int], *, place: Place | str = "centre",
    **keywords: Any,
) -> Picture:  # fmt: skip
    """Inputs that excite channels of a layer, made by gradient ascent; `maximised` tells how, and has all keywords.

    A single unit's input is cut to its receptive field, outside of which nothing moves it. Each is on a scale of its
    own with zero in the middle (grey for three channels; else white, red above and blue below), with the activation
    that it reaches above it.
    """
    figure_class()
    name, module = layer_of(model, layer)
    made = maximised(model, layer, channel, size, place=place, **keywords)
    with override():
        y = _activations(model, module, name, images_for(made, model, several=True))
    chosen = _chosen(channel)
    reached = _picker(place, y)(y[torch.arange(len(made)), chosen]).tolist()
    window: Window = slice(0, size[1]), slice(0, size[2])
    if place != "all":
        at = (y.shape[2] // 2, y.shape[3] // 2) if isinstance(place, str) else place
        window = _window(field_of(model, module, tuple(size)), y.shape[2:], at, size[1:])
    blocks = [
        (f"channel {c}: {value:.3g}", [signed_colours(image[:, window[0], window[1]])])
        for c, value, image in zip(chosen, reached, made)
    ]
    extent = [part.stop - part.start for part in window]
    whose = "the mean of the map" if place == "all" else "one unit"
    text = f"{name}: inputs made to excite {whose} of {_named(chosen)}, {extent[0]} × {extent[1]}"
    return _draw_blocks(text, blocks, extent[1])
