"""AMX's tiles: no processor at hand has them, so the same algorithm is tested on tiles emulated in plain C++.

The library "amx-emulated" differs from "amx" in five functions of csrc/cpu/implicit_gemm/amx.h alone. Indexing,
splitting into parts, accuracy, special values and memory are those of the real one; the intrinsics themselves are
compiled, linked and loaded here, and not run.
"""

import math

import pytest
import torch

import emulated as emulated_library
from children import SUPPORT, run_python
from conv_ext.library import EMULATED, available_isas
from passes import PASSES, applicable, call, candidates, expected, instruction_set, laid_out, operands, same_bits
from problems import ALL, THREADED, Problem
from tolerance import assert_exact, assert_same_with_non_finite, assert_within_bound, reference

pytestmark = pytest.mark.skipif(not emulated_library.possible(available_isas()), reason=emulated_library.REASON)
every_pass = pytest.mark.parametrize("pass_name", PASSES)
NAMES = (
    "everything no_block_divides pointwise_strided grouped_uneven many_input_channels many_output_channels "
    "one_dimensional stride_shares_a_factor_with_dilation many_images vgg_conv4 resnet_downsample threaded_few_pixels"
).split()
PROBLEMS = tuple(z for z in ALL + THREADED if z.name in NAMES)
assert len(PROBLEMS) == len(NAMES)
# Three dtypes and precisions: one, two and three parts of an operand.
KINDS = ((torch.bfloat16, "ieee"), (torch.float32, "bf16"), (torch.float32, "tf32"), (torch.float32, "ieee"))
LONG = Problem("long", 1, 200, 4, 5, 48, 3, 3, padding=(1, 1, 1, 1))


@pytest.fixture(scope="module", autouse=True)
def built():
    emulated_library.build()


@pytest.fixture
def emulated():
    with instruction_set(EMULATED):
        yield


def test_it_is_chosen_by_name_alone():
    assert EMULATED not in available_isas()
    child = run_python("-c", "import conv_ext; print(conv_ext.build_info()['isa'])", CONV_EXT_ISA=EMULATED)
    assert child.stdout.strip() == EMULATED, child.stderr


def test_the_real_one_loads():
    with instruction_set("amx"):
        possible = applicable("forward", LONG, torch.float32)
    assert "implicit_gemm" in possible


@every_pass
@pytest.mark.parametrize("dtype, precision", KINDS)
@pytest.mark.usefixtures("emulated")
def test_against_the_reference(pass_name, dtype, precision):
    tried = 0
    for z in PROBLEMS:
        if "implicit_gemm" not in applicable(pass_name, z, dtype, precision):
            continue
        tried += 1
        for kind in ("integers", "signed", "positive"):
            for layout in ("contiguous", "channels_last"):
                a, b = (laid_out(t, layout) for t in operands(pass_name, z, dtype, kind))
                got = call(pass_name, a, b, z, None, "implicit_gemm", precision)
                ref = expected(pass_name, z, dtype, kind)
                assert_exact(got, ref, dtype) if kind == "integers" else assert_within_bound(got, ref, dtype, precision)
    assert tried >= 3


@every_pass
@pytest.mark.parametrize("kind", ["normal", "positive"])
@pytest.mark.usefixtures("emulated")
def test_parts_are_as_accurate_as_they_should_be(pass_name, kind):
    """Three parts: like float32. Two: the 16 bits of both operands, well within what "tf32" allows."""
    a, b = operands(pass_name, LONG, torch.float32, "positive")
    if kind == "normal":
        a, b = (torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) for i, t in enumerate((a, b)))
    ref = reference(pass_name, a, b, LONG)
    errors = {}
    for precision in ("ieee", "tf32", "bf16"):
        got = call(pass_name, a, b, LONG, None, "implicit_gemm", precision)
        assert_within_bound(got, ref, torch.float32, precision)
        errors[precision] = float(((got.double() - ref.value).abs() / ref.magnitude).max())
    assert errors["ieee"] < 8 * 2.0**-24  # torch's own float32 comes to 15.7 on such data
    assert errors["tf32"] < 2.0**-15 < errors["bf16"]


@every_pass
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, torch.finfo(torch.float32).max], ids=str)
@pytest.mark.usefixtures("emulated")
def test_what_has_no_parts(pass_name, value):
    """Parts of Inf are NaN, and those of the largest numbers overflow: they come out right, and harm nobody else."""
    for z in PROBLEMS:
        if "implicit_gemm" not in applicable(pass_name, z, torch.float32):
            continue
        for operand in (0, 1):
            pair = [t.clone() / 8 for t in operands(pass_name, z, torch.float32, "signed")]
            pair[1 - operand].flatten()[::3] = 0
            pair[operand].flatten()[len(z.name) * 7] = value
            ref = reference(pass_name, *pair, z)
            for precision in ("ieee", "tf32"):
                got = call(pass_name, *pair, z, None, "implicit_gemm", precision)
                assert torch.equal(got.isnan(), ref.value.float().isnan())
                if precision == "ieee":
                    assert_same_with_non_finite(got, ref, torch.float32)


@every_pass
@pytest.mark.parametrize("exponents", [(-38, -30), (-45, -36), (-45, 38)], ids=str)
@pytest.mark.usefixtures("emulated")
def test_small_numbers_keep_their_parts(pass_name, exponents):
    """Down to the smallest float32, and from 1e-45 to 1e38 within one sum: nothing is lost that float32 keeps."""
    for z in (LONG, next(z for z in PROBLEMS if z.name == "many_output_channels"), PROBLEMS[-1]):
        if "implicit_gemm" not in applicable(pass_name, z, torch.float32):
            continue
        generator = torch.Generator().manual_seed(len(z.name))
        a, b = (t.double() for t in operands(pass_name, z, torch.float32, "signed"))
        low, high = exponents
        spread = low + (high - low) * torch.rand(a.shape, generator=generator, dtype=torch.float64)
        a = (a * 10.0**spread).float()
        # The sums stay below 1e38.
        b = (b * 10.0 ** (-3 - 42 * torch.rand(b.shape, generator=generator, dtype=torch.float64) * (high > 0))).float()
        for first, second in ((a, b), (b, a)) if a.shape == b.shape else ((a, b),):
            ref = reference(pass_name, first, second, z)
            got = call(pass_name, first, second, z, None, "implicit_gemm", "ieee").double()
            bound = 2 * math.sqrt(ref.length) * 2.0**-24 * ref.magnitude + 2.0**-149
            assert ((got - ref.value).abs() <= bound).all(), (z, ((got - ref.value).abs() / bound).max())


@every_pass
@pytest.mark.usefixtures("emulated")
def test_tiles_are_chosen_where_they_were_faster(pass_name):
    """float32 in three parts by nobody's choice but the user's; in two parts from 128 channels on; bfloat16 always."""

    def chosen(channels, dtype, precision):
        z = Problem("layer", 8, channels, 14, 14, channels, 1, 1)
        return next(name for name, reason, _ in candidates(pass_name, z, dtype, precision) if reason is None)

    assert chosen(512, torch.float32, "ieee") != "implicit_gemm"
    assert chosen(64, torch.float32, "tf32") != "implicit_gemm"
    assert chosen(128, torch.float32, "tf32") == "implicit_gemm"
    assert chosen(64, torch.bfloat16, "ieee") == "implicit_gemm"


@every_pass
@pytest.mark.parametrize("dtype, precision", KINDS)
@pytest.mark.usefixtures("emulated")
def test_the_same_bits(pass_name, dtype, precision):
    z = next(z for z in THREADED if z.name == "threaded_few_pixels")
    a, b = operands(pass_name, z, dtype, "signed")
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(call(pass_name, a, b, z, None, "implicit_gemm", precision))
    assert all(same_bits(results[0], other) for other in results[1:])
    if pass_name != "weight_grad":
        one = call(pass_name, a[2:3], b, Problem(**{**z.__dict__, "n": 1}), None, "implicit_gemm", precision)
        assert same_bits(one, results[0][2:3])


def test_memory():
    """Against unreadable pages, as in test_memory.py."""
    child = run_python("-X", "faulthandler", str(SUPPORT / "guarded_calls.py"), "calls", CONV_EXT_ISA=EMULATED)
    assert child.returncode == 0, f"in: {child.stdout.splitlines()[-1:]}\n{child.stderr[-3000:]}"
