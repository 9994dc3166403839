"""The checker is checked: the reference against torch and plain loops, and every kind of fault that must be caught."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from passes import DTYPES, PASSES, dtype_name, expected, fill, operand_shapes, operands
from problems import ALL, CORNERS, EMPTY, SMALL, Problem
from tolerance import (
    UNIT_ROUNDOFF,
    Reference,
    assert_exact,
    assert_same_with_non_finite,
    assert_within_bound,
    bound,
    reference,
)

EVERYTHING = SMALL[0]
PLAIN = Problem("plain", 2, 3, 5, 7, 4, 3, 3, padding=(1, 1, 1, 1))
every_pass = pytest.mark.parametrize("pass_name", PASSES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def by_torch(pass_name, a, b, z):
    """torch's convolution and its gradients; the padding, which may differ on the four sides, is added first."""
    top, bottom, left, right = z.padding
    x = a if pass_name == "forward" else b if pass_name == "weight_grad" else torch.zeros(z.input_shape, dtype=a.dtype)
    w = torch.zeros(z.weight_shape, dtype=a.dtype) if pass_name == "weight_grad" else b
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, z.stride, 0, z.dilation, z.groups)
    return y.detach() if pass_name == "forward" else torch.autograd.grad(y, x if pass_name == "input_grad" else w, a)[0]


def products(pass_name, z):
    """The definition: for every product, where it is added and the places of its two factors."""
    per_group_c, per_group_k = z.c // z.groups, z.k // z.groups
    roles = {"forward": "gxw", "input_grad": "xgw", "weight_grad": "wgx"}[pass_name]
    for n, k, p, q, c, r, s in itertools.product(*map(range, (z.n, z.k, z.p, z.q, per_group_c, z.r, z.s))):
        h = p * z.stride[0] + r * z.dilation[0] - z.padding[0]
        w = q * z.stride[1] + s * z.dilation[1] - z.padding[2]
        if 0 <= h < z.h and 0 <= w < z.w:
            at = {"x": (n, k // per_group_k * per_group_c + c, h, w), "w": (k, c, r, s), "g": (n, k, p, q)}
            yield tuple(at[role] for role in roles)


# ---- the reference


@every_pass
@pytest.mark.parametrize("z", [z for z in ALL if z not in EMPTY], ids=str)
def test_reference_is_torchs_convolution_in_float64(pass_name, z):
    a, b = operands(pass_name, z, torch.float64, "integers")
    assert torch.equal(reference(pass_name, a, b, z).value, by_torch(pass_name, a, b, z))


@every_pass
@pytest.mark.parametrize("name", ["everything", "padding_beyond_kernel", "one_column_strided_dilated"])
def test_reference_is_the_definition(pass_name, name):
    z = next(z for z in SMALL + CORNERS if z.name == name)
    a, b = operands(pass_name, z, torch.float64, "integers")
    wanted = torch.zeros_like(expected(pass_name, z, torch.float64, "integers").magnitude)
    for to, first, second in products(pass_name, z):
        wanted[to] += a[first] * b[second]
    assert torch.equal(reference(pass_name, a, b, z).value, wanted)


@every_pass
def test_reference_of_complex_numbers(pass_name):
    a, b = operands(pass_name, EVERYTHING, torch.complex128, "integers")
    value = torch.view_as_complex(reference(pass_name, a, b, EVERYTHING).value)
    # torch's gradients conjugate the other operand, the operators do not
    wanted = by_torch(pass_name, a, b if pass_name == "forward" else b.conj().resolve_conj(), EVERYTHING)
    assert torch.equal(value, wanted)


@every_pass
@pytest.mark.parametrize("with_bias", [False, True])
def test_reference_knows_more_digits_than_float64(pass_name, with_bias):
    z = Problem("short", 2, 3, 3, 4, 2, 2, 2)
    a, b = (fill(shape, torch.float64, "signed", seed) for seed, shape in enumerate(operand_shapes(pass_name, z)))
    bias = fill((z.k,), torch.float64, "signed", 7) if with_bias and pass_name == "forward" else None
    ref = reference(pass_name, a, b, z, bias)
    for element in ((0, 0, 0, 0), (1, 1, 1, 1)):
        exact = sum(
            Fraction(a[i].item()) * Fraction(b[j].item()) for to, i, j in products(pass_name, z) if to == element
        )
        if bias is not None:
            exact += Fraction(bias[element[1]].item())
        error = abs(exact - sum(Fraction(term[element].item()) for term in ref.terms))
        assert error <= Fraction(2) ** -53 * Fraction(2) ** -10 * Fraction(ref.magnitude[element].item())


@every_pass
def test_magnitude_and_length(pass_name):
    a, b = operands(pass_name, PLAIN, torch.float64, "signed")
    ref = reference(pass_name, a, b, PLAIN)
    wanted = torch.zeros_like(ref.magnitude)
    count = torch.zeros_like(ref.magnitude)
    for to, first, second in products(pass_name, PLAIN):
        wanted[to] += (a[first] * b[second]).abs()
        count[to] += 1
    torch.testing.assert_close(ref.magnitude, wanted, rtol=1e-14, atol=0)
    assert ref.length == {"forward": 3 * 3 * 3, "input_grad": 4 * 3 * 3, "weight_grad": 2 * 5 * 7}[pass_name]
    assert count.max() == ref.length  # no padding is read in the middle


# ---- what must pass, and what must not


def right_answer(pass_name, z, dtype, kind="signed"):
    """As good as can be: the reference, rounded once."""
    value = expected(pass_name, z, dtype, kind).value
    return torch.view_as_complex(value).to(dtype) if dtype.is_complex else value.to(dtype)


def assert_fails(got, ref, dtype, words="elements are beyond"):
    with pytest.raises(AssertionError, match=words):
        assert_within_bound(got, ref, dtype)


@every_pass
@every_dtype
def test_the_right_answer_passes(pass_name, dtype):
    for z in SMALL:
        assert_within_bound(right_answer(pass_name, z, dtype), expected(pass_name, z, dtype, "signed"), dtype)
        assert_exact(right_answer(pass_name, z, dtype, "integers"), expected(pass_name, z, dtype, "integers"), dtype)


@every_pass
@every_dtype
@pytest.mark.parametrize("fault", ["shifted_row", "shifted_column", "negative", "zero", "one_missing", "nan", "inf"])
def test_a_fault_fails(pass_name, dtype, fault):
    for kind, check in (("signed", assert_within_bound), ("integers", assert_exact)):
        got, ref = right_answer(pass_name, PLAIN, dtype, kind), expected(pass_name, PLAIN, dtype, kind)
        check(got, ref, dtype)
        last = (-1, -1, -1, -1)
        if fault == "shifted_row":
            got = got.roll(1, 2)
        elif fault == "shifted_column":
            got = got.roll(1, 3)
        elif fault == "negative":
            got = -got
        elif fault == "zero":
            got[:] = 0
        elif fault == "one_missing":
            got[last] = 0 if got[last] != 0 else 1
        else:
            got[last] = float(fault)
        with pytest.raises(AssertionError, match="elements are"):
            check(got, ref, dtype)


@every_pass
@every_dtype
def test_a_missing_product_fails(pass_name, dtype):
    """One product of the sum left out, in one element."""
    a, b = operands(pass_name, PLAIN, dtype, "signed")
    got, ref = right_answer(pass_name, PLAIN, dtype), expected(pass_name, PLAIN, dtype, "signed")
    to, first, second = max(products(pass_name, PLAIN), key=lambda at: (a[at[1]] * b[at[2]]).abs().item())
    got[to] -= a[first] * b[second]
    assert_fails(got, ref, dtype, "2 of" if dtype.is_complex else "1 of")


@every_pass
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=dtype_name)
def test_the_bound_is_a_few_units_in_the_last_place(pass_name, dtype):
    ref = expected(pass_name, PLAIN, dtype, "positive")
    got = right_answer(pass_name, PLAIN, dtype, "positive")
    parts = torch.view_as_real(got) if dtype.is_complex else got
    gate = 2 * math.sqrt(ref.length) * UNIT_ROUNDOFF[dtype]
    inside, beyond = parts.clone(), parts.clone()
    element = (1,) * parts.dim()
    inside[element] += 0.9 * gate * ref.magnitude[element]
    beyond[element] += 1.1 * gate * ref.magnitude[element] + parts[element].abs() * torch.finfo(dtype).eps
    combine = torch.view_as_complex if dtype.is_complex else torch.clone
    assert_within_bound(combine(inside), ref, dtype)
    assert_fails(combine(beyond), ref, dtype, "1 of")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_short_types_may_round_once(dtype):
    """The neighbour of the nearest number fails where the sum itself is short and exact."""
    z = next(z for z in CORNERS if z.name == "one_element")
    one, other = torch.full((1, 1, 1, 1), 1.0, dtype=dtype), torch.full((1, 1, 1, 1), 1.5, dtype=dtype)
    ref = reference("forward", one, other, z)
    assert_within_bound(other, ref, dtype)
    assert_fails(other * (1 + 4 * torch.finfo(dtype).eps), ref, dtype)


@every_pass
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_accumulating_in_a_short_type_fails(pass_name, dtype):
    a, b = operands(pass_name, PLAIN, dtype, "positive")
    got = torch.zeros_like(right_answer(pass_name, PLAIN, dtype))
    for to, first, second in products(pass_name, PLAIN):
        got[to] += a[first] * b[second]
    assert_fails(got, expected(pass_name, PLAIN, dtype, "positive"), dtype)


@every_pass
@pytest.mark.parametrize("wide, short", [(torch.float64, torch.float32), (torch.complex128, torch.complex64)], ids=str)
def test_a_shorter_accumulator_fails(pass_name, wide, short):
    got = right_answer(pass_name, PLAIN, wide).to(short).to(wide)
    assert_fails(got, expected(pass_name, PLAIN, wide, "signed"), wide)


@every_pass
@pytest.mark.parametrize("precision, cut", [("tf32", 13), ("bf16", 16)])
def test_operands_of_fewer_bits_fail_unless_the_precision_allows_it(pass_name, precision, cut):
    a, b = operands(pass_name, PLAIN, torch.float32, "signed")
    ref = reference(pass_name, a, b, PLAIN)
    # the last `cut` bits of the significand rounded off
    rounded = [((t.view(torch.int32) + (1 << (cut - 1))) & -(1 << cut)).view(torch.float32) for t in (a, b)]
    got = reference(pass_name, *rounded, PLAIN).value.float()
    assert_fails(got, ref, torch.float32)
    assert_within_bound(got, ref, torch.float32, precision)


def test_the_bound_of_each_precision():
    ref = Reference([torch.zeros(1)], torch.ones(1), 1)
    units = {precision: bound(ref, torch.float32, precision).item() for precision in ("ieee", "tf32", "bf16")}
    assert units == pytest.approx({"ieee": 2.0**-24, "tf32": 2.0**-10, "bf16": 2.0**-7}, rel=1e-3)


def test_shape_and_dtype_are_checked():
    ref, got = expected("forward", PLAIN, torch.float32, "signed"), right_answer("forward", PLAIN, torch.float32)
    for check in (assert_within_bound, assert_exact, assert_same_with_non_finite):
        with pytest.raises(AssertionError, match="shape"):
            check(got[:1], ref, torch.float32)
        with pytest.raises(AssertionError, match="shape"):
            check(got.transpose(2, 3), ref, torch.float32)
        with pytest.raises(AssertionError, match="dtype"):
            check(got.double(), ref, torch.float32)


def test_a_product_of_zeros_must_be_zero():
    zeros = torch.zeros(PLAIN.input_shape), torch.zeros(PLAIN.weight_shape)
    ref = reference("forward", *zeros, PLAIN)
    got = torch.zeros(PLAIN.output_shape)
    assert_within_bound(got, ref, torch.float32)
    got[0, 0, 0, 0] = 1e-30
    assert_fails(got, ref, torch.float32)


def test_the_bound_grows_with_the_length_and_never_beyond_the_certain_one():
    def relative(length):
        return bound(Reference([torch.zeros(1)], torch.ones(1), length), torch.float32).item() / 2.0**-24

    assert relative(0) == 0
    assert [relative(1), relative(3)] == pytest.approx([1, 3])
    assert relative(100) == pytest.approx(20)
    assert relative(10_000) == pytest.approx(200)


# ---- non-finite values


@every_pass
@every_dtype
def test_non_finite_values_must_be_in_their_places(pass_name, dtype):
    a, b = (t.clone() for t in operands(pass_name, PLAIN, dtype, "signed"))
    a[0, 0, 0, 0] = float("inf")
    ref = reference(pass_name, a, b, PLAIN)
    got = ref.value.float()
    got = torch.view_as_complex(got).to(dtype) if dtype.is_complex else got.to(dtype)
    assert not got.isfinite().all()
    if pass_name != "weight_grad":
        assert got.isfinite().any()
    if UNIT_ROUNDOFF[dtype] == 2.0**-24:
        assert_same_with_non_finite(got, ref, dtype)
    for value in (float("nan"), float("inf"), 1.0):
        wrong = got.clone()
        where = got.isfinite() if value != 1.0 else ~got.isfinite()
        if where.any():
            wrong[tuple(where.nonzero()[-1])] = value
            with pytest.raises(AssertionError):
                assert_same_with_non_finite(wrong, ref, dtype)
