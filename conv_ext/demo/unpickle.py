"""Reads a pickle of dicts, lists, numbers, text and arrays of bytes, and runs nothing that stands in it.

``pickle.Unpickler`` may be told which names to import, but numpy's arrays are made by functions that trust what they
are given: a damaged file ends the process. Here the instructions (``pickletools`` reads them) build plain values alone.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import Any

__all__ = ["ByteArray", "UnpicklingError", "unpickle"]


class UnpicklingError(Exception):
    """Not a pickle of such values."""


@dataclass(frozen=True)
class _Name:
    """What a pickle would import."""

    module: str
    name: str


@dataclass
class _DType:
    code: Any  # "u1" for uint8


@dataclass
class ByteArray:
    """A numpy array: what its pickle says of it, which need not fit together."""

    shape: Any = ()
    dtype: Any = None
    fortran: Any = False
    content: Any = b""

    @property
    def type_code(self) -> Any:
        return self.dtype.code if isinstance(self.dtype, _DType) else None

    @property
    def is_uint8(self) -> bool:
        return self.type_code in ("u1", b"u1", "B", b"B", "uint8", b"uint8")


_RECONSTRUCT = _Name("numpy.core.multiarray", "_reconstruct")
_NAMES = {
    _RECONSTRUCT: _RECONSTRUCT,
    _Name("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # from numpy 2.0 on
    _Name("numpy", "ndarray"): _Name("numpy", "ndarray"),
    _Name("numpy", "dtype"): _Name("numpy", "dtype"),
    _Name("_codecs", "encode"): _Name("_codecs", "encode"),
}


def _named(module: Any, name: Any) -> _Name:
    known = _NAMES.get(_Name(_of_kind(module, str), _of_kind(name, str)))
    if known is None:
        raise UnpicklingError(f"it asks for {module}.{name}")
    return known


def _called(function: Any, arguments: Any) -> Any:
    """What REDUCE leaves: function(*arguments), for the three functions that arrays take."""
    if function == _RECONSTRUCT:
        return ByteArray()
    if function == _Name("numpy", "dtype"):
        return _DType(arguments[0])
    if function == _Name("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
        text, encoding = arguments
        if _of_kind(encoding, str) not in ("latin1", "latin-1"):
            raise UnpicklingError(f"it asks for the encoding {encoding!r}")
        return text.encode("latin-1")
    raise UnpicklingError(f"it calls a {type(function).__name__}")


class _Stack:
    """The values of a pickle machine, with the places that MARK has left."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.marks: list[int] = []

    def after_mark(self) -> list[Any]:
        place = self.marks.pop()
        values = self.values[place:]
        del self.values[place:]
        return values

    def top(self, count: int) -> list[Any]:
        if count > len(self.values):
            raise UnpicklingError("it takes more values than there are")
        values = self.values[len(self.values) - count :]
        del self.values[len(self.values) - count :]
        return values


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS = {
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"
}  # fmt: skip
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # of Python 2, which are bytes
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(content: bytes) -> Any:
    """The value that `content` holds; strings of Python 2 become bytes, numpy arrays become ByteArray.

    Raises UnpicklingError, or whatever a damaged pickle makes of the operations on plain values.
    """
    stack, memo = _Stack(), {}
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.top(1)[0]
        if name == "MARK":
            stack.marks.append(len(stack.values))
        elif name == "POP":
            stack.top(1)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack.values[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack.values[-1]
        elif name in ("APPEND", "APPENDS"):
            items = stack.after_mark() if name == "APPENDS" else stack.top(1)
            _of_kind(stack.values[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = stack.after_mark() if name == "SETITEMS" else stack.top(2)
            _of_kind(stack.values[-1], dict).update(_entries(items))
        elif name == "BUILD":
            state = stack.top(1)[0]
            _build(stack.values[-1], state)
        else:
            stack.values.append(_pushed(name, argument, stack, memo))
    raise UnpicklingError("it does not end")


def _of_kind(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UnpicklingError(f"it takes a {type(value).__name__} for a {kind.__name__}")
    return value


def _entries(items: list[Any]) -> dict[str, Any]:
    """Keys and values by turns. A key that holds others is refused: tuples within tuples hash for ever, or too deep."""
    for key in items[::2]:
        if type(key) not in (bytes, str, int):
            raise UnpicklingError(f"it takes a {type(key).__name__} for a key")
    return dict(zip(items[::2], items[1::2], strict=True))


def _build(value: Any, state: Any) -> None:
    """What BUILD does: an array gets its shape, type and content; a type's byte order says nothing of bytes."""
    if isinstance(value, ByteArray):
        _, value.shape, value.dtype, value.fortran, value.content = state
    elif not isinstance(value, _DType):
        raise UnpicklingError(f"it gives a state to a {type(value).__name__}")


def _pushed(name: str, argument: Any, stack: _Stack, memo: dict[str, Any]) -> Any:
    """The value that an instruction leaves on the stack."""
    if name in _NUMBERS or name in _TEXTS:
        return argument
    if name in _STRINGS:
        return argument.encode("latin-1")
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in _TUPLES:
        return tuple(stack.top(_TUPLES[name]))
    if name in ("GET", "BINGET", "LONG_BINGET"):
        return memo[argument]
    if name == "TUPLE":
        return tuple(stack.after_mark())
    if name in ("EMPTY_LIST", "LIST"):
        return stack.after_mark() if name == "LIST" else []
    if name in ("EMPTY_DICT", "DICT"):
        return _entries(stack.after_mark() if name == "DICT" else [])
    if name == "GLOBAL":
        return _named(*argument.split(" ", 1))
    if name == "STACK_GLOBAL":
        return _named(*stack.top(2))
    if name == "REDUCE":
        return _called(*stack.top(2))
    raise UnpicklingError(f"it has the instruction {name}")
