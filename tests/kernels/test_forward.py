"""The forward pass against the reference: every algorithm, dtype and layout; bias, formats, forced algorithms."""

import re

import pytest
import torch

from conv_ext.library import available_isas
from passes import (
    CASES,
    DTYPES,
    LAYOUTS,
    PASSES,
    applicable,
    call,
    candidates,
    check_pass,
    dtype_name,
    expected,
    fill,
    instruction_set,
    is_slow,
    laid_out,
    operands,
)
from problems import ALL, CORNERS, EMPTY, SMALL, THREADED
from tolerance import assert_exact, assert_within_bound, reference


@pytest.mark.parametrize("z, dtype", CASES)
def test_against_the_reference(z, dtype):
    check_pass("forward", z, dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("pass_name", PASSES)
def test_naive_loops_of_many_products(pass_name, isa):
    """Which the tests above leave out."""
    large = [z for z in ALL + THREADED if is_slow("reference", z)]
    assert len(large) > 5
    with instruction_set(isa):
        for z in large:
            operands_of = operands(pass_name, z, torch.float32, "integers")
            got = call(pass_name, *operands_of, z, algorithm="reference")
            assert_exact(got, expected(pass_name, z, torch.float32, "integers"), torch.float32)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("z", SMALL + EMPTY, ids=str)
def test_bias(z, dtype):
    """Added before the one rounding, whatever its stride; the output of no channels is the bias."""
    bias = fill((z.k,), dtype, "signed", 5)
    every_third = torch.full((z.k, 3), float("nan"), dtype=dtype)[:, 1]
    every_third.copy_(bias)
    for kind, check in (("integers", assert_exact), ("signed", assert_within_bound)):
        x, w = operands("forward", z, dtype, kind)
        for b in (every_third, bias[:1].expand(z.k)) if kind == "signed" else (fill((z.k,), dtype, kind, 6),):
            ref = reference("forward", x, w, z, b)
            for algorithm in applicable("forward", z, dtype):
                check(call("forward", x, w, z, b, algorithm), ref, dtype)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_bias_of_a_short_type_is_not_rounded_twice(dtype):
    """1 + half a unit in the last place + a little more: rounding before adding the bias would lose the little."""
    eps = torch.finfo(dtype).eps
    z = next(z for z in SMALL if z.name == "pointwise")
    x, w = torch.zeros(z.input_shape, dtype=dtype), torch.zeros(z.weight_shape, dtype=dtype)
    x[:, 0], w[:, 0] = 1.0, eps / 2
    x[:, 1], w[:, 1] = eps, eps
    bias = torch.ones(z.k, dtype=dtype)
    for algorithm in applicable("forward", z, dtype):
        assert (call("forward", x, w, z, bias, algorithm) == 1 + eps).all()


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_each_precision_keeps_its_bound(precision):
    for z in SMALL:
        x, w = operands("forward", z, torch.float32, "signed")
        assert_within_bound(
            call("forward", x, w, z, precision=precision), reference("forward", x, w, z), torch.float32, precision
        )


def test_each_candidate_runs_or_says_why_not():
    """A forced algorithm that declines is an error with its reason; the last candidate never declines."""
    declined = 0
    for z in SMALL + CORNERS:
        for pass_name in PASSES:
            found = candidates(pass_name, z, torch.float32)
            names = [name for name, *_ in found]
            assert len(set(names)) == len(names) and found[-1] == ("reference", None, True, None)
            for name, reason, possible, cycles in found:
                assert possible or cycles is None
                if not possible:
                    declined += 1
                    with pytest.raises(RuntimeError, match=f"algorithm {name} cannot.*{re.escape(reason)}"):
                        call(pass_name, *operands(pass_name, z, torch.float32, "signed"), z, algorithm=name)
    assert declined > 0


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_operands_are_left_alone(layouts):
    for z in SMALL:
        x, w = (laid_out(t, layout) for t, layout in zip(operands("forward", z, torch.float32, "signed"), layouts))
        before = x.clone(), w.clone()
        y = call("forward", x, w, z)
        assert torch.equal(x, before[0]) and torch.equal(w, before[1])
        assert y.untyped_storage().data_ptr() not in (x.untyped_storage().data_ptr(), w.untyped_storage().data_ptr())
