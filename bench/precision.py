"""How much rounding a float32 convolution may do: the same leave given to both sides, each by its own setting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def allowed(precision: str, device: str = "cpu") -> Iterator[str]:
    """Inside, conv_ext and torch may compute float32 convolutions with that precision, no worse.

    Yields what torch's own setting, `torch.backends.mkldnn.conv.fp32_precision` (on CUDA that of `cudnn`, which would
    otherwise allow TF32), says when it is read back: a torch that lacks the setting, or does not take the value, stays
    as it is. What it then does with its leave is its choice.
    """
    import conv_ext

    backend = getattr(torch.backends.cudnn if device == "cuda" else torch.backends.mkldnn, "conv", None)
    before = getattr(backend, "fp32_precision", None)
    if before is not None:
        with contextlib.suppress(RuntimeError, ValueError):
            backend.fp32_precision = precision
    try:
        with conv_ext.precision(precision):
            yield getattr(backend, "fp32_precision", "no such setting")
    finally:
        if before is not None:
            backend.fp32_precision = before
