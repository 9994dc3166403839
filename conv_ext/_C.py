"""The compiled part: the operators' library, asked by functions in C, and the fast road where there is one.

`libconv_ext_operators.so` serves every Python and every torch from 2.11 on. Beside it may lie a module for the versions
of both that run, which calls the same functions below the dispatcher (csrc/torch/fastcall.cpp); where there is none, or
CONV_EXT_FAST_ROAD=0, `_by_dispatcher` stands in for it.

Import conv_ext instead: it checks the build and loads the kernels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import operator
import os
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from struct import unpack, unpack_from
from typing import TYPE_CHECKING, Any, NoReturn

import torch  # before the operators: its libraries have to be there
from torch import SymInt, Tensor

OPERATORS = Path(__file__).resolve().with_name("libconv_ext_operators.so")


def _missing_bytes(file: Path) -> int:
    """What a library lacks of the bytes that its own headers place in it: csrc/torch/open_library.h says why.

    0 where it is whole, or no ELF file of 64 bits in this machine's order, of which the loader says what it is.
    """
    with open(file, "rb") as opened:
        head = opened.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\2" + (b"\1" if sys.byteorder == "little" else b"\2"):
            return 0
        fields: tuple[int, ...] = unpack("QQIHHHHH", head[32:62])
        parts_at, sections_at, _, _, part_size, parts, section_size, sections = fields
        opened.seek(parts_at)
        found = opened.read(part_size * parts)
        ends = [parts_at + part_size * parts, sections_at + section_size * sections]
        if len(found) == part_size * parts:
            for i in range(parts):
                offset, _, _, size = unpack_from("QQQQ", found, i * part_size + 8)
                ends.append(offset + size)
        return max(0, max(ends) - os.fstat(opened.fileno()).st_size)


def _check_whole(file: Path) -> None:
    """OSError where a library was cut short, which loading it would not survive."""
    if missing := _missing_bytes(file):
        raise OSError(f"{file} is cut short: it lacks its last {missing} bytes")


def _check_alone() -> None:
    """ImportError where another copy of the operators is loaded: torch would end the process over the second."""
    if not hasattr(torch.ops.conv_ext, "forward"):
        return
    try:
        ctypes.CDLL(str(OPERATORS), os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        copies = [path for path in torch.ops.loaded_libraries if path.endswith(OPERATORS.name)]
        raise ImportError(
            f"conv_ext at {OPERATORS.parent} cannot be imported: this process has loaded another copy of its operators"
            f"{', ' if copies else ''}{', '.join(copies)}, and torch takes one. Load those of the package instead"
        ) from None


_check_whole(OPERATORS)
_check_alone()
torch.ops.load_library(OPERATORS)
_library = ctypes.CDLL(str(OPERATORS))

Int = int | SymInt


# ---- the structures of csrc/torch/interface.cpp


class _Symbol(Structure):
    """A number, or the index of an expression that `_Expressions` keeps."""

    _fields_ = [("value", c_int64), ("is_expression", c_int64)]


class _TracedTensor(Structure):
    _fields_ = [
        ("sizes", POINTER(_Symbol)), ("dims", c_int64), ("dtype", c_char_p), ("device", c_char_p), ("unlike", c_char_p),
    ]  # fmt: skip


class _TracedList(Structure):
    _fields_ = [("values", POINTER(_Symbol)), ("count", c_int64)]


class _TracedArguments(Structure):
    _fields_ = [
        ("pass", c_char_p), ("precision", c_char_p), ("activation", c_char_p),
        ("first", _TracedTensor), ("second", _TracedTensor),
        ("bias", POINTER(_TracedTensor)), ("residual", POINTER(_TracedTensor)),
        ("size", _TracedList), ("stride", _TracedList), ("padding", _TracedList), ("dilation", _TracedList),
        ("groups", _Symbol), ("low", c_double), ("high", c_double),
    ]  # fmt: skip


class _PlanCall(Structure):
    _fields_ = [
        ("pass", c_char_p), ("dtype", c_char_p), ("algorithm", c_char_p), ("precision", c_char_p),
        ("input", c_int64 * 4), ("weight", c_int64 * 4), ("output", c_int64 * 4),
        ("stride", c_int64 * 2), ("padding", c_int64 * 4), ("dilation", c_int64 * 2), ("groups", c_int64),
        ("input_stride", POINTER(c_int64)), ("weight_stride", POINTER(c_int64)),
        ("channels_last", c_int64), ("capability", c_int64),
    ]  # fmt: skip


_Compute = ctypes.CFUNCTYPE(c_int64, c_int32, POINTER(_Symbol), POINTER(_Symbol))
_Decide = ctypes.CFUNCTYPE(c_int32, c_int32, c_int32, POINTER(_Symbol), POINTER(_Symbol))
_Print = ctypes.CFUNCTYPE(c_int32, POINTER(_Symbol), c_void_p, c_int32)


class _Keeper(Structure):
    _fields_ = [("compute", _Compute), ("decide", _Decide), ("print", _Print)]


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, f"conv_ext_{name}")
    function.restype, function.argtypes = result, arguments
    return function


_error = _declare("error", c_char_p, POINTER(c_int32))
_tell = _declare("tell", c_char_p, c_char_p)
_load = _declare("load", c_int32, c_int32, c_char_p)
_plan = _declare("plan", c_char_p, POINTER(_PlanCall))
_result_size = _declare("result_size", c_int32, POINTER(_TracedArguments), POINTER(_Keeper), POINTER(_Symbol))
_set_scratch_guard = _declare("set_scratch_guard", None, c_int32)
_fail_block = _declare("fail_block", c_int64, c_int64)

_ERRORS: tuple[type[Exception], ...] = RuntimeError, NotImplementedError, ValueError  # by the numbers of Failure


def _fail() -> NoReturn:
    """Raises the error of the call that has just failed on this thread."""
    kind = c_int32()
    text = _error(byref(kind)).decode(errors="replace")
    raise _ERRORS[kind.value](text)


def _told(what: bytes) -> str:
    text: bytes | None = _tell(what)
    return _fail() if text is None else text.decode()


# ---- what there is


def compiler() -> str:
    """The version of the compiler that made the operators."""
    return _told(b"compiler")


def isa() -> str:
    """The instruction set of the loaded kernel library."""
    return _told(b"isa")


def known_isas() -> list[str]:
    """Instruction sets that there are, the best first."""
    return _told(b"known_isas").split(", ")


def supported_isas() -> list[str]:
    """Those that this processor can run."""
    return _told(b"supported_isas").split(", ")


def available_isas() -> list[str]:
    """Those of them that this build holds."""
    return list(filter(None, _told(b"available_isas").split(", ")))


def load_chosen_kernel_library() -> None:
    """Loads the best that is available, or the one that CONV_EXT_ISA names; RuntimeError where there is none."""
    if _load(0, None) < 0:
        _fail()


def load_kernel_library(path: str) -> None:
    """Loads the kernels of that path in place of those that are in use."""
    if _load(0, os.fsencode(path)) < 0:
        _fail()


def load_cuda_library(path: str) -> None:
    """Loads the CUDA kernels of that path."""
    if _load(1, os.fsencode(path)) < 0:
        _fail()


def set_scratch_guard(on: bool) -> None:
    """For tests: every scratch block and workspace ends at a page that cannot be touched."""
    _set_scratch_guard(on)


def fail_block(number: int) -> int:
    """For tests: of the blocks of scratch and workspace that are asked for from now on, this one cannot be had.

    Negative: all can. Returns what was left of the last number: negative once it was reached.
    """
    return int(_fail_block(number))


# ---- plans


def _strides(values: Sequence[int]) -> Any:
    if len(values) not in (0, 4):
        raise ValueError("plan takes four strides each of input and weight, or none")
    return (c_int64 * 4)(*values) if values else None


def plan(
    pass_name: str, dtype: str, input: Sequence[int], weight: Sequence[int], output: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, algorithm: str = "auto",
    precision: str = "ieee", channels_last: bool = False, capability: int = 0, input_stride: Sequence[int] = (),
    weight_stride: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """How one pass of a validated problem would be computed: on this processor, or on a device of that capability (90).

    csrc/torch/interface.cpp says what the dict holds; ``candidates`` are (name, reason or None, whether it can be
    forced, estimated cycles or None), ``works`` (loops, counts) by name.
    """
    sizes = input, weight, output, stride, padding, dilation
    if list(map(len, sizes)) != [4, 4, 4, 2, 4, 2] or len(input_stride) != len(weight_stride):
        raise ValueError("plan takes three 4-D sizes, and 2, 4 and 2 ints of stride, padding and dilation")
    call = _PlanCall(
        *(text.encode() for text in (pass_name, dtype, algorithm, precision)),
        *((c_int64 * len(values))(*values) for values in sizes),
        groups, _strides(input_stride), _strides(weight_stride), channels_last, capability,
    )  # fmt: skip
    text = _plan(byref(call))
    if text is None:
        _fail()
    found: dict[str, Any] = json.loads(text.decode())
    found["candidates"] = [tuple(candidate) for candidate in found["candidates"]]
    found["works"] = {name: (nest, list(map(float, counts))) for name, (nest, counts) in found["works"].items()}
    return found


# ---- the validator, over sizes that may be symbolic

_ARITHMETIC: tuple[Callable[[Any, Any], Any], ...] = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
)  # fmt: skip
_RELATIONS: tuple[Callable[[Any, Any], Any], ...] = operator.eq, operator.ge


class _Expressions:
    """Keeps the expressions of one call, and answers what the validator asks of them."""

    def __init__(self) -> None:
        self.kept: list[SymInt] = []
        self.error: BaseException | None = None
        self.keeper = _Keeper(
            _Compute(self._guarded(self._compute)), _Decide(self._guarded(self._decide)),
            _Print(self._guarded(self._print)),
        )  # fmt: skip

    def _guarded(self, answer: Callable[..., int]) -> Callable[..., int]:
        """An exception cannot cross C: it is kept for the end of the call, which fails."""

        def call(*arguments: Any) -> int:
            try:
                return answer(*arguments)
            except BaseException as error:
                self.error = error
                return -1

        return call

    def symbol(self, value: Int) -> _Symbol:
        number = value.node.maybe_as_int() if isinstance(value, SymInt) else operator.index(value)
        if number is not None:
            return _Symbol(number, 0)
        self.kept.append(value)  # type: ignore[arg-type]  # it is no int
        return _Symbol(len(self.kept) - 1, 1)

    def value(self, symbol: _Symbol) -> Any:
        return self.kept[symbol.value] if symbol.is_expression else symbol.value

    def _compute(self, arithmetic: int, a: Any, b: Any) -> int:
        result = _ARITHMETIC[arithmetic](self.value(a.contents), self.value(b.contents))
        self.kept.append(result)
        return len(self.kept) - 1

    def _decide(self, question: int, relation: int, a: Any, b: Any) -> int:
        found = _RELATIONS[relation](self.value(a.contents), self.value(b.contents))
        if isinstance(found, bool):
            return found
        ask = found.node.guard_or_false if question else found.node.expect_true
        return bool(ask(__file__, 0))

    def _print(self, a: Any, text: int, size: int) -> int:
        written = str(self.value(a.contents)).encode()[: size - 1] + b"\0"
        ctypes.memmove(text, written, len(written))
        return 0

    def array(self, values: Sequence[Int]) -> Any:
        return (_Symbol * len(values))(*map(self.symbol, values))

    def list(self, values: Sequence[Int]) -> _TracedList:
        return _TracedList(self.array(values), len(values))

    def tensor(self, tensor: Tensor) -> _TracedTensor:
        unlike = None
        if tensor.is_quantized:
            unlike = b"a quantized tensor"
        elif tensor.layout is not torch.strided:
            unlike = f"layout {tensor.layout}".replace("torch.", "").encode()
        dtype, device = str(tensor.dtype).removeprefix("torch."), str(tensor.device)
        return _TracedTensor(self.array(tensor.shape), tensor.dim(), dtype.encode(), device.encode(), unlike)


def result_size(
    pass_name: str, first: Tensor, second: Tensor, bias: Tensor | None, size: Sequence[Int], stride: Sequence[Int],
    padding: Sequence[Int], dilation: Sequence[Int], groups: Int, precision: str, activation: str = "none",
    residual: Tensor | None = None, low: float = 0.0, high: float = 0.0,
) -> list[int]:  # fmt: skip
    """Checks a call of an operator, whose sizes may be symbolic, and gives the size of its result (with SymInts then).

    size: (H, W) for input_grad, (R, S) for weight_grad, () for forward. Raises what the operator raises.
    """
    expressions = _Expressions()
    with torch._C.DisableTorchFunctionSubclass():
        optional = [
            None if tensor is None else ctypes.pointer(expressions.tensor(tensor)) for tensor in (bias, residual)
        ]
        call = _TracedArguments(
            pass_name.encode(), precision.encode(), activation.encode(), expressions.tensor(first),
            expressions.tensor(second), *optional, *map(expressions.list, (size, stride, padding, dilation)),
            expressions.symbol(groups), low, high,
        )  # fmt: skip
        result = (_Symbol * 4)()
        if _result_size(byref(call), byref(expressions.keeper), result) < 0:
            if expressions.error is not None:
                raise expressions.error
            _fail()
        return [expressions.value(symbol) for symbol in result]


# Of which there are kernels.
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def check_dtype(
    name: str, first: Tensor, second: Tensor, third: Any, stride: Any, padding: Any, dilation: Any, groups: Any, *_: Any
) -> None:
    """Raises NotImplementedError for a dtype that no kernel has; behind the dispatcher it would be a RuntimeError.

    The arguments are those of an operator. What is quantized is the dispatcher's to refuse.
    """
    if first.dtype not in _DTYPES and not first.is_quantized:
        bias, size = (third, ()) if name == "forward" else (None, third)
        result_size(name, first, second, bias, size, stride, padding, dilation, groups, "ieee")


# ---- the fast road

FAST_NAME = f"_fast_{torch.__version__.partition('+')[0].replace('.', '_')}"


def _fast_module() -> tuple[Any, str]:
    """The module for this torch and this Python, and ""; None and the reason where it is not taken."""
    choice = os.environ.get("CONV_EXT_FAST_ROAD") or "1"
    if choice not in ("0", "1"):
        raise ImportError(f"CONV_EXT_FAST_ROAD must be 0 or 1, got {choice!r}")
    if choice == "0":
        return None, "CONV_EXT_FAST_ROAD=0"
    found = importlib.util.find_spec(f".{FAST_NAME}", __package__)
    if found is None or found.origin is None:
        running = f"torch {torch.__version__}, {sys.implementation.cache_tag}"
        return None, f"this build has none for what is running ({running})"
    try:
        _check_whole(Path(found.origin))
        return importlib.import_module(f".{FAST_NAME}", __package__), ""
    except (ImportError, OSError) as error:
        return None, f"it does not load: {error}"


_fast, WHY_NO_FAST_ROAD = _fast_module()
HAS_FAST_ROAD = _fast is not None

if TYPE_CHECKING or _fast is None:
    from ._by_dispatcher import Road as Road
    from ._by_dispatcher import forward as forward
    from ._by_dispatcher import forward_packed as forward_packed
    from ._by_dispatcher import input_grad as input_grad
    from ._by_dispatcher import road as road
    from ._by_dispatcher import weight_grad as weight_grad
else:
    Road, road = _fast.Road, _fast.road
    forward, forward_packed = _fast.forward, _fast.forward_packed
    input_grad, weight_grad = _fast.input_grad, _fast.weight_grad
