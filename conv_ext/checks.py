"""The rules that every call must keep, over sizes that may be symbolic: the twin of csrc/torch/ops.cpp.

The order of the rules, the exception classes and the words are those of the C++ validator, so that real, meta and
fake tensors answer a bad call alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .settings import PRECISIONS

INT64_MAX = 2**63 - 1
ACTIVATIONS = ("none", "relu")  # the default first
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
OPERANDS = {  # operator -> its two tensors
    "forward": ("input", "weight"),
    "input_grad": ("grad_output", "weight"),
    "weight_grad": ("grad_output", "input"),
}
LAYOUT = {"input": "(N, C, H, W)", "weight": "(K, C/groups, R, S)", "grad_output": "(N, K, P, Q)"}


def _require(condition, message: Callable[[], str]) -> None:
    """RuntimeError unless `condition`; a symbolic condition becomes a guard, or an assertion of the graph."""
    if torch.compiler.is_dynamo_compiling():  # it traces no message that is made of sizes
        if not condition:
            raise RuntimeError(message())
    elif condition is not True:  # torch._check costs 0.4 us when all is well
        torch._check(condition, message)


def known(condition) -> bool:
    """Whether a condition that may be symbolic is true; False where only the run can tell."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # sympy: not at import

    return guard_or_false(condition)


def _fits(*values) -> bool:
    """Whether no value is above 2^63 - 1; symbolic values are bounded already."""
    return all(not isinstance(v, int) or v <= INT64_MAX for v in values)


def _text(values) -> str:
    return "(" + ", ".join(str(v) for v in values) + ")"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensors(tensors: dict[str, torch.Tensor | None], bias: torch.Tensor | None = None) -> None:
    """Rank, layout, device and dtype of an operator's two tensors and of the bias."""
    (name_a, a), (name_b, b) = tensors.items()
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        _require(
            len(shape) == 4, lambda: f"Expected 4D {name} {LAYOUT[name]}, but got {name} of size: {shape}"
        )
    others = [(name_b, b)] + ([("bias", bias)] if bias is not None else [])
    for name, tensor in [(name_a, a), *others]:
        _require(
            tensor.layout == torch.strided, lambda: f"Expected a strided {name}, but got layout {tensor.layout}"
        )
    for name, tensor in others:
        _require(
            a.device == tensor.device,
            lambda: "Expected all tensors to be on the same device, but got "
            f"{name_a} on {a.device} and {name} on {tensor.device}",
        )
    first = "Input" if name_a == "input" else name_a
    for name, tensor in others:
        _require(
            a.dtype == tensor.dtype,
            lambda: f"{first} type ({_dtype(a.dtype)}) and {name} type ({_dtype(tensor.dtype)}) should be the same",
        )
    if a.dtype not in DTYPES:
        raise NotImplementedError(
            f"conv_ext is not implemented for {_dtype(a.dtype)}; supported: {', '.join(map(_dtype, DTYPES))}"
        )


def check_activation(activation: str, error: type = RuntimeError) -> None:
    """`error` unless the name is one of ACTIVATIONS."""
    if activation not in ACTIVATIONS:
        raise error(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation}")


def _check_arguments(stride, padding, dilation, groups) -> None:
    """The least values of the ints that say which convolution it is."""
    _require(groups >= 1, lambda: f"non-positive groups is not supported: groups must be at least 1, got {groups}")
    for s in stride:
        _require(
            s >= 1, lambda: f"non-positive stride is not supported: stride must be positive, got {_text(stride)}"
        )
    for p in padding:
        _require(
            p >= 0,
            lambda: "negative padding is not supported: (top, bottom, left, right) must not be negative, "
            f"got {_text(padding)}",
        )
    for d in dilation:
        _require(
            d >= 1,
            lambda: "non-positive dilation is not supported: dilation should be greater than zero, "
            f"got {_text(dilation)}",
        )


def check(
    operator: str,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    size,
    stride,
    padding,
    dilation,
    groups,
    precision: str,
    activation: str = "none",
) -> list:
    """Check one call of an operator; returns the size of its result.

    a, b: the operator's two tensors in the order of its schema (OPERANDS). size: input_grad's input_size (H, W),
    weight_grad's kernel_size (R, S), None for forward.

    Raises:
        RuntimeError: a rule is broken; the message states it, then the values.
        NotImplementedError: the dtype is none of DTYPES.
    """
    names = OPERANDS[operator]
    check_tensors(dict(zip(names, (a, b))), bias)
    _require(
        precision in PRECISIONS, lambda: f"precision must be one of {', '.join(PRECISIONS)}, got {precision}"
    )
    check_activation(activation)
    _require(
        activation == "none" or not a.dtype.is_complex,
        lambda: f"activation {activation} is for real numbers, got {_dtype(a.dtype)}",
    )

    lists = [("stride", stride, 2), ("padding", padding, 4), ("dilation", dilation, 2)]
    if size is not None:
        lists.insert(0, ("input_size" if operator == "input_grad" else "kernel_size", size, 2))
    for name, values, length in lists:  # the schema takes a list of any length
        _require(
            len(values) == length, lambda: f"expected {name} to be a list of {length} values, got {_text(values)}"
        )
    _check_arguments(stride, padding, dilation, groups)

    sizes = [list(a.shape), list(b.shape)]
    if operator == "forward":
        input_size, weight_size = sizes
        n = input_size[0]
    elif operator == "input_grad":
        for extent in size:
            _require(extent >= 0, lambda: f"input_size must not be negative, got {_text(size)}")
        grad_size, weight_size = sizes
        n = grad_size[0]
    else:
        grad_size, input_size = sizes
        n, c = input_size[:2]
        _require(
            c % groups == 0,
            lambda: f"Given groups={groups}, expected input{input_size} to have a number of channels divisible by "
            f"{groups}, but got {c} channels instead",
        )
        weight_size = [grad_size[1], c // groups, *size]
    k, group_channels, *kernel = weight_size

    _require(
        k >= groups,
        lambda: f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
        f"but got weight of size {weight_size} instead",
    )
    _require(
        k % groups == 0,
        lambda: f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
        f"but got weight of size {weight_size} instead",
    )
    for extent in kernel:
        _require(extent >= 1, lambda: f"kernel size must be positive, got {_text(kernel)}")

    if operator == "forward":
        expected = group_channels * groups
        _require(
            input_size[1] == expected,
            lambda: f"Given groups={groups}, weight of size {weight_size}, expected input{input_size} to have "
            f"{expected} channels, but got {input_size[1]} channels instead",
        )
    elif operator == "input_grad":
        _require(
            grad_size[1] == k,
            lambda: f"Given weight of size {weight_size}, expected grad_output{grad_size} to have {k} channels, "
            f"but got {grad_size[1]} channels instead",
        )
        c = group_channels * groups
        _require(
            _fits(c),
            lambda: f"number of input channels exceeds 2^63 - 1: weight of size {weight_size}, groups={groups}",
        )
        input_size = [n, c, *size]
    else:
        _require(
            grad_size[0] == n,
            lambda: "Expected grad_output and input to have the same batch size, "
            f"but got grad_output of size {grad_size} and input of size {input_size}",
        )
    if bias is not None:
        bias_size = list(bias.shape)
        # One condition at a time: bias_size[0] does not exist for a scalar.
        for ok in (len(bias_size) == 1, len(bias_size) == 1 and bias_size[0] == k):
            _require(
                ok,
                lambda: f"Given weight of size {weight_size}, expected bias to be 1-dimensional with {k} elements, "
                f"but got bias of size {bias_size} instead",
            )

    out_size = [n, k, *_output_extents(input_size, kernel, stride, padding, dilation)]
    for name, shape in (("input", input_size), ("output", out_size), ("weight", weight_size)):
        _require(_elements_fit(shape), lambda: f"number of elements exceeds 2^63 - 1: {name} of size {shape}")

    if operator == "forward":
        return out_size
    given = "input_size" if operator == "input_grad" else "kernel_size"
    for extent, wanted in zip(grad_size[2:], out_size[2:]):
        _require(
            extent == wanted,
            lambda: f"{given} {_text(size)} gives an output of size {out_size}, "
            f"but got grad_output of size {grad_size}",
        )
    return input_size if operator == "input_grad" else weight_size


def _output_extents(input_size, kernel, stride, padding, dilation) -> list:
    """(P, Q) = floor((H + top + bottom - dilation * (R - 1) - 1) / stride) + 1, and the rules that make it positive."""
    n, c, *extents = input_size
    effective = [d * (r - 1) + 1 for d, r in zip(dilation, kernel)]
    _require(
        _fits(*effective),
        lambda: f"effective kernel size exceeds 2^63 - 1: kernel size {_text(kernel)}, dilation {_text(dilation)}",
    )
    padded = [extent + padding[2 * i] + padding[2 * i + 1] for i, extent in enumerate(extents)]
    _require(
        _fits(*padded),
        lambda: f"padded input size exceeds 2^63 - 1: input size {_text(extents)}, padding {_text(padding)}",
    )
    for have, need in zip(padded, effective):
        _require(
            have >= need,
            lambda: f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
            f"Kernel size: ({effective[0]} x {effective[1]}). Kernel size can't be greater than actual input size",
        )
    if any(known(extent == 0) for extent in extents):
        _require(
            known(n == 0) or known(c == 0),
            lambda: f"Only zero batch or zero channel inputs are supported, but got input shape: {input_size}",
        )
    return [(have - need) // s + 1 for have, need, s in zip(padded, effective, stride)]


def _elements_fit(shape) -> bool:
    """Whether the product of the sizes is below 2^63; a zero anywhere makes it zero, whatever the others are."""
    if not all(isinstance(extent, int) for extent in shape):
        return True
    product = 1
    for extent in shape:
        product *= extent
    return product <= INT64_MAX


def check_transposed(input, weight, bias, stride, padding, output_padding, groups, dilation) -> list:
    """The rules that are conv_transpose2d's own; returns its (H, W). All other rules are the operator's.

    input: (N, K, P, Q). weight: (K, C / groups, R, S). bias: (C,) or None. padding: (top, bottom, left, right).

    Raises:
        RuntimeError: a rule is broken.
    """
    for tensor in (weight, bias):
        if tensor is not None and (tensor.dtype != input.dtype or tensor.device != input.device):
            check_tensors({"input": input, "weight": weight}, bias)  # raises
    _check_arguments(stride, padding, dilation, groups)
    for o in output_padding:
        _require(
            o >= 0, lambda: f"negative output_padding is not supported: it must not be negative, got {output_padding}"
        )
    for o, s, d in zip(output_padding, stride, dilation):
        _require(
            o < s or o < d,
            lambda: "output padding must be smaller than either stride or dilation, but got output_padding "
            f"{output_padding}, stride {stride}, dilation {dilation}",
        )
    size, weight_size = list(input.shape), list(weight.shape)
    _require(
        size[1] == weight_size[0],
        lambda: f"Given transposed=1, weight of size {weight_size}, expected input{size} to have {weight_size[0]} "
        f"channels, but got {size[1]} channels instead",
    )
    if bias is not None:
        channels = weight_size[1] * groups
        bias_size = list(bias.shape)
        _require(
            len(bias_size) == 1 and bias_size[0] == channels,
            lambda: f"Given transposed=1, weight of size {weight_size}, expected bias to be 1-dimensional with "
            f"{channels} elements, but got bias of size {bias_size} instead",
        )
    if known(size[2] == 0) or known(size[3] == 0):
        _require(
            known(size[0] == 0),
            lambda: f"Only zero batch or zero channel inputs are supported, but got input shape: {size}",
        )
    kernel, positions = weight_size[2:], size[2:]
    for extent in kernel:
        _require(extent >= 1, lambda: f"kernel size must be positive, got {_text(kernel)}")
    out = [
        (p - 1) * s - before - after + d * (r - 1) + o + 1
        for p, s, before, after, d, r, o in zip(
            positions, stride, padding[::2], padding[1::2], dilation, kernel, output_padding
        )
    ]
    _require(
        _fits(*out),
        lambda: f"output size exceeds 2^63 - 1: input of size {size}, stride {_text(stride)}, "
        f"dilation {_text(dilation)}, output_padding {_text(output_padding)}",
    )
    for extent in out:
        _require(
            extent >= 0,
            lambda: f"Given input size per channel: ({positions[0]} x {positions[1]}). Calculated output size per "
            f"channel: ({out[0]} x {out[1]}). Output size is too small",
        )
    return out
