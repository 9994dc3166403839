"""Arguments of the public functions in every form that torch takes, and torch's errors for the others."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import SymInt, Tensor

INT64_MAX = 2**63 - 1
# The strings that are arguments, for type checkers.
ActivationName = Literal["none", "relu", "relu6", "silu", "hardswish"]  # the default first
Activation = ActivationName | tuple[Literal["clamp"], float, float]  # low, high
Padding = Literal["valid", "same", "full", "same_strided"]  # torch knows the first two
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Precision = Literal["ieee", "tf32", "bf16"]
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
PADDINGS: tuple[str, ...] = get_args(Padding)
PRECISIONS: tuple[str, ...] = get_args(Precision)
_OPERATORS = {name: (name, 0.0, 0.0) for name in ACTIVATIONS} | {"relu6": ("clamp", 0.0, 6.0)}
# stride, padding before and after each dimension, dilation, groups
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


class Sides(tuple[int, ...]):
    """The zeros before and after each dimension, (top, bottom, left, right), as the padding of a layer.

    For `fuse`, which makes them of padding layers. What a user gives as so many numbers is refused, as torch does it.
    """

    def last_first(self) -> list[int]:
        """The same as F.pad counts them: (left, right, top, bottom)."""
        return [zeros for i in range(len(self) - 2, -1, -2) for zeros in self[i : i + 2]]


def _int(value: Any, function: str, name: str) -> int:
    """One argument as an int (or SymInt): what torch takes for one."""
    if type(value) is int:
        number = value
    elif isinstance(value, SymInt):
        return cast(int, value)
    elif isinstance(value, Tensor):
        if value.numel() != 1 or value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
            raise TypeError(
                f"{function}(): argument '{name}' must be int, not {value.dtype} Tensor of size {list(value.shape)}"
            )
        number = int(value.item())
    else:
        # bool and numpy's bool have __index__ (numpy's had, in version 1).
        if isinstance(value, bool) or type(value).__module__ == "numpy" and "bool" in type(value).__name__:
            raise TypeError(f"{function}(): argument '{name}' must be int, not bool")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{function}(): argument '{name}' must be int, not {type(value).__name__}") from None
    if not -INT64_MAX - 1 <= number <= INT64_MAX:
        raise ValueError(f"Overflow when unpacking long long: {name} must fit in 64 bits, got {number}")
    return number


def ints(value: Any, length: int, function: str, name: str) -> tuple[Any, ...]:
    """One argument as a tuple of `length` ints: an int, or a list or tuple of one or of `length` ints."""
    if type(value) is int and 0 <= value <= INT64_MAX:  # these two are nearly all there are
        return (value,) * length
    if type(value) is tuple and length == 2 == len(value):
        a, b = value
        if type(a) is type(b) is int and 0 <= a <= INT64_MAX and 0 <= b <= INT64_MAX:
            return value
    if not isinstance(value, (tuple, list)):
        if isinstance(value, Tensor) and value.dtype == torch.bool:  # torch takes it here, though not in a list
            value = value.long()
        return (_int(value, function, name),) * length
    try:
        values = tuple([_int(v, function, name) for v in value])
    except ValueError as error:  # torch's class for it inside a list
        raise TypeError(f"{function}(): argument '{name}' failed to unpack: {error}") from None
    if len(values) == 1:
        return values * length
    if len(values) != length:
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {length} values to match the convolution "
            f"dimensions, but got {name}={list(values)}"
        )
    return values


def padding_of(
    rule: str, size: Sequence[Any], kernel: Sequence[Any], stride: Sequence[Any], dilation: Sequence[Any]
) -> tuple[Any, ...]:
    """The zeros (before, after, …) of each dimension that a padding string asks for.

    size, kernel: the input's and the kernel's sizes; only 'same_strided' reads `size`. An odd total has its extra zero
    after, as torch's has. What is out of range here (an empty kernel, a stride below one) is the operator's to refuse.

    Raises RuntimeError: an unknown string, 'same' with a stride, a kernel that spans more than 2^63 - 1.
    """
    if rule not in PADDINGS:
        names = ", ".join(map(repr, PADDINGS))
        raise RuntimeError(f"Invalid padding string: {rule!r}: it must be one of {names}")
    if rule == "same" and any(s != 1 for s in stride):
        raise RuntimeError(
            f"padding='same' is not supported for strided convolutions, got stride {stride}; 'same_strided' pads to "
            "ceil(size / stride) outputs, where the padding depends on the input's size"
        )
    zeros = []
    for i, (r, d, s) in enumerate(zip(kernel, dilation, stride)):
        reach = d * (r - 1) if d > 0 and r > 0 else 0
        if isinstance(reach, int) and reach > INT64_MAX:
            raise RuntimeError(
                f"effective kernel size exceeds 2^63 - 1: kernel size {tuple(kernel)}, dilation {tuple(dilation)}"
            )
        if rule == "full":
            zeros += [reach, reach]
            continue
        total = reach if rule == "same" else 0  # a kernel of one element needs none, by any rule
        if rule == "same_strided" and s > 0 and not (isinstance(reach, int) and reach == 0):
            # The last of ceil(size / s) windows begins (size - 1) % s before the last element and ends `reach` later.
            # Of a symbolic size it is known, in this form, that the result is from 0 to `reach`.
            total = reach - (size[i] - 1) % s
            if s - 1 > reach:  # a stride beyond the kernel may need no padding; a size may be symbolic, or a tensor
                total = total.clamp(min=0) if isinstance(total, Tensor) else torch.sym_max(total, 0)
        zeros += [total // 2, (total + 1) // 2]
    return tuple(zeros)


def normalize(
    function: str, input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any, length: int = 2
) -> Geometry:
    """(stride, padding before and after each dimension, dilation, groups) from any form that torch accepts.

    function: the name that errors carry. input, weight: their last `length` sizes are the image's and the kernel's
    (the padding strings need them). length: 2, or 1 for sequences.

    Raises:
        TypeError: a value is no int. ValueError: an int is above 2^63 - 1.
        RuntimeError: a list of the wrong length, an unknown padding string, 'same' with a stride.
    """
    stride = ints(stride, length, function, "stride")
    dilation = ints(dilation, length, function, "dilation")
    if type(groups) is not int or not 0 <= groups <= INT64_MAX:
        groups = _int(groups, function, "groups")
    if type(padding) is Sides:
        return stride, tuple(padding), dilation, groups
    if isinstance(padding, str):
        padding = padding_of(padding, input.shape[-length:], weight.shape[-length:], stride, dilation)
        return stride, padding, dilation, groups
    padding = ints(padding, length, function, "padding")
    if length == 2:
        rows, columns = padding
        return stride, (rows, rows, columns, columns), dilation, groups
    return stride, padding * 2, dilation, groups


# What an error of the operator, or of transposed.py, says of one row, and what it means there.
_ONE_ROW = (
    (r"\[(\d+), (\d+), 1, (\d+)\]", r"[\1, \2, \3]"),  # (N, C, H, W)
    (r"\(1 x (-?\d+)\)", r"(\1)"),
    (r"\(1, (-?\d+)\)", r"(\1)"),  # kernel size, stride, dilation
    (r"\(0, (-?\d+)\)", r"(\1)"),  # output padding
    (r"\(0, 0, (-?\d+), (-?\d+)\)", r"(\1, \2)"),  # padding
    (r"\(top, bottom, left, right\)", "(left, right)"),
)


def of_one_row(error: RuntimeError) -> RuntimeError:
    """An error of the operator in the sizes of a sequence, without the height of 1 that it is given."""
    if type(error) is not RuntimeError:  # of the classes derived from it none speaks of sizes
        return error
    text = str(error)
    for pattern, meant in _ONE_ROW:
        text = re.sub(pattern, meant, text)
    return error if text == str(error) else RuntimeError(text)


def operators_activation(activation: Any) -> tuple[str, float, float]:
    """An activation as the operators take it: its name, and two bounds, which clamp reads.

    Raises:
        TypeError: it is neither a str nor a tuple. RuntimeError: it is none of the activations.
    """
    if isinstance(activation, str):
        found = _OPERATORS.get(activation)
        if found is not None:
            return found
    elif not isinstance(activation, tuple):
        raise TypeError(
            f"argument 'activation' must be str, or a tuple ('clamp', low, high), not {type(activation).__name__}"
        )
    elif len(activation) == 3 and activation[0] == "clamp":
        _, low, high = activation
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            return "clamp", float(low), float(high)
    names = ", ".join(ACTIVATIONS)
    raise RuntimeError(f"activation must be one of {names}, or ('clamp', low, high) with two numbers, got {activation}")


def check_activation(activation: Any) -> None:
    """ValueError unless it is one of ACTIVATIONS, or ("clamp", low, high) with low <= high."""
    try:
        name, low, high = operators_activation(activation)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if name == "clamp" and not low <= high:
        raise ValueError(f"activation clamp needs bounds with low <= high, got low={low} and high={high}")


def named_activation(name: str, low: float, high: float) -> Any:
    """The public form of what `operators_activation` gives."""
    return ("clamp", low, high) if name == "clamp" else name


def shown_activation(activation: Activation) -> str:
    """How an activation is written in tables and reprs: relu, clamp(0, 6)."""
    return activation if isinstance(activation, str) else f"clamp({activation[1]:g}, {activation[2]:g})"


def check_switches(function: str, **switches: object) -> None:
    """TypeError unless each of them is a bool: what is none, "no" for one, may be true where nobody meant it."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{function}: {name} must be True or False, got {value!r:.80}")


def check_operands(function: str, rank: int, input: Any, weight: Any, bias: Any, residual: Any = None) -> bool:
    """What must hold before an operand may be looked at: types, layouts, ranks. Returns whether there is a batch."""
    for name, value in (("input", input), ("weight", weight), ("bias", bias), ("residual", residual)):
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise RuntimeError(f"Expected a strided {name}, but got layout {value.layout}")
        elif name in ("input", "weight") or value is not None:
            raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(value).__name__}")
    if weight.dim() != rank:
        layout = "(K, C/groups, R, S)" if rank == 4 else "(K, C/groups, S)"
        raise RuntimeError(f"Expected {rank}D weight {layout}, but got weight of size: {list(weight.shape)}")
    if input.dim() not in (rank - 1, rank):
        raise RuntimeError(
            f"Expected {rank - 1}D (unbatched) or {rank}D (batched) input to {function}, "
            f"but got input of size: {list(input.shape)}"
        )
    if residual is not None and residual.dim() != input.dim():
        raise RuntimeError(
            f"Expected {input.dim()}D residual, of the result's size, but got residual of size: {list(residual.shape)}"
        )
    return bool(input.dim() == rank)
