# The compiled part of conv_ext (csrc/python/module.cpp, csrc/torch/fastcall.cpp), for type checkers and readers.

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from torch import SymInt, Tensor

class Road(IntEnum):
    """What kind of call it is: see `road`."""

    GENERAL = 0
    PLAIN_GRADIENT = 1
    PLAIN = 2

Int = int | SymInt

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

# The validator: the size of the result of a call whose sizes may be symbolic (then it has SymInts, too).
def result_size(
    pass_name: str, first: Tensor, second: Tensor, bias: Tensor | None, size: Sequence[Int], stride: Sequence[Int],
    padding: Sequence[Int], dilation: Sequence[Int], groups: Int, precision: str, activation: str = "none",
    residual: Tensor | None = None, low: float = 0, high: float = 0,
) -> list[int]: ...  # fmt: skip

# What would run: csrc/python/module.cpp says what the dict holds.
def plan(
    pass_name: str, dtype: str, input: Sequence[int], weight: Sequence[int], output: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, algorithm: str = "auto",
    precision: str = "ieee", channels_last: bool = False, capability: int = 0, input_stride: Sequence[int] = (),
    weight_stride: Sequence[int] = (),
) -> dict[str, Any]: ...  # fmt: skip
def build_info() -> dict[str, Any]: ...
def known_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def load_chosen_kernel_library() -> None: ...
def load_kernel_library(path: str) -> None: ...
def load_cuda_library(path: str) -> None: ...
def isa() -> str: ...

# For tests.
def set_scratch_guard(on: bool) -> None: ...
def fail_block(number: int) -> int: ...
