"""The error bound: an independent reference, the size A of what is summed, and the gates that fail a test.

The reference is plain slicing and matrix products in float64, one kernel tap after the other; it uses neither this
package nor torch's convolutions. A = the same convolution of |x| and |w|; L = the length of the reduction;
u = 2^-24, or 2^-53 for float64 and complex128. An element may be off by

    float32, float64, complex parts   min(gamma_L, 2 sqrt(L) u) A        gamma_L = L u / (1 - L u)
    bfloat16, float16                 u_out |reference| + the float32 term
    "tf32", "bf16" of float32         (2 * 2^-11 + gamma_L) A, (2 * 2^-8 + gamma_L) A
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from problems import Problem

UNIT_ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-24,  # of the accumulator
    torch.float16: 2.0**-24,
    torch.complex64: 2.0**-24,
    torch.complex128: 2.0**-53,
}
OUTPUT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
PRECISION_ROUNDOFF = {"ieee": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}


def _tap_slices(tap: int, size: int, out: int, stride: int, dilation: int, pad: int) -> tuple[slice, slice]:
    """For one tap of one axis: the outputs that it writes in an input gradient, and where they read the gradient.

    Position h receives from p where h + pad = p * stride + tap * dilation. The gradient is extended by zeros to
    p = -size ... out + size - 1, and the returned slice counts in it: zeros beyond the gradient are read, too.
    """
    first = (tap * dilation - pad) % stride
    count = len(range(first, size, stride))
    p0 = (first + pad - tap * dilation) // stride
    return slice(first, None, stride), slice(p0, p0 + count)


def _forward(x: Tensor, w: Tensor, z: Problem) -> Tensor:
    top, bottom, left, right = z.padding
    x = _zeros_around(x, top, bottom, left, right)
    x = x.reshape(z.n, z.groups, z.c // z.groups, *x.shape[2:])
    w = w.reshape(z.groups, z.k // z.groups, z.c // z.groups, z.r, z.s)
    y = x.new_zeros(z.n, z.groups, z.k // z.groups, z.p, z.q)
    for r in range(z.r):
        for s in range(z.s):
            y += torch.einsum("ngchw,gkc->ngkhw", _read(x, r, s, z), w[..., r, s])
    return y.reshape(z.output_shape)


def _weight_grad(g: Tensor, x: Tensor, z: Problem) -> Tensor:
    top, bottom, left, right = z.padding
    x = _zeros_around(x, top, bottom, left, right)
    x = x.reshape(z.n, z.groups, z.c // z.groups, *x.shape[2:])
    g = g.reshape(z.n, z.groups, z.k // z.groups, z.p, z.q)
    taps = [torch.einsum("ngkhw,ngchw->gkc", g, _read(x, r, s, z)) for r in range(z.r) for s in range(z.s)]
    return torch.stack(taps, dim=-1).reshape(z.weight_shape)


def _input_grad(g: Tensor, w: Tensor, z: Problem) -> Tensor:
    # Far enough for every tap: the positions p that one axis reads lie between these two.
    reach_h = z.h + sum(z.padding) + z.r * z.dilation[0]
    reach_w = z.w + sum(z.padding) + z.s * z.dilation[1]
    g = _zeros_around(g, reach_h, reach_h, reach_w, reach_w)
    g = g.reshape(z.n, z.groups, z.k // z.groups, *g.shape[2:])
    w = w.reshape(z.groups, z.k // z.groups, z.c // z.groups, z.r, z.s)
    x = g.new_zeros(z.n, z.groups, z.c // z.groups, z.h, z.w)
    for r in range(z.r):
        rows, from_rows = _tap_slices(r, z.h, z.p, z.stride[0], z.dilation[0], z.padding[0])
        from_rows = slice(from_rows.start + reach_h, from_rows.stop + reach_h)
        for s in range(z.s):
            columns, from_columns = _tap_slices(s, z.w, z.q, z.stride[1], z.dilation[1], z.padding[2])
            from_columns = slice(from_columns.start + reach_w, from_columns.stop + reach_w)
            product = torch.einsum("ngkhw,gkc->ngchw", g[..., from_rows, from_columns], w[..., r, s])
            x[..., rows, columns] += product
    return x.reshape(z.input_shape)


def _zeros_around(t: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    n, c, h, w = t.shape
    padded = t.new_zeros(n, c, h + top + bottom, w + left + right)
    padded[:, :, top : top + h, left : left + w] = t
    return padded


def _read(x: Tensor, r: int, s: int, z: Problem) -> Tensor:
    """What the outputs read through tap (r, s): (N, groups, C/groups, P, Q)."""
    h, w = r * z.dilation[0], s * z.dilation[1]
    return x[..., h : h + (z.p - 1) * z.stride[0] + 1 : z.stride[0], w : w + (z.q - 1) * z.stride[1] + 1 : z.stride[1]]


PASS: dict[str, Callable[[Tensor, Tensor, Problem], Tensor]] = {
    "forward": _forward,
    "input_grad": _input_grad,
    "weight_grad": _weight_grad,
}


def reduction_length(pass_name: str, z: Problem, bias: bool = False) -> int:
    if pass_name == "forward":
        return z.c // z.groups * z.r * z.s + bias
    if pass_name == "input_grad":
        return z.k // z.groups * z.r * z.s
    return z.n * z.p * z.q


def _pieces(t: Tensor) -> list[Tensor]:
    """Cuts float64 numbers into at most three of 18 bits each, at one scale: sums of their products are exact."""
    largest = float(t.abs().max()) if t.numel() else 0.0
    pieces = []
    grid = 2.0 ** (math.frexp(largest)[1] - 17)
    while len(pieces) < 2 and t.any():
        pieces.append((t / grid).round() * grid)
        t = t - pieces[-1]
        grid *= 2.0**-18
    return [*pieces, t] if t.any() or not pieces else pieces


@dataclass
class Reference:
    """The sum of `terms`, largest first, is the exact result; complex results have a last dimension of two parts."""

    terms: list[Tensor]
    magnitude: Tensor  # A
    length: int  # L

    @property
    def value(self) -> Tensor:
        return torch.stack(self.terms).flip(0).sum(0)


def _real_reference(pass_name: str, a: Tensor, b: Tensor, z: Problem, exact: bool) -> Reference:
    compute = PASS[pass_name]
    a, b = a.double(), b.double()
    magnitude = compute(a.abs(), b.abs(), z)
    if not exact:
        return Reference([compute(a, b, z)], magnitude, 0)
    a_pieces, b_pieces = _pieces(a), _pieces(b)
    pairs = [(a_pieces[0], piece) for piece in b_pieces]
    # From here on 2^-18 or less of the whole: what is inexact below has 2^-36 of it, so that float64 is enough.
    if len(a_pieces) > 1:
        pairs += [(a_pieces[1], b_pieces[0]), (a_pieces[1], b - b_pieces[0])]
    pairs += [(piece, b) for piece in a_pieces[2:]]
    # Leading pieces first, and the same number of terms always.
    terms = [compute(*pair, z) for pair in pairs]
    return Reference(terms + [torch.zeros_like(magnitude)] * (6 - len(terms)), magnitude, 0)


def reference(pass_name: str, a: Tensor, b: Tensor, z: Problem, bias: Tensor | None = None) -> Reference:
    """The pass of problem z applied to its two operands, in the order in which the operators take them.

    Complex operands are not conjugated. Zeros beyond an operand are read: NaN * 0 counts.
    """
    # One float64 sum is reference enough for the shorter types; Inf cannot be cut into pieces.
    exact = UNIT_ROUNDOFF[a.dtype] == 2.0**-53 and bool(a.isfinite().all() and b.isfinite().all())
    if not a.is_complex():
        result = _real_reference(pass_name, a, b, z, exact)
    else:
        (ar, ai), (br, bi) = ((t.resolve_conj().real, t.resolve_conj().imag) for t in (a, b))
        rr, ii, ri, ir = (
            _real_reference(pass_name, p, q, z, exact) for p, q in ((ar, br), (-ai, bi), (ar, bi), (ai, br))
        )
        stacked = [torch.stack(t, -1) for pair in ((rr, ri), (ii, ir)) for t in zip(*(half.terms for half in pair))]
        magnitude = torch.stack((rr.magnitude + ii.magnitude, ri.magnitude + ir.magnitude), -1)
        result = Reference(stacked, magnitude, 0)
    result.length = reduction_length(pass_name, z) * (2 if a.is_complex() else 1) + (bias is not None)
    if bias is not None:
        parts = torch.view_as_real(bias.resolve_conj()) if bias.is_complex() else bias
        column = parts.double().reshape(1, z.k, 1, 1, *parts.shape[1:])
        # The leading piece fits into the leading term without rounding, so that the terms still fall in size.
        leading, *rest = _pieces(column) if exact else [column]
        result.terms[0] = result.terms[0] + leading
        result.terms += [piece.expand_as(result.magnitude) for piece in rest]
        result.magnitude = result.magnitude + column.abs()
    return result


def bound(ref: Reference, dtype: torch.dtype, precision: str = "ieee") -> Tensor:
    """The largest error that an element may have."""
    u, length = UNIT_ROUNDOFF[dtype], ref.length
    gamma = length * u / (1 - length * u)
    if precision != "ieee" and dtype is torch.float32:
        return (2 * PRECISION_ROUNDOFF[precision] + gamma) * ref.magnitude
    term = min(gamma, 2 * math.sqrt(length) * u) * ref.magnitude
    if dtype not in OUTPUT_ROUNDOFF:
        return term
    # Below the normal numbers the spacing is constant: half of it is lost at the most.
    info = torch.finfo(dtype)
    rounding = OUTPUT_ROUNDOFF[dtype] * ref.value.abs()
    return rounding.clamp(min=info.smallest_normal * info.eps / 2) * (ref.value != 0) + term


def assert_within_bound(got: Tensor, ref: Reference, dtype: torch.dtype, precision: str = "ieee") -> None:
    """Fails on a wrong shape or dtype, on an element beyond its bound, and on anything that is not finite."""
    parts = torch.view_as_real(got.resolve_conj()) if got.is_complex() else got
    _assert_same_kind(got, parts, ref, dtype)
    error = parts.double()
    for term in ref.terms:
        error = error - term
    error, limit = error.abs(), bound(ref, dtype, precision)
    bad = ~(error <= limit)  # NaN is bad
    if bad.any():
        worst = (torch.where(bad, error / limit, 0.0)).nan_to_num(math.inf, math.inf).argmax()
        index = tuple(int(i) for i in torch.unravel_index(worst, bad.shape))
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} elements are beyond the bound; at {index}: "
            f"got {parts[index].item()!r}, reference {ref.value[index].item()!r}, "
            f"error {error[index].item():.3g}, bound {limit[index].item():.3g} "
            f"(A = {ref.magnitude[index].item():.3g}, L = {ref.length})"
        )


def assert_exact(got: Tensor, ref: Reference, dtype: torch.dtype) -> None:
    """Fails on any element that is not the exact result rounded once to dtype."""
    parts = torch.view_as_real(got.resolve_conj()) if got.is_complex() else got
    _assert_same_kind(got, parts, ref, dtype)
    wanted = ref.value.to(parts.dtype)
    bad = ~(parts == wanted)
    if bad.any():
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} elements are not exact; first at {index}: "
            f"got {parts[index].item()!r}, reference {wanted[index].item()!r}"
        )


def assert_same_with_non_finite(got: Tensor, ref: Reference, dtype: torch.dtype) -> None:
    """NaN and the infinities where the reference has them and nowhere else; the rest within the bound."""
    parts = torch.view_as_real(got.resolve_conj()) if got.is_complex() else got
    _assert_same_kind(got, parts, ref, dtype)
    value, seen = ref.value, parts.double()
    finite = value.isfinite()
    assert torch.equal(seen.isnan(), value.isnan()), "NaN is not exactly where the reference has it"
    assert torch.equal(seen.isinf(), value.isinf()), "an infinity is not exactly where the reference has it"
    assert torch.equal(seen[value.isinf()], value[value.isinf()]), "an infinity has the wrong sign"
    kept = Reference([value[finite]], ref.magnitude[finite], ref.length)
    assert_within_bound(parts[finite], kept, parts.dtype)


def _assert_same_kind(got: Tensor, parts: Tensor, ref: Reference, dtype: torch.dtype) -> None:
    assert got.dtype is dtype, f"dtype is {got.dtype}, not {dtype}"
    wanted = tuple(ref.magnitude.shape)
    assert tuple(parts.shape) == wanted, f"shape is {tuple(parts.shape)}, not {wanted}"
