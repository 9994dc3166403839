"""What a layer of any kind does: what its outputs see, how far they are apart, what it is called and what it costs.

`summary` asks `field_after`, `op_of` and `operations_of` here for each layer that it watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .arguments import Sides, padding_of
from .fields import Adaptive, Field, Interpolated, Same, Step, Transposed, Whole, Windowed
from .mapped import MappedConv2d

# By the beginning of torch's names, "Adaptive" left out.
_POOLS = {"Max": "pool", "Avg": "avg", "LP": "lp", "FractionalMax": "fractional"}
_UPSAMPLES = {"nearest": 1, "nearest-exact": 1, "linear": 2, "bilinear": 2, "bicubic": 4}  # mode -> inputs of an output
_PAD_KINDS = ("Constant", "Reflection", "Replication", "Circular")
_PADS = tuple(vars(nn)[f"{kind}Pad{n}d"] for kind in _PAD_KINDS for n in (1, 2))


def pool_word(module: nn.Module) -> str | None:
    """The word for a pooling layer of torch's, or None."""
    name = type(module).__name__.removeprefix("Adaptive")
    return next((word for begin, word in _POOLS.items() if name.startswith(f"{begin}Pool")), None)


def norm_word(module: nn.Module) -> str | None:
    """The word for a normalisation, or None."""
    if isinstance(module, (nn.LocalResponseNorm, nn.CrossMapLRN2d)):
        return "norm"
    return type(module).__name__ if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) else None


def moves(module: nn.Module, inputs: Sequence[Any], y: object) -> bool:
    """Whether a layer changes how many positions there are, other than to make a vector or maps of them."""
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or min(x.dim(), y.dim()) < 3:
        return False
    return isinstance(module, (nn.Unfold, nn.Fold)) or x.dim() == y.dim() and x.shape[2:] != y.shape[2:]


def pair_of(values: Any, dimensions: int = 2, missing: int = 1) -> tuple[int, int]:
    """An int, or one for each dimension, as (height, width); a sequence has no height but a `missing` one."""
    values = tuple(values) if isinstance(values, Iterable) else (values,) * dimensions
    return (missing, *values)[-2:]


def _window(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, ...] | None:
    """(kernel, stride, padding, dilation) of a layer that moves a window over maps, each (height, width); or None."""
    dimensions = x.dim() - 2
    fractional = isinstance(module, nn.FractionalMaxPool2d)
    if _adaptive(module, x) and not fractional:  # what comes nearest
        spatial, outputs = pair_of(x.shape[2:]), module.output_size
        if not isinstance(outputs, int):
            outputs = [o or n for o, n in zip(outputs, x.shape[2:])]
        outputs = pair_of(outputs, dimensions)
        stride = tuple(n // o for n, o in zip(spatial, outputs))
        kernel = tuple(n - (o - 1) * s for n, o, s in zip(spatial, outputs, stride))
        return kernel, stride if max(outputs) > 1 else kernel, (0, 0), (1, 1)
    if not hasattr(module, "kernel_size"):
        return None
    padding = getattr(module, "padding", 0)
    padding = padding if isinstance(padding, (str, Sides)) else pair_of(padding, dimensions, 0)
    kernel = pair_of(module.kernel_size, dimensions)
    if fractional:  # windows at random places; the step that comes nearest
        outputs = y.shape[2:]
        stride = tuple(max(1, round((n - k) / max(o - 1, 1))) for n, k, o in zip(x.shape[2:], kernel, outputs))
        return kernel, stride, (0, 0), (1, 1)
    stride = module.stride if module.stride is not None else module.kernel_size  # LPPool2d keeps its None
    stride = pair_of(stride, dimensions)
    return kernel, stride, padding, pair_of(getattr(module, "dilation", 1), dimensions)


def _adaptive(module: nn.Module, x: Tensor) -> bool:
    return hasattr(module, "output_size") and x.dim() > 2


def field_after(module: nn.Module, field: Field | None, x: Tensor, y: Tensor) -> Field | None:
    """What the outputs of a layer see."""
    if field is None:
        return None
    after = _seen_by(module, field, x, y)
    weighs = isinstance(module, (_ConvNd, MappedConv2d, nn.Linear))
    return replace(after, depth=field.depth + 1) if weighs else after


def _seen_by(module: nn.Module, field: Field, x: Tensor, y: Tensor) -> Field:
    if isinstance(module, nn.Linear) or y.dim() == 2 and field.count != (1, 1):
        return field.through(field.count, (1, 1), (1, 1), (1, 1), Whole(field.count), (0, 0))
    count, size = pair_of(y.shape[2:]), pair_of(x.shape[2:])
    if isinstance(module, (nn.Unfold, nn.Fold)):
        return field.unknown(count)
    if isinstance(module, (nn.Upsample, nn.PixelShuffle)):
        return _upsampled(module, field, size, count)
    if isinstance(module, nn.PixelUnshuffle):
        side = (module.downscale_factor,) * 2
        return field.through(side, side, (1, 1), count, Windowed(side, side, (0, 0), (1, 1), size), (0, 0))
    if isinstance(module, _PADS):
        before = (*module.padding[2:3], 0)[:1] + module.padding[:1]  # (left, right), or (left, right, top, bottom)
        modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
        mode = modes.get(type(module).__name__[: -len("Pad2d")], "zeros")
        laid = Windowed((1, 1), (1, 1), before, (1, 1), size, mode)
        return field.through((1, 1), (1, 1), (1, 1), count, laid, tuple(-n for n in before))
    window = _window(module, x, y)
    if window is None:
        return field.unknown(count) if moves(module, (x,), y) else field
    kernel, stride, padding, dilation = window
    before = _before(padding, size, kernel, stride, dilation)
    if getattr(module, "transposed", False) or isinstance(module, (nn.MaxUnpool1d, nn.MaxUnpool2d)):
        # Of each stride's outputs one kernel position in `stride` meets an input.
        reach = tuple(-(-(d * (r - 1) + 1) // s) for r, s, d in zip(kernel, stride, dilation))
        first = tuple(-((d * (r - 1) - b) // s) for r, s, d, b in zip(kernel, stride, dilation, before))
        step: Step = Transposed(kernel, stride, before, dilation, size)
        return field.through(reach, (1, 1), (1, 1), count, step, first).finer(tuple(map(Fraction, stride)), count)
    if isinstance(module, nn.FractionalMaxPool2d):
        return field.through(kernel, stride, dilation, count, Same(size), (0, 0)).astray()
    mode = getattr(module, "padding_mode", "zeros")
    step = Adaptive(size, count) if _adaptive(module, x) else Windowed(kernel, stride, before, dilation, size, mode)
    return field.through(kernel, stride, dilation, count, step, tuple(-n for n in before))


def _before(
    padding: Any, size: Sequence[Any], kernel: Sequence[Any], stride: Sequence[Any], dilation: Sequence[Any]
) -> tuple[int, int]:
    """The padding before the first row and column."""
    if not isinstance(padding, str):
        found: tuple[int, int] = padding
        return found
    top, _, left, _ = padding_of(padding, size, kernel, stride, dilation)
    return top, left


def _upsampled(module: nn.Module, field: Field, size: tuple[int, int], count: tuple[int, int]) -> Field:
    """What the outputs of nn.Upsample and nn.PixelShuffle see."""
    mode = getattr(module, "mode", "nearest")
    ratio = tuple(Fraction(m, n) for m, n in zip(count, size))
    taps = tuple(_UPSAMPLES[mode] if n > 1 else 1 for n in size)
    low, high = (0, 0) if _UPSAMPLES[mode] == 1 else (1 - _UPSAMPLES[mode] // 2, _UPSAMPLES[mode] // 2)
    back = tuple(1 / r for r in ratio)
    given = getattr(module, "scale_factor", None)
    if given is not None and not module.recompute_scale_factor:  # torch divides by it, and not by what came of it
        given = given if isinstance(given, tuple) else (given,) * len(size)
        back = tuple(1 / Fraction(s) if s else b for s, b in zip((None, *given)[-2:], back))
    half = Fraction(1, 2)  # positions are centres of pixels, but in "nearest" and with corners aligned
    plus, minus = {"nearest": (0 * half, 0 * half), "nearest-exact": (half, 0 * half)}.get(mode, (half, half))
    if getattr(module, "align_corners", False):
        plus = minus = 0 * half
        back = tuple(Fraction(n - 1, max(m - 1, 1)) for n, m in zip(size, count))
    step = Interpolated(back, plus, minus, low, high, size)
    first = tuple(step.low if t > 1 else 0 for t in taps)
    return field.through(taps, (1, 1), (1, 1), count, step, first).finer(ratio, count)


def op_of(module: nn.Module, x: Tensor, y: Tensor) -> str:
    """The name of a layer, as "conv(3,64,p1)"."""
    if isinstance(getattr(module, "op", None), str):
        return module.op
    if isinstance(module, nn.Linear):
        return f"fc({module.out_features})"
    if isinstance(module, (nn.Unfold, nn.Fold, nn.MaxUnpool1d, nn.MaxUnpool2d)):
        return type(module).__name__
    window = _window(module, x, y)
    if window is None:
        return norm_word(module) or type(module).__name__
    kernel, stride, padding, dilation = window

    def text(pair: tuple[int, int]) -> str:
        same = pair[0] == pair[1] or x.dim() == 3
        return str(pair[1]) if same else f"{pair[0]}x{pair[1]}"

    word = pool_word(module)
    words = [text(kernel)]
    if word is None:
        word = "deconv" if getattr(module, "transposed", False) else "conv"
        words += [str(module.out_channels)] + ([f"s{text(stride)}"] if max(stride) > 1 else [])
    elif stride != kernel:
        words.append(text(stride))
    if isinstance(padding, str):
        words += [padding] if padding != "valid" else []
    elif max(padding):
        words.append(f"p{'/'.join(map(str, padding)) if isinstance(padding, Sides) else text(padding)}")
    words += [f"d{text(dilation)}"] if max(dilation) > 1 else []
    words += [f"g{module.groups}"] if getattr(module, "groups", 1) > 1 else []
    words += ["table"] if isinstance(module, MappedConv2d) else []
    return f"{word}({','.join(words)})"


def macs_of(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Products, each with its addition, of a convolution or a full connection; 0 of other layers."""
    if isinstance(module, MappedConv2d):
        return module.weight.numel() * (y.numel() // module.out_channels)
    if not isinstance(module, (_ConvNd, nn.Linear)):
        return 0
    if getattr(module, "transposed", False):
        return x.numel() * module.weight[0].numel()
    return y.numel() * module.weight[0].numel()


def operations_of(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiplications with additions, the bias as one; one for each input of a layer without products."""
    if isinstance(module, (MappedConv2d, _ConvNd, nn.Linear)):
        return macs_of(module, x, y) + (y.numel() if module.bias is not None else 0)
    if hasattr(module, "operations_per_output"):
        return y.numel() * module.operations_per_output
    return x.numel()
