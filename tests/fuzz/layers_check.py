"""Runs one case of the fuzzer of layers and compares it with torch's own convolution in float64.

`check` raises `Wrong` where something is wrong. The oracle is torch's convolution in float64 (complex128), with the
same transform applied: small integers must come out exactly, rounded once to the dtype; real numbers within the bound
of tests/support/tolerance.py, whose A is the same convolution of the absolute values. NaN and infinities are compared
with the reference of that file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conv_ext
from problems import Problem
from tolerance import OUTPUT_ROUNDOFF, PRECISION_ROUNDOFF, UNIT_ROUNDOFF, assert_same_with_non_finite, reference

from .layers_case import Case
from .layers_memory import tensor

ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError)
Stage = Callable[[str], None]  # told whose code is about to run: "ours" or "torch"


class Wrong(Exception):
    """What the case shows: its first word is the kind of failure."""


class Operands:
    """The tensors of a case, and what else its mode wants, from its seed."""

    def __init__(self, case: Case):
        self.case = case
        self.dtype = getattr(torch, case.dtype)
        self.wide = torch.complex128 if self.dtype.is_complex else torch.float64
        self.generator = torch.Generator().manual_seed(case.seed)
        batch = (case.n,) if case.batched else ()
        c, k = case.c * case.groups, case.k * case.groups
        image, kernel, out = (case.h, case.w), case.kernel, case.output_size()
        if case.one_row:
            image, kernel, out = image[1:], kernel[1:], out[1:]
        self.x = self.made((*batch, c, *image), case.memory_x)
        self.w = self.made((c, case.k, *kernel) if case.transposed else (k, case.c, *kernel), case.memory_w)
        # The reference for special values takes a bias that is finite.
        kind = "integers" if case.numbers == "special" else case.numbers
        self.b = tensor((k,), self.dtype, case.memory_b, kind, self.generator) if case.bias else None
        self.g = self.made((*batch, k, *out), case.memory_g)

    def made(self, shape, memory: str = "") -> Tensor:
        return tensor(tuple(shape), self.dtype, memory, self.case.numbers, self.generator)

    def like(self, t: Tensor | None, memory: str = "") -> Tensor | None:
        """Other numbers of the same shape."""
        return None if t is None else self.made(t.shape, memory)


def residual_of(case: Case, batched: bool, dtype: torch.dtype) -> Tensor:
    """Small integers of the result's size, in one of several layouts."""
    size = [case.k * case.groups, *case.output_size()[case.one_row :]]
    size = [case.n, *size] if batched else size
    numbers = (torch.arange(math.prod(size)) % 13 - 6).to(dtype)
    return numbers.reshape(size[::-1]).permute(*range(len(size))[::-1]) if case.variant % 2 else numbers.reshape(size)


def widened(t: Tensor | None) -> Tensor | None:
    """Its values in float64 or complex128, in memory of their own."""
    if t is None:
        return None
    t = t.detach().resolve_conj().resolve_neg()
    return t.to(torch.complex128 if t.is_complex() else torch.float64, memory_format=torch.contiguous_format, copy=True)


# ---- the oracle


def oracle(case: Case) -> Callable[..., Tensor]:
    """The function of a case on float64 tensors, by torch alone."""

    # torch cuts some of these to 32 bits. A step beyond everything there is does the same as one of a million.
    stride, dilation = (tuple(min(v, 1_000_000) for v in values) for values in (case.stride, case.dilation))

    def function(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        one_row = case.one_row
        if case.transposed:
            geometry = (v[one_row:] for v in (stride, case.padding, case.output_padding))
            return getattr(F, case.function)(x, w, b, *geometry, case.groups, dilation[one_row:])
        if case.c == 0:  # torch's result has no channels then; the sum over none is zero
            y = x.new_zeros(*x.shape[: case.batched], case.k * case.groups, *case.output_size()[one_row:])
            y = y + x.sum() + w.sum()
            y = y if b is None else y + b.reshape(-1, *(1,) * (2 - one_row))
            return finished(y)
        rows, columns = case.zeros()
        amounts = columns if one_row else (*columns, *rows)
        convolve = F.conv1d if one_row else F.conv2d
        if case.padding_mode != "zeros":
            # torch pads no dimension that is circular, nor any without a batch, in all ranks: give it one.
            batched = x if case.batched else x[None]
            x = F.pad(batched, amounts, mode=case.padding_mode)
            x = x if case.batched else x[0]
        elif any(amounts):
            x = F.pad(x, amounts)
        return finished(convolve(x, w, b, stride[one_row:], 0, dilation[one_row:], case.groups))

    def finished(y: Tensor) -> Tensor:
        y = y + residual_of(case, bool(case.batched), y.dtype) if case.residual else y
        return {"none": lambda y: y, "relu": torch.relu, "relu6": F.relu6}[case.activation](y)

    return function


# ---- ours


def in_form(values: tuple[int, ...], form: str):
    """A pair (or one number) in another form that torch takes for the same."""
    if len(set(values)) == 1:
        if form == "int":
            return values[0]
        if form == "one":
            return [values[0]]
        if form == "numpy":
            return numpy.int64(values[0])
        if form == "tensor":
            return torch.tensor(values[0])
    if form == "numpy":
        return tuple(numpy.int64(v) for v in values)
    if form == "tensor":
        return [torch.tensor(v) for v in values]
    if form == "size" and max(values) < 2**62:
        return torch.Size(values)
    return list(values) if form == "list" else tuple(values)


def arguments(case: Case) -> dict:
    """What describes the convolution, by its name in the functions, in the order of the positional arguments."""
    first = case.one_row
    # Layers keep what they are given: torch's own fail with a list of one, and with tensors.
    form = (
        case.form
        if case.way not in ("layer", "convert", "mapped", "fuse", "packed") or case.form in ("int", "list")
        else "tuple"
    )
    padding = case.padding if isinstance(case.padding, str) else in_form(case.padding[first:], form)
    stride, dilation = in_form(case.stride[first:], form), in_form(case.dilation[first:], form)
    if case.transposed:
        output_padding = in_form(case.output_padding[first:], form)
        return dict(
            stride=stride, padding=padding, output_padding=output_padding, groups=case.groups, dilation=dilation
        )
    return dict(stride=stride, padding=padding, dilation=dilation, groups=case.groups)


def called(case: Case, function: Callable, x, w, b, given: dict):
    more = {"activation": case.activation} if case.activation != "none" else {}
    if case.residual:
        more["residual"] = residual_of(case, x.dim() == w.dim(), x.dtype)
    if case.keywords:
        return (
            function(input=x, weight=w, bias=b, **given, **more)
            if case.variant % 3 == 0
            else function(x, w, b, **given, **more)
        )
    return function(x, w, b, *given.values(), **more)


def layer_of(case: Case, family, given: dict) -> nn.Module:
    """The layer of a case, ours (conv_ext) or torch's (torch.nn); its weights are not the case's yet."""
    name = f"{'ConvTranspose' if case.transposed else 'Conv'}{case.function[-2:]}"
    kernel = case.kernel[case.one_row :]
    more = {} if case.padding_mode == "zeros" else {"padding_mode": case.padding_mode}
    if case.activation != "none":
        more["activation"] = case.activation
    channels = case.c * case.groups, case.k * case.groups
    return getattr(family, name)(
        *channels, kernel, bias=bool(case.bias), dtype=getattr(torch, case.dtype), **given, **more
    )


def table_of(case: Case) -> list[list[int]]:
    """The connections of a mapped layer: each output sees some of the inputs, a few of them the same."""
    return [
        sorted(
            {(k * 5 + i * (case.variant + 1) + case.seed) % case.c for i in range(1 + (k // 2 + case.variant) % case.c)}
        )
        for k in range(case.k)
    ]


def built_layer(case: Case) -> nn.Module:
    if case.way == "mapped":
        return conv_ext.MappedConv2d(
            conv_ext.ConnectionTable(table_of(case), case.c), case.kernel, case.stride, case.padding, case.dilation,
            bool(case.bias), dtype=getattr(torch, case.dtype), activation=case.activation,
            dense=(None, False, True)[case.seed % 3],
        )  # fmt: skip
    if case.way == "layer":
        return layer_of(case, conv_ext, arguments(case))
    layer = conv_ext.convert(layer_of(case, nn, arguments(case)))
    if case.variant % 4 == 1:
        layer = conv_ext.convert(conv_ext.revert(layer))
    if type(layer).__module__.partition(".")[0] != "conv_ext":
        raise Wrong(f"unconverted: {type(layer)}")
    return layer


def ours(case: Case) -> Callable[..., Tensor]:
    """The function of a case by this package."""
    if case.way == "function":
        given = arguments(case)
        return lambda x, w, b: called(case, getattr(conv_ext, case.function), x, w, b, given)
    if case.way == "override":
        given = arguments(case)

        def overridden(x, w, b):
            with conv_ext.override():
                return called(case, getattr(F, case.function), x, w, b, given)

        return overridden
    if case.way == "packed":
        return lambda x, w, b: packed(case, x, w, b)
    layer = built_layer(case)
    dense = len(layer.weight.shape) == 3 and case.way == "mapped"

    def layered(x, w, b):
        if dense:
            w = w[layer.table.matrix()]
        weights = {"weight": w} if b is None else {"weight": w, "bias": b}
        more = (residual_of(case, x.dim() == len(layer.weight.shape), x.dtype),) if case.residual else ()
        return torch.func.functional_call(layer, weights, (x, *more))

    return layered


def packed(case: Case, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """A call of a layer that was packed for such a call, for another size, or by the call before."""
    layer: nn.Module = layer_of(case, conv_ext, arguments(case))
    later = case.variant % 4 == 2  # it is packed with other numbers first
    layer.weight = nn.Parameter(torch.ones_like(w) if later else w.detach())
    if b is not None:
        layer.bias = nn.Parameter(b.detach())
    example = x.detach()
    if case.variant % 8 == 1:  # two rows and columns more, and another layout
        example = F.pad(example, (1, 1, 1, 1)).transpose(-1, -2).contiguous().transpose(-1, -2)
    elif case.variant % 8 == 5:  # many more, and channels that are neighbours
        example = F.pad(example, (9, 20, 13, 8))
        example = (example if case.batched else example[None]).contiguous(memory_format=torch.channels_last)
        example = example if case.batched else example[0]
    layer = conv_ext.PackedConv2d.of(layer, example)
    if later:
        layer.weight = w.detach()
    elif case.variant % 4 == 3:
        layer = copy.deepcopy(layer) if case.variant % 3 else pickle.loads(pickle.dumps(layer))
    first, again = layer(x), layer(x)
    if not torch.equal(first.resolve_neg(), again.resolve_neg()) and not first.isnan().any():
        raise Wrong("bits: the second call gives others than the first")
    if not torch.equal(layer.weight, w.detach()) and not w.isnan().any():
        raise Wrong("weight: the layer has another than it was given")
    return again


# ---- modes: the same transform of ours and of the oracle


def transformed(case: Case, function: Callable, o: Operands, wide: bool) -> list[tuple[str, Tensor]]:
    """Names and values of what a mode computes. Whatever it draws comes from a generator of its own, the same twice."""
    o.generator.manual_seed(case.seed + 1)
    as_wanted = widened if wide else lambda t: t
    x, w, b, g = (as_wanted(t) for t in (o.x, o.w, o.b, o.g))
    if case.mode == "inference":
        with torch.inference_mode() if case.variant % 2 else torch.no_grad():
            return [("y", function(x, w, b))]
    if case.mode == "jvp":
        tangents = [as_wanted(o.like(t, m)) for t, m in ((o.x, case.memory_g), (o.w, ""), (o.b, "")) if t is not None]
        primals = [t for t in (x, w, b) if t is not None]
        y, dy = torch.func.jvp(lambda x, w, b=None: function(x, w, b), tuple(primals), tuple(tangents))
        return [("y", y), ("tangent", dy)]
    if case.mode == "hvp":
        tangents = [as_wanted(o.like(t)) for t in (o.x, o.w)]

        def pulled(x, w):
            _, pull = torch.func.vjp(lambda x, w: function(x, w, b), x, w)
            return pull(g)

        (gx, gw), (hx, hw) = torch.func.jvp(pulled, (x, w), tuple(tangents))
        return [("grad_x", gx), ("grad_w", gw), ("tangent_of_grad_x", hx), ("tangent_of_grad_w", hw)]
    if case.mode == "vmap":
        return _vmapped(case, function, o, as_wanted, wide)
    leaves = {name: t.detach() for name, t in (("x", x), ("w", w), ("b", b), ("g", g)) if t is not None}
    wanted = [name for name in case.needs if name in leaves] or ["x"]
    for name in wanted:
        leaves[name].requires_grad_()
    y = function(leaves["x"], leaves["w"], leaves.get("b"))
    inputs = [leaves[name] for name in wanted]
    if case.mode != "double":
        grads = torch.autograd.grad(y, inputs, _as(g, y), allow_unused=False)
        return [("y", y), *((f"grad_{name}", t) for name, t in zip(wanted, grads))]
    leaves["g"].requires_grad_()
    grads = torch.autograd.grad(y, inputs, leaves["g"], create_graph=True)
    upstream = [as_wanted(o.like(getattr(o, name))) for name in wanted]
    recorded = [(t, v) for t, v in zip(grads, upstream) if t.requires_grad]
    second = torch.autograd.grad(
        [t for t, _ in recorded],
        [*inputs, leaves["g"]],
        [v for _, v in recorded],
        allow_unused=True,
        materialize_grads=True,
    )
    names = [f"grad_{name}" for name in wanted] + [f"second_{name}" for name in [*wanted, "g"]]
    return list(zip(names, (*grads, *second)))


def _as(g: Tensor, y: Tensor) -> Tensor:
    return g if g.dtype == y.dtype else g.to(y.dtype)


def _vmapped(case: Case, function, o: Operands, as_wanted, wide: bool) -> list[tuple[str, Tensor]]:
    which = ("x", "w", "xw", "xb", "xwb", "wb")[case.variant % 6]
    several, dims = {}, {}
    for name in "xwb":
        t = getattr(o, name)
        if t is not None and (name in which or (name == "x" and which == "b")):
            dims[name] = (case.variant // 6 + len(dims)) % (t.dim() + 1)
            several[name] = as_wanted(torch.stack([t, o.like(t)], dims[name]))
        else:
            several[name], dims[name] = as_wanted(t), None
    call = lambda x, w, b: function(x, w, b)  # noqa: E731
    if not wide:
        b = several["b"]
        if b is None:
            y = torch.vmap(lambda x, w: call(x, w, None), (dims["x"], dims["w"]))(several["x"], several["w"])
        else:
            y = torch.vmap(call, (dims["x"], dims["w"], dims["b"]))(several["x"], several["w"], b)
        return [("y", y)]
    each = [
        call(*(several[n] if dims[n] is None or several[n] is None else several[n].select(dims[n], i) for n in "xwb"))
        for i in range(2)
    ]
    return [("y", torch.stack(each))]


def _computed(case: Case, o: Operands) -> list[tuple[str, Tensor]]:
    """What ours computes, in the mode of the case."""
    if case.mode == "copy":
        return _copied(case, o)
    function = ours(case)
    if case.mode == "autocast":
        inner, low = function, torch.float16 if case.variant % 3 == 0 else torch.bfloat16

        def function(x, w, b):
            with torch.autocast("cpu", dtype=low):
                return inner(x, w, b)
    elif case.mode == "compile":
        torch._dynamo.reset()
        backend = "inductor" if case.variant == 0 else "aot_eager"
        function = torch.compile(function, backend=backend, dynamic=(None, True, False)[case.variant % 3])
    return transformed(case, function, o, wide=False)


def _copied(case: Case, o: Operands) -> list[tuple[str, Tensor]]:
    """A layer that holds the weights, copied or pickled."""
    layer = built_layer(case)
    weight = o.w[layer.table.matrix()] if case.way == "mapped" else o.w
    layer.weight = nn.Parameter(weight.detach())
    if o.b is not None:
        layer.bias = nn.Parameter(o.b.detach())
    if case.variant % 3 == 0:
        layer = copy.deepcopy(layer)
    elif case.variant % 3 == 1:
        layer = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        layer = torch.load(file, weights_only=False)
    x = o.x.detach().requires_grad_()
    y = layer(x)
    inputs = [x, layer.weight] + ([layer.bias] if o.b is not None else [])
    grads = list(torch.autograd.grad(y, inputs, o.g))
    if case.way == "mapped":
        dense = torch.zeros_like(o.w, memory_format=torch.contiguous_format)
        dense[layer.table.matrix()] = grads[1]
        grads[1] = dense
    return [("y", y), *zip(("grad_x", "grad_w", "grad_b"), grads)]


def check(case: Case, stage: Stage = lambda name: None) -> None:
    """Raises Wrong where this package does not do what it should."""
    o = Operands(case)
    stage("ours")
    try:
        with conv_ext.precision(case.precision) if case.precision != "ieee" else contextlib.nullcontext():
            got = _computed(case, o)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"raises: {type(error).__name__}: {str(error)[:300]}") from error
    stage("torch")
    if case.numbers == "special":
        _compare_special(case, o, got)
        return
    reach = case
    if case.mode in ("autocast", "compile", "copy"):  # they compute what a backward pass does
        reach = replace(case, mode="backward", needs="xwb" if case.mode == "copy" else case.needs)
    want = transformed(reach, _connected(case, o.wide), o, wide=True)
    limits = None if case.exact else _limits(reach, o)
    for (name, ours_value), (other, value) in zip(got, want, strict=True):
        assert name == other, (name, other)
        _compare(case, o, name, ours_value, value, limits)
    _compare_format(case, got)


def _connected(case: Case, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The oracle; of a mapped layer without the weights of connections that it has not."""
    function = oracle(case)
    if case.way != "mapped":
        return function
    mask = torch.zeros(case.k, case.c, 1, 1, dtype=dtype)
    for k, row in enumerate(table_of(case)):
        mask[k, row] = 1
    return lambda x, w, b: function(x, w * mask, b)


def _limits(case: Case, o: Operands) -> dict[str, Tensor]:
    """A of every result: the same of the absolute values."""
    sizes = copy.copy(o)
    for name in "xwbg":
        t = widened(getattr(o, name))
        if t is not None:
            setattr(sizes, name, t.real.abs() + t.imag.abs() if t.is_complex() else t.abs())
    return dict(transformed(case, _connected(case, torch.float64), sizes, wide=True))


def _length(case: Case, name: str) -> int:
    """L: how many products, and a bias, an element sums."""
    p, q = case.output_size()
    positions = case.n * (case.h * case.w if case.transposed else p * q)
    taps = case.r * case.s
    if name == "grad_b":
        length = case.n * p * q
    elif name == "grad_w":
        length = positions
    elif name == "grad_x":
        length = case.k * taps
    else:
        length = case.c * taps + case.bias
    if case.way == "mapped":
        length += case.c + case.k  # its parts are added
    return max(length * (2 if case.dtype.startswith("complex") else 1), 1)


def _rounded(case: Case, o: Operands, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The exact result as the dtype holds it. A transposed convolution adds its bias to a result that is rounded."""
    if case.transposed and name == "y" and o.b is not None and dtype in OUTPUT_ROUNDOFF and case.mode != "vmap":
        bias = widened(o.b).reshape(-1, *[1] * (2 - case.one_row))
        return (value - bias).to(dtype) + bias.to(dtype)
    return value.to(dtype)


def _compare(case: Case, o: Operands, name: str, got: Tensor, want: Tensor, limits) -> None:
    dtype = o.dtype
    low = None
    if case.mode == "autocast":
        low = torch.float16 if case.variant % 3 == 0 else torch.bfloat16
        dtype = low if name == "y" else dtype
    if got.shape != want.shape:
        raise Wrong(f"shape: {name} is {tuple(got.shape)}, torch's {tuple(want.shape)}")
    if got.dtype != dtype:
        raise Wrong(f"dtype: {name} is {got.dtype}, not {dtype}")
    seen = widened(got)
    if limits is None:
        if case.transposed and case.mode == "vmap" and dtype in OUTPUT_ROUNDOFF:
            bad = (seen - want).abs() > 2 * OUTPUT_ROUNDOFF[dtype] * (want.abs() + 4)
        else:
            rounded = _rounded(case, o, name, want.detach(), low or dtype)
            if torch.equal(seen, rounded.to(want.dtype)):
                return
            bad = seen != rounded.to(want.dtype)
        limit = torch.zeros(())
    else:
        parts, exact = (torch.view_as_real(t) if t.is_complex() else t for t in (seen, want.detach()))
        limit = bound_of(case, name, dtype, limits[name].detach(), want.detach())
        limit = limit[..., None].expand(parts.shape) if want.is_complex() else limit
        bad = ~((parts - exact).abs() <= limit)
        seen, want = parts, exact
    if bad.any():
        index = tuple(int(i) for i in bad.nonzero()[0])
        at = limit[index].item() if limit.dim() else 0
        raise Wrong(
            f"values: {name}, {int(bad.sum())} of {bad.numel()}; at {index} {seen[index].item()}, "
            f"torch's {want[index].item()}, bound {at:.3g}"
        )


def bound_of(case: Case, name: str, dtype: torch.dtype, magnitude: Tensor, want: Tensor) -> Tensor:
    """The bound of tests/support/tolerance.py; the oracle's own error is added where it has the same precision."""
    u, length = UNIT_ROUNDOFF[dtype], _length(case, name)
    gamma = length * u / (1 - length * u)
    if case.precision != "ieee":
        # The tile that is transformed together is unknown here: all of a result counts as one, which lets more pass.
        largest = magnitude.amax() if magnitude.numel() else magnitude.sum()
        return ((2 * PRECISION_ROUNDOFF[case.precision] + gamma) * largest).expand(magnitude.shape)
    term = min(gamma, 2 * math.sqrt(length) * u) * magnitude
    if u == 2.0**-53:
        term = 2 * term
    if dtype in OUTPUT_ROUNDOFF:
        info = torch.finfo(dtype)
        rounding = OUTPUT_ROUNDOFF[dtype] * (want.abs() + term)
        term = term + rounding.clamp(min=info.smallest_normal * info.eps / 2)
        if case.transposed and name == "y" and case.bias:
            term = term + OUTPUT_ROUNDOFF[dtype] * magnitude
    return term


def _compare_special(case: Case, o: Operands, got: list[tuple[str, Tensor]]) -> None:
    """NaN and infinities stand where the definition puts them, in all three passes."""
    (top, bottom), (left, right) = case.zeros()
    z = Problem(
        "fuzz", case.n, case.c * case.groups, case.h, case.w, case.k * case.groups, case.r, case.s,
        case.stride, (top, bottom, left, right), case.dilation, case.groups,
    )  # fmt: skip
    plain = (t if t is None else t.detach().resolve_conj().resolve_neg().contiguous() for t in (o.x, o.w, o.b, o.g))
    x, w, b, g = plain
    if not case.batched:
        x, g = x[None], g[None]
    for name, value in got:
        if name == "grad_b":
            continue  # a sum by torch
        value = value.detach() if case.batched or name == "grad_w" else value.detach()[None]
        if name == "y":
            want = reference("forward", x, w, z, b)
        elif name == "grad_x":
            want = reference("input_grad", g, w.conj().resolve_conj(), z)
        else:
            want = reference("weight_grad", g, x.conj().resolve_conj(), z)
        try:
            assert_same_with_non_finite(value, want, o.dtype)
        except AssertionError as error:
            raise Wrong(f"special: {name}: {str(error)[:200]}") from None


def _compare_format(case: Case, got: list[tuple[str, Tensor]]) -> None:
    """A result is dense: contiguous or channels_last."""
    if (case.way, case.function, case.batched) != ("function", "conv2d", 1) or case.mode not in (
        "inference",
        "backward",
    ):
        return
    y = dict(got)["y"]
    if not (y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)):
        raise Wrong(f"format: the result has strides {y.stride()} for sizes {tuple(y.shape)}")
