"""Where a test makes its tensors: a test that asks for `each_device` runs on the CPU and, where there is one, on a GPU.

The functions here stand for torch's of the same names. (A default device would do, were it not for the mode that it
sets, under which every call takes the general road.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
_current = "cpu"


def device() -> str:
    """Where the running test makes its tensors: "cpu" or "cuda"."""
    return _current


@contextlib.contextmanager
def on(name: str) -> Iterator[str]:
    """Tensors are made there; torch's convolutions, with which ours are compared, do not round float32 there."""
    global _current
    before, _current = _current, name
    # The older of torch's two settings: once the newer one has been used, torch.export refuses to read this one.
    cudnn = torch.backends.cudnn
    allowed = cudnn.allow_tf32 if name != "cpu" else None
    if allowed is not None:
        cudnn.allow_tf32 = False
    try:
        yield name
    finally:
        _current = before
        if allowed is not None:
            cudnn.allow_tf32 = allowed


def _made(function):
    def make(*arguments, **options):
        return function(*arguments, device=_current, **options)

    return make


randn, rand, ones, zeros, empty, tensor = map(
    _made, (torch.randn, torch.rand, torch.ones, torch.zeros, torch.empty, torch.tensor)
)
