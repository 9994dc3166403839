"""The bad calls of the operators and of the public functions: good calls with some arguments changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

KINDS = ("real", "meta", "fake")
REAL = ("real",)
MIXED = ("real", "fake")  # where one of two devices is meta
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class T:
    """A tensor to be made: one zero, expanded, so that no size is too large."""

    shape: tuple
    dtype: torch.dtype = torch.float32
    device: str | None = None
    layout: Callable[[torch.Tensor], torch.Tensor] | None = None

    def make(self, kind):
        device = self.device or (kind if kind in ("meta", "cuda") else "cpu")
        if self.layout is not None:
            return self.layout(torch.ones(self.shape, dtype=self.dtype, device=device))
        return torch.zeros((), dtype=self.dtype, device=device).expand(self.shape)

    def __str__(self):
        parts = str(self.dtype)[6:], self.device, self.layout and self.layout.__name__
        return "-".join([str(list(self.shape)), *filter(None, parts)])


X, W, G = T((2, 4, 6, 7)), T((6, 4, 3, 2)), T((2, 6, 5, 9))
GEOMETRY = {"stride": (1, 1), "padding": (1, 0, 2, 1), "dilation": (1, 1), "groups": 1}
GOOD = {
    "forward": {"input": X, "weight": W, "bias": T((6,)), **GEOMETRY},
    "input_grad": {"grad_output": G, "weight": W, "input_size": (6, 7), **GEOMETRY},
    "weight_grad": {"grad_output": G, "input": X, "kernel_size": (3, 2), **GEOMETRY},
}


@dataclass(frozen=True)
class Bad:
    """A good call with some arguments changed: the class of the error and its key words, "..." between them."""

    where: str
    words: str
    changes: dict[str, Any]
    error: type = RuntimeError
    kinds: tuple[str, ...] = KINDS
    # Key words of torch's own error of the same class for the same call ("": any); None: it has none, or another class.
    torch_says: str | None = None

    def __str__(self):
        return self.where + "".join(f"-{name}={value}" for name, value in self.changes.items())


def bad(where, words, error=RuntimeError, kinds=KINDS, torch_says=None, **changes):
    return [Bad(name, words, changes, error, kinds, torch_says) for name in where.split()]


def value_of(argument, kind):
    return argument.make(kind) if isinstance(argument, T) else argument


def sparse(t):
    return t.to_sparse()


def mkldnn(t):
    return t.to_mkldnn()


def quantized(t):
    with warnings.catch_warnings():  # torch deprecates it
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(t, 1.0, 0, torch.quint8)


def nested(t):
    with warnings.catch_warnings():  # torch calls it a prototype
        warnings.simplefilter("ignore")
        return torch.nested.as_nested_tensor(list(t), layout=torch.strided)


OTHER_DTYPES = "int8 int16 int32 int64 uint8 bool uint16 uint32 uint64 float8_e4m3fn float8_e5m2 complex32".split()


def unsupported(name):
    """Every operator with all of its operands of this dtype."""
    words, dtype = f"not implemented for {name}; supported: float32, float64", getattr(torch, name)
    for operator, good in GOOD.items():
        changed = {n: T(value.shape, dtype) for n, value in good.items() if isinstance(value, T)}
        yield from bad(operator, words, NotImplementedError, **changed)


META_X, META_W, META_B = T(X.shape, device="meta"), T(W.shape, device="meta"), T((6,), device="meta")
EVERYWHERE = "forward input_grad weight_grad"
OPERATORS = [
    # rank
    *bad("forward", "Expected 4D input ... of size: [4, 6, 7]", input=T((4, 6, 7))),
    *bad("forward", "Expected 4D input", input=T((2, 4, 6, 7, 1))),
    *bad("forward", "Expected 4D input", input=T(())),
    *bad("forward input_grad", "Expected 4D weight ... of size: [6, 4, 3]", weight=T((6, 4, 3))),
    *bad("forward input_grad", "Expected 4D weight ... of size: [6, 4, 3, 2, 1]", weight=T((6, 4, 3, 2, 1))),
    *bad("forward input_grad", "Expected 4D weight ... of size: []", weight=T(())),
    *bad("input_grad weight_grad", "Expected 4D grad_output", grad_output=T((6, 5, 9))),
    *bad("weight_grad", "Expected 4D input", input=T((4, 6, 7))),
    # channels and groups
    *bad(
        "forward", "Given groups=1 ... expected input[2, 5, 6, 7] to have 4 channels, but got 5", input=T((2, 5, 6, 7))
    ),
    *bad(
        "forward", "Given groups=1 ... expected input[2, 0, 6, 7] to have 4 channels, but got 0", input=T((2, 0, 6, 7))
    ),
    *bad("forward", "Given groups=3 ... to have 12 channels, but got 4", groups=3),
    *bad("forward input_grad weight_grad", "Given groups=4 ... divisible by 4", groups=4),
    *bad("weight_grad", "Given groups=3 ... channels divisible by 3, but got 4", groups=3),
    *bad("forward", "at least 12 at dimension 0", input=T((2, 48, 6, 7)), groups=12),
    *bad("input_grad", "at least 12 at dimension 0", groups=12),
    *bad("forward", "at least 1 at dimension 0", weight=T((0, 4, 3, 2)), bias=None),
    *bad("input_grad", "at least 1 at dimension 0", weight=T((0, 4, 3, 2)), grad_output=T((2, 0, 5, 9))),
    *bad("weight_grad", "at least 1 at dimension 0", grad_output=T((2, 0, 5, 9))),
    *bad("input_grad", "expected grad_output[2, 5, 5, 9] to have 6 channels, but got 5", grad_output=T((2, 5, 5, 9))),
    *bad("weight_grad", "same batch size", grad_output=T((3, 6, 5, 9))),
    # values that must be positive
    *bad(EVERYWHERE, "non-positive groups ... got 0", groups=0),
    *bad(EVERYWHERE, "non-positive groups ... got -1", groups=-1),
    *bad(EVERYWHERE, "non-positive stride ... got (0, 1)", stride=(0, 1)),
    *bad(EVERYWHERE, "non-positive stride ... got (1, -2)", stride=(1, -2)),
    *bad(EVERYWHERE, "negative padding ... got (0, 0, -1, 0)", padding=(0, 0, -1, 0)),
    *bad(EVERYWHERE, "negative padding ... got (0, -3, 0, 0)", padding=(0, -3, 0, 0)),
    *bad(EVERYWHERE, "dilation should be greater than zero ... got (0, 1)", dilation=(0, 1)),
    *bad(EVERYWHERE, "dilation should be greater than zero ... got (1, -1)", dilation=(1, -1)),
    *bad("input_grad", "input_size must not be negative ... (-1, 7)", input_size=(-1, 7)),
    *bad("forward input_grad", "kernel size must be positive ... (0, 2)", weight=T((6, 4, 0, 2))),
    *bad("weight_grad", "kernel size must be positive ... (3, 0)", kernel_size=(3, 0)),
    *bad("weight_grad", "kernel size must be positive ... (-3, 2)", kernel_size=(-3, 2)),
    # lists of a wrong length: the schema takes any
    *bad(EVERYWHERE, "stride ... 2 values", stride=(1,)),
    *bad(EVERYWHERE, "stride ... 2 values", stride=(1, 1, 1)),
    *bad(EVERYWHERE, "dilation ... 2 values", dilation=()),
    *bad(EVERYWHERE, "padding ... 4 values", padding=(0, 0)),
    *bad(EVERYWHERE, "padding ... 4 values", padding=(0, 0, 0, 0, 0)),
    *bad("input_grad", "input_size ... 2 values", input_size=(6,)),
    *bad("weight_grad", "kernel_size ... 2 values", kernel_size=(3, 2, 1)),
    # geometry
    *bad("forward", "Calculated padded input size per channel: (7 x 10). Kernel size: (8 x 2)", weight=T((6, 4, 8, 2))),
    *bad("forward", "Calculated padded input size ... Kernel size: (3 x 12)", dilation=(1, 11)),
    *bad("forward", "Calculated padded input size ... Kernel size", input=T((0, 4, 6, 7)), weight=T((6, 4, 8, 2))),
    *bad("input_grad", "Calculated padded input size ... Kernel size", input_size=(1, 7)),
    *bad("weight_grad", "Calculated padded input size ... Kernel size: (8 x 2)", kernel_size=(8, 2)),
    *bad("forward", "Only zero batch or zero channel ... [2, 4, 0, 7]", input=T((2, 4, 0, 7)), padding=(2, 2, 2, 1)),
    *bad("forward", "Only zero batch or zero channel ... [2, 4, 6, 0]", input=T((2, 4, 6, 0))),
    # the output's size, which the backward operators check again
    *bad(
        "input_grad",
        "input_size (6, 7) gives an output of size [2, 6, 5, 9], but got ... [2, 6, 5, 8]",
        grad_output=T((2, 6, 5, 8)),
    ),
    *bad("input_grad", "input_size (6, 8) gives an output of size [2, 6, 5, 10]", input_size=(6, 8)),
    *bad("input_grad", "input_size (6, 7) gives an output of size", stride=(2, 1)),
    *bad(
        "weight_grad",
        "kernel_size (3, 2) gives an output of size [2, 6, 5, 9], but got ... [2, 6, 6, 9]",
        grad_output=T((2, 6, 6, 9)),
    ),
    *bad("weight_grad", "kernel_size (2, 2) gives an output of size [2, 6, 6, 9]", kernel_size=(2, 2)),
    *bad("weight_grad", "gives an output of size", grad_output=T((2, 6, 0, 9))),
    # bias
    *bad("forward", "expected bias to be 1-dimensional with 6 elements ... [5]", bias=T((5,))),
    *bad("forward", "expected bias to be 1-dimensional with 6 elements ... [6, 1]", bias=T((6, 1))),
    *bad("forward", "expected bias to be 1-dimensional with 6 elements ... []", bias=T(())),
    # dtypes
    *bad(
        "forward", "Input type (float32) and weight type (float64) should be the same", weight=T(W.shape, torch.float64)
    ),
    *bad("forward", "Input type (float32) and bias type (bfloat16) should be the same", bias=T((6,), torch.bfloat16)),
    *bad(
        "input_grad",
        "grad_output type (float32) and weight type (complex64) should be the same",
        weight=T(W.shape, torch.complex64),
    ),
    *bad(
        "weight_grad",
        "grad_output type (float32) and input type (float16) should be the same",
        input=T(X.shape, torch.float16),
    ),
    *[entry for name in OTHER_DTYPES for entry in unsupported(name)],
    # devices
    *bad(
        "forward",
        "same device ... input on cpu and weight on meta",
        kinds=MIXED,
        weight=META_W,
    ),
    *bad("forward", "same device ... input on cpu and bias on meta", kinds=MIXED, bias=META_B),
    *bad("input_grad", "same device ... cpu and weight on meta", kinds=MIXED, weight=META_W),
    *bad("weight_grad", "same device ... cpu and input on meta", kinds=MIXED, input=META_X),
    # names
    *bad(EVERYWHERE, "precision must be one of ieee, tf32, bf16, got fast", precision="fast"),
    *bad("forward", "activation must be one of none, relu, clamp, silu, hardswish, got gelu", activation="gelu"),
    *bad("forward", "activation must be one of none, relu, clamp, silu, hardswish, got ReLU", activation="ReLU"),
    *bad(
        "forward",
        "activation relu is for real numbers, got complex64",
        activation="relu",
        **{name: T(t.shape, torch.complex64) for name, t in (("input", X), ("weight", W), ("bias", T((6,))))},
    ),
    # the epilogue
    *bad("forward", "low <= high, got low=2 and high=1", activation="clamp", low=2.0, high=1.0),
    *bad("forward", "low <= high, got low=nan and high=1", activation="clamp", low=float("nan"), high=1.0),
    *bad("forward", "residual of the result's size [2, 6, 5, 9], ... size: [2, 6, 5, 8]", residual=T((2, 6, 5, 8))),
    *bad("forward", "residual of the result's size [2, 6, 5, 9], ... size: [6, 5, 9]", residual=T((6, 5, 9))),
    *bad("forward", "Input type (float32) and residual type (float64)", residual=T(G.shape, torch.float64)),
    *bad("forward", "same device ... cpu and residual on meta", kinds=MIXED, residual=T(G.shape, device="meta")),
    *bad(EVERYWHERE, "algorithm must be one of auto, ... reference, got fastest", kinds=REAL, algorithm="fastest"),
    # sizes that overflow
    *bad("forward", "effective kernel size exceeds 2^63 - 1", dilation=(LARGEST, 1)),
    *bad("forward", "effective kernel size exceeds 2^63 - 1", dilation=(1, 2**62), weight=T((6, 4, 3, 3))),
    *bad("forward", "Calculated padded input size ... Kernel size", dilation=(2**61, 1)),
    *bad("input_grad weight_grad", "effective kernel size exceeds 2^63 - 1", dilation=(2**62, 1)),
    *bad(EVERYWHERE, "padded input size exceeds 2^63 - 1", padding=(LARGEST, 0, 0, 0)),
    *bad(EVERYWHERE, "padded input size exceeds 2^63 - 1", padding=(0, 0, 2**62, 2**62)),
    *bad("forward", "number of elements exceeds 2^63 - 1: output", padding=(2**62, 0, 2**31, 0)),
    *bad(
        "forward",
        "number of elements exceeds 2^63 - 1: output",
        input=T((2**40, 4, 3, 2)),
        weight=T((2**30, 4, 3, 2)),
        bias=None,
        padding=(0, 0, 0, 0),
    ),
    *bad("input_grad", "number of elements exceeds 2^63 - 1: input", input_size=(2**40, 2**40), stride=(2**38, 2**38)),
    *bad(
        "weight_grad",
        "number of elements exceeds 2^63 - 1: weight",
        grad_output=T((1, 2**30, 1, 1)),
        input=T((1, 2**20, 2**10, 2**10)),
        kernel_size=(2**10, 2**10),
        padding=(0, 0, 0, 0),
    ),
    # layouts: the dispatcher knows no kernel for them, and says so in its own words
    *bad("forward", "Sparse", kinds=REAL, weight=T(W.shape, layout=sparse)),
    *bad("forward", "Sparse", kinds=REAL, bias=T((6,), layout=sparse)),
    *[
        entry
        for kind in (sparse, mkldnn, quantized, nested)
        for entry in (
            *bad("forward", "", kinds=REAL, input=T(X.shape, layout=kind)),
            *bad("input_grad", "", kinds=REAL, grad_output=T(G.shape, layout=kind)),
            *bad("weight_grad", "", kinds=REAL, input=T(X.shape, layout=kind)),
        )
    ],
]

# ---- the public functions

GOOD_PUBLIC = {
    "conv2d": {"input": X, "weight": W, "bias": T((6,))},
    "conv1d": {"input": T((2, 4, 7)), "weight": T((6, 4, 3)), "bias": T((6,))},
    "conv_transpose2d": {"input": T((2, 6, 5, 9)), "weight": W, "bias": T((4,))},
    "conv_transpose1d": {"input": T((2, 6, 9)), "weight": T((6, 4, 3)), "bias": T((4,))},
}
TRANSPOSED = "conv_transpose1d conv_transpose2d"
ALL = f"conv2d conv1d {TRANSPOSED}"
FORWARD = "conv2d conv1d"


def same(where, words, error=RuntimeError, **changes):
    """torch's error has the same class and the same words."""
    return bad(where, words, error, torch_says=words, **changes)


PUBLIC = [
    # rank
    *same("conv2d", "Expected 3D (unbatched) or 4D (batched) input to conv2d", input=T((6, 7))),
    *same("conv2d", "Expected 3D (unbatched) or 4D (batched) input to conv2d", input=T((1, 2, 4, 6, 7))),
    *same("conv2d", "Expected 3D (unbatched) or 4D (batched) input to conv2d", input=T(())),
    *same("conv1d", "Expected 2D (unbatched) or 3D (batched) input to conv1d", input=T((2, 4, 6, 7))),
    *same("conv_transpose1d", "Expected 2D (unbatched) or 3D (batched) input to conv_transpose1d", input=T((6,))),
    *same("conv_transpose2d", "Expected 3D (unbatched) or 4D (batched) input to conv_transpose2d", input=T((6, 7))),
    *bad(ALL, "weight ... of size: [6, 4]", weight=T((6, 4))),
    *bad(ALL, "weight ... of size: []", weight=T(())),
    *bad("conv2d conv_transpose2d", "Expected 4D weight ... of size: [6, 4, 3, 2, 1]", weight=T((6, 4, 3, 2, 1))),
    # channels and groups
    *same(
        "conv2d",
        "Given groups=1, weight of size [6, 4, 3, 2], expected input[2, 5, 6, 7] to have 4 channels, but got 5",
        input=T((2, 5, 6, 7)),
    ),
    *same("conv1d", "Given groups=1 ... to have 4 channels, but got 5", input=T((2, 5, 7))),
    *same(
        "conv_transpose2d",
        "Given transposed=1, weight of size [6, 4, 3, 2], expected input[2, 5, 5, 9] to have 6 channels",
        input=T((2, 5, 5, 9)),
    ),
    *same(
        "conv_transpose1d",
        "Given transposed=1, weight of size [6, 4, 3], expected input[2, 5, 9] to have 6 channels",
        input=T((2, 5, 9)),
    ),
    *same(FORWARD, "Given groups=3 ... to have 12 channels, but got 4", groups=3),
    *bad(
        "conv2d", "Given groups=2 ... channels, but got 5", groups=2, input=T((2, 5, 6, 7)), torch_says="Given groups=2"
    ),
    *same(FORWARD, "divisible by 4 at dimension 0", groups=4),
    *same(TRANSPOSED, "divisible by 4 at dimension 0", groups=4, bias=None),
    *same("conv2d", "at least 8 at dimension 0", groups=8),
    *same("conv2d", "at least", weight=T((0, 4, 3, 2)), bias=None),
    # values that must be positive
    *same(ALL, "non-positive groups", groups=0),
    *same(ALL, "non-positive groups", groups=-1),
    *same(ALL, "non-positive stride", stride=0),
    *same("conv2d conv_transpose2d", "non-positive stride", stride=(1, -2)),
    *same(ALL, "negative padding", padding=-1),
    *same("conv2d", "negative padding", padding=(0, -3)),
    *bad(FORWARD, "dilation should be greater than zero", torch_says="non-positive dilation", dilation=0),
    *same("conv2d", "dilation should be greater than zero", dilation=(1, -1)),
    *bad(TRANSPOSED, "dilation", dilation=0),
    *same(TRANSPOSED, "negative output_padding", output_padding=-1),
    *same(TRANSPOSED, "output padding must be smaller than either stride or dilation", output_padding=1),
    # geometry
    *same("conv2d", "Calculated padded input size per channel: (6 x 7). Kernel size: (8 x 2)", weight=T((6, 4, 8, 2))),
    *same("conv2d", "Calculated padded input size", input=T((0, 4, 6, 7)), weight=T((6, 4, 8, 2))),
    *same("conv2d", "Calculated padded input size", input=T((4, 6, 7)), dilation=4),
    *same("conv1d", "Calculated padded input size", weight=T((6, 4, 8))),
    *bad("conv2d conv_transpose2d", "kernel size must be positive, got (0, 2)", weight=T((6, 4, 0, 2))),
    *bad("conv1d conv_transpose1d", "kernel size must be positive", weight=T((6, 4, 0))),
    *same("conv2d", "Only zero batch or zero channel inputs are supported", input=T((2, 4, 0, 7)), padding=2),
    *same("conv2d", "Only zero batch or zero channel inputs are supported", input=T((2, 4, 6, 0)), padding=2),
    *bad("conv2d", "effective kernel size exceeds 2^63 - 1", dilation=LARGEST),
    *bad("conv2d", "effective kernel size exceeds 2^63 - 1", dilation=(2**62, 1)),
    *bad("conv2d", "effective kernel size exceeds 2^63 - 1", dilation=(2**62, 1), padding="same"),
    *bad("conv2d", "padded input size exceeds 2^63 - 1", padding=LARGEST),
    *bad("conv2d", "number of elements exceeds 2^63 - 1: output", padding=2**31),
    *bad("conv2d", "number of elements exceeds 2^63 - 1: output", padding=2**31 - 1),
    # bias
    *same(FORWARD, "expected bias to be 1-dimensional with 6 elements", bias=T((5,))),
    *same(FORWARD, "expected bias to be 1-dimensional with 6 elements", bias=T((6, 1))),
    *same(TRANSPOSED, "expected bias to be 1-dimensional with 4 elements", bias=T((6,))),
    # dtypes and devices
    *same("conv2d", "Input type ... weight type ... should be the same", weight=T(W.shape, torch.float64)),
    *same("conv2d", "Input type ... bias type ... should be the same", bias=T((6,), torch.float16)),
    *bad(
        "conv2d",
        "not implemented for int64",
        NotImplementedError,
        input=T(X.shape, torch.int64),
        weight=T(W.shape, torch.int64),
        bias=None,
    ),
    *bad(
        "conv2d",
        "not implemented for bool",
        NotImplementedError,
        torch_says="not implemented for 'Bool'",
        input=T(X.shape, torch.bool),
        weight=T(W.shape, torch.bool),
        bias=None,
    ),
    *bad("conv2d", "same device", kinds=MIXED, weight=META_W),
    *bad("conv2d", "same device", kinds=MIXED, bias=META_B),
    *bad("conv_transpose2d", "same device", kinds=MIXED, weight=META_W),
    *bad("conv2d conv_transpose2d", "strided weight ... layout", kinds=REAL, weight=T(W.shape, layout=sparse)),
    *bad("conv2d", "strided bias ... layout", kinds=REAL, bias=T((6,), layout=sparse)),
    *bad("conv2d", "strided residual ... layout", kinds=REAL, residual=T(G.shape, layout=sparse)),
    *[
        entry
        for kind in (sparse, mkldnn, quantized, nested)
        for entry in bad("conv2d", "", kinds=REAL, input=T(X.shape, layout=kind))
    ],
    # types of arguments
    *[
        entry
        for name in ("stride", "padding", "dilation", "groups")
        for value in (2.0, True, None, "1", (1.0, 1.0), (1, "1"), 1j)
        if not (name == "padding" and value == "1")
        for entry in bad("conv2d", name, TypeError, torch_says="", **{name: value})
    ],
    *bad(TRANSPOSED, "padding", TypeError, torch_says="", padding="same"),
    *bad(TRANSPOSED, "output_padding", TypeError, torch_says="", output_padding=1.0),
    *bad("conv1d", "stride", TypeError, torch_says="", stride=2.0),
    *bad("conv2d", "input", TypeError, torch_says="", input=[[1.0]]),
    *bad("conv2d", "weight", TypeError, torch_says="", weight=None),
    *bad("conv2d", "bias", TypeError, torch_says="", bias=1.0),
    *bad(ALL, "unknown", TypeError, torch_says="unknown", unknown=1),
    *bad("conv2d", "", ValueError, torch_says="", groups=2**63),
    *bad("conv2d", "", ValueError, torch_says="", stride=2**63),
    *bad(FORWARD, "must be str, or a tuple ('clamp', low, high), not NoneType", TypeError, activation=None),
    *bad(FORWARD, "must be str, or a tuple ('clamp', low, high), not list", TypeError, activation=["clamp", 0, 1]),
    *bad(FORWARD, "none, relu, relu6, silu, hardswish, or ('clamp', low, high) ... got tanh", activation="tanh"),
    *bad(FORWARD, "got ('clamp', 1)", activation=("clamp", 1)),
    *bad(FORWARD, "low <= high, got low=1 and high=0", activation=("clamp", 1, 0)),
    *bad(FORWARD, "'residual' must be Tensor, not float", TypeError, residual=1.0),
    # lengths and strings
    *same("conv2d", "expected stride to be a single integer value or a list of 2 values", stride=()),
    *same("conv2d", "expected stride to be a single integer value or a list of 2 values", stride=(1, 1, 1)),
    *same("conv2d", "expected padding to be a single integer value or a list of 2 values", padding=[1, 1, 1, 1]),
    *same("conv2d", "expected dilation to be a single integer value or a list of 2 values", dilation=[1, 1, 1]),
    *same(TRANSPOSED, "expected output_padding to be a single integer value or a list", output_padding=()),
    *same("conv1d", "expected stride to be a single integer value or a list of 1 values", stride=(1, 1)),
    *same("conv2d", "Invalid padding string", padding="foo"),
    *same("conv2d", "Invalid padding string", padding="SAME"),
    *same(FORWARD, "padding='same' is not supported for strided convolutions", padding="same", stride=2),
]
