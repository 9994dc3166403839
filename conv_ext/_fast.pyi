# What a module of the fast road has (csrc/torch/fastcall.cpp, named after a version of torch), for readers and tests.

from collections.abc import Sequence
from enum import IntEnum

from torch import Tensor

class Road(IntEnum):
    """What kind of call it is: see `road`."""

    GENERAL = 0
    PLAIN_GRADIENT = 1
    PLAIN = 2

def road(input: object, weight: object, bias: object, residual: object = None, /) -> Road: ...

# Below the dispatcher, for plain tensors.
def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, precision: str, algorithm: str, activation: str,
    residual: Tensor | None = None, low: float = 0, high: float = 0, /,
) -> Tensor: ...  # fmt: skip
def forward_packed(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, precision: str, algorithm: str, activation: str,
    residual: Tensor | None, low: float, high: float, packed: Tensor, /,
) -> Tensor: ...  # fmt: skip
def input_grad(
    grad_output: Tensor, weight: Tensor, input_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, precision: str, algorithm: str, /,
) -> Tensor: ...  # fmt: skip
def weight_grad(
    grad_output: Tensor, input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, precision: str, algorithm: str, /,
) -> Tensor: ...  # fmt: skip
