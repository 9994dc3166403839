"""What the caller allows: the precision of float32 and the choice of algorithm, read once per public call."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from . import _C
from .arguments import PRECISIONS, Precision

if TYPE_CHECKING:
    from typing_extensions import Self


def _algorithms(capability: int) -> tuple[str, ...]:
    """The names in the plan of the CPU (0), or of a CUDA device."""
    size = (1, 1, 1, 1)
    plan = _C.plan("forward", "float32", size, size, size, (1, 1), (0, 0, 0, 0), (1, 1), 1, capability=capability)
    return tuple(name for name, *_ in plan["candidates"])


# By device; tuples, which Dynamo takes for constants.
ALGORITHMS = {"cpu": _algorithms(0), "cuda": _algorithms(90)}
_KNOWN = ("auto", *ALGORITHMS["cpu"], *ALGORITHMS["cuda"])
_KNOWN_TEXT = "auto; " + "; ".join(f"{device}: {', '.join(names)}" for device, names in ALGORITHMS.items())

# `torch.backends.<backend>.conv.fp32_precision` without the Python property, which costs 1 us a call.
_read_fp32_precision = torch._C._get_fp32_precision_getter
_BACKEND = {"cpu": "mkldnn", "cuda": "cuda"}


class _State(threading.local):
    def __init__(self) -> None:
        # In __init__, not in the class body: Dynamo guards on an attribute of the instance, and takes one
        # of the class for a constant.
        # What the blocks that the thread is in have set, the innermost last.
        self.precision: tuple[str, ...] = ()
        self.algorithm: tuple[str, ...] = ()


_state = _State()


class _Setting:
    """A context manager that sets one attribute of the calling thread's state; an object may be entered again.

    Several threads may share one: all that changes belongs to the thread.
    """

    _name: str

    def __init__(self, value: str) -> None:
        self.value = value

    def __enter__(self) -> Self:
        setattr(_state, self._name, (*getattr(_state, self._name), self.value))
        return self

    def __exit__(self, *exception: object) -> None:
        setattr(_state, self._name, getattr(_state, self._name)[:-1])

    def __repr__(self) -> str:
        return f"conv_ext.{self._name}({self.value!r})"


class precision(_Setting):
    """Within the block, float32 convolutions of this thread may compute with less: ``with precision("tf32"):``.

    ``"ieee"``: every product and sum in float32. On a CPU those may be of numbers that the Winograd algorithm has
    transformed, in its smaller tiles: an error is then in proportion to the largest numbers that a tile reads, and an
    exact zero need not come out as one (docs/promises.md; ``algorithm("direct")`` does without). ``"tf32"``: the
    operands may be rounded to 10 explicit bits of mantissa, or the result be as far off as if they were: on a CPU this
    allows the Winograd algorithm its larger tiles, whose error is far below that. ``"bf16"``: they may be rounded to
    bfloat16.
    It is leave, not an order: an algorithm that has nothing to gain stays at "ieee". Other dtypes are not touched.
    The setting is read when a public function is called and is kept for its backward pass.

    Raises:
        ValueError: the value is none of the three.
    """

    _name = "precision"

    def __init__(self, value: Precision) -> None:
        if value not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {value!r}")
        super().__init__(value)


class algorithm(_Setting):
    """Within the block, calls of this thread use the named algorithm: ``with algorithm("reference"):``.

    ``"auto"`` lets the plan choose. The other names are those that ``conv_ext.explain`` prints, the CPU's and
    CUDA's. One that cannot run a call, or is the other device's, is a RuntimeError of that call, with the reason
    that ``explain`` has, which says what can, too. The name is kept for the backward pass, where an algorithm that
    cannot compute the gradients is a RuntimeError, too.

    Raises:
        TypeError: the name is not a str. ValueError: there is no such algorithm.
    """

    _name = "algorithm"

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"algorithm must be a str, got {type(value).__name__}")
        if value not in _KNOWN:
            raise ValueError(f"algorithm must be one of {_KNOWN_TEXT}; got {value!r}")
        super().__init__(value)


def torch_precision(device_type: str) -> str:
    """What PyTorch's own setting allows convolutions on that kind of device: one of PRECISIONS.

    The CPU reads ``torch.backends.mkldnn.conv.fp32_precision``, CUDA ``torch.backends.cudnn.conv.fp32_precision``.
    Where nothing is set ("none") and where PyTorch has no setting, it is "ieee".
    """
    backend = _BACKEND.get(device_type)
    value = _read_fp32_precision(backend, "conv") if backend else "none"
    return value if value in PRECISIONS else "ieee"


# Dynamo cannot trace the getter and has no guard for it: compiled code keeps what was set when it was
# compiled. `precision(...)` is guarded and recompiles. The mark is all that torch.compiler.assume_constant_result
# sets; calling that would load the whole of torch._dynamo, and double the time of the import.
torch_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def current_precision(device_type: str = "cpu") -> str:
    """The precision that a float32 call on that kind of device gets now: `precision(...)`, else PyTorch's setting."""
    values = _state.precision
    return values[-1] if values else torch_precision(device_type)


def current_algorithm() -> str:
    """The algorithm that a call gets now: that of the innermost `algorithm(...)`, else "auto"."""
    values = _state.algorithm
    return values[-1] if values else "auto"
